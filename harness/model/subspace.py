"""A model in a random affine subspace: its weights are theta_0 + P phi, and only phi is trained (Li et al. 2018).

P is sparse and follows from a seed: weight i takes coordinate c(i) with a sign, both drawn by a counter-based
generator, scaled by 1 / sqrt(d_c), where d_c weights share coordinate c. Its columns are orthonormal, and applying it
is O(D). theta_0 is made of integers by single products, so that it is the same on every machine. Neither is ever
stored.
"""

import hashlib
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

if TYPE_CHECKING:
    from harness.model.classifiers import Classifier
    from harness.model.transformer import Transformer

_MANTISSA_BITS = 24
# Modules of a transformer whose weights start at zero.
_ZEROS = ("out", "down", "head", "smear")


class Subspace(nn.Module):
    """A model whose weights are a point of a random affine subspace."""

    def __init__(self, model: "Classifier | Transformer", size: int, seed: int):
        """`size` counts the coordinates; they start at zero. The weights that `model` has are forgotten.

        Of a transformer branches, head and smear start at zero.
        """
        super().__init__()
        self.config, self.vocab_size, self.begin = model.config, model.vocab_size, model.begin
        self.checkpoint_activations = False
        self.columns: Tensor
        self.factors: Tensor
        self.start: Tensor
        # In a list, so that its weights are no parameters of this module.
        self._model = [model.requires_grad_(False)]
        self.shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
        columns, factors = projection(sum(map(math.prod, self.shapes.values())), size, seed)
        is_text = not model.config.is_classifier
        start = np.concatenate(
            [
                initial_weights(name, shape, seed, is_zero=is_text and name.split(".")[-2] in _ZEROS).ravel()
                for name, shape in self.shapes.items()
            ]
        )
        for key, values in (("columns", columns), ("factors", factors), ("start", start)):
            self.register_buffer(key, torch.from_numpy(values), persistent=False)
        self.coordinates = nn.Parameter(torch.zeros(size))

    @property
    def num_parameters(self) -> int:
        """Number of trained scalars."""
        return self.coordinates.numel()

    def flops_per_token(self) -> float:
        """Floating-point operations of one forward and backward pass of the model, per label."""
        return self._model[0].flops_per_token()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        # Tables of positions move with the coordinates.
        self._model[0]._apply(fn, recurse)
        return super()._apply(fn, recurse)

    def forward(self, inputs: Tensor) -> Tensor:
        """What the model makes of `inputs` with the weights of the present point."""
        return functional_call(self._model[0], self.weights(), (inputs,))

    def weights(self) -> dict[str, Tensor]:
        """Weights of the model by name, as functions of the coordinates."""
        flat = self.start + self.factors * self.coordinates[self.columns]
        parts = flat.split([math.prod(shape) for shape in self.shapes.values()])
        return {name: part.view(shape) for (name, shape), part in zip(self.shapes.items(), parts, strict=True)}


def projection(num_weights: int, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Coordinate (num_weights,), int64, and factor (num_weights,), float32, of each weight."""
    words = _words(f"projection:{seed}", num_weights)
    columns = (words >> np.uint64(1)) % np.uint64(size)
    counts = np.bincount(columns.astype(np.int64), minlength=size)
    signs = np.where(words & np.uint64(1), 1.0, -1.0)
    return columns.astype(np.int64), (signs / np.sqrt(counts[columns.astype(np.int64)])).astype(np.float32)


def initial_weights(name: str, shape: tuple[int, ...], seed: int, is_zero: bool = False) -> np.ndarray:
    """Weights (shape) of float32 to start from: uniform of variance 2 / inputs (He et al. 2015), vectors fixed."""
    if is_zero:
        return np.zeros(shape, dtype=np.float32)
    if len(shape) < 2:
        return np.full(shape, float(name.endswith("weight")), dtype=np.float32)
    bound = np.float32(math.sqrt(6 / math.prod(shape[1:])))
    integers = (_words(f"start:{name}:{seed}", math.prod(shape)) >> np.uint64(64 - _MANTISSA_BITS)).astype(np.int64)
    centred = (integers - (1 << (_MANTISSA_BITS - 1))).astype(np.float32) * np.float32(2.0 ** (1 - _MANTISSA_BITS))
    return (centred * bound).reshape(shape)


def _words(key: str, count: int) -> np.ndarray:
    """Random words (count,), uint64; raw ones are the same in every numpy."""
    digest = hashlib.sha256(key.encode()).digest()
    return np.random.Philox(key=int.from_bytes(digest[:16], "little")).random_raw(count)
