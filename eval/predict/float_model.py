"""The transformer of `harness.model.transformer` in float32, one or several tokens a lane.

All but the products of dense matrices is compiled from sources that fix every operation and its order.
"""

from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from eval.kernels import float_steps as float_kernel
from eval.kernels.attention import embed
from eval.kernels.products import Matrix, Room
from eval.kernels.vectors import WIDTH
from eval.predict.stepping import Cache, smeared_symbols, tiles_of
from harness.model.transformer import ModelConfig, rotary_tables, sinusoidal_positions


class FloatModel:
    """The transformer in floats, token by token for many sequences side by side."""

    def __init__(self, config: ModelConfig, vocab_size: int, weights: Iterable[tuple[str, Tensor]]):
        """`weights` are names and tensors of a `Transformer`, all of them."""
        self.config, self.vocab_size, self.begin = config, vocab_size, vocab_size
        self._positions = None
        head_width = config.width // config.heads
        self._circle = tuple(np.zeros((0, head_width // 2), dtype=np.float32) for _ in range(2))
        if config.architecture == "published":
            self._positions = sinusoidal_positions(config.places, config.width).numpy()
        else:
            self._circle = tuple(table.numpy() for table in rotary_tables(config.places, head_width))
        self.load(weights)

    def load(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Replace all weights."""
        w = {name: np.ascontiguousarray(tensor.detach().float().cpu().numpy()) for name, tensor in weights}
        self._embed = w["embed.weight"]
        factors = w.get("smear.weight", np.zeros(0, dtype=np.float32)).reshape(-1, 1, self.config.width)
        self._smeared = [np.pad(each * self._embed, ((0, 1), (0, 0))) for each in factors]
        self._blocks = [_Block(w, f"blocks.{i}.") for i in range(self.config.layers)]
        self._norm, self._head = _Norm(w, "norm"), _Affine(w, "head")

    def new_cache(self, lanes: int, length: int) -> Cache:
        """An empty cache of at least `lanes` lanes."""
        shape = (tiles_of(lanes), self.config.heads, length, self.config.width // self.config.heads, WIDTH)
        layers = [
            (*(np.zeros(shape, np.int16) for _ in range(2)), *(np.zeros((*shape[:3], WIDTH), np.float32) for _ in "kv"))
            for _ in range(self.config.layers)
        ]
        return Cache(layers)

    def step(self, tokens: np.ndarray, cache: Cache) -> np.ndarray:
        """Read `tokens` (lanes, count) into `cache`; returns probabilities (lanes, count, vocab_size), float32.

        The lanes are a multiple of 16.
        """
        lanes, count = tokens.shape
        room, shape = cache.room, (count, self.config.width, lanes)
        x = room.array("stream", shape, np.float32)
        embed(self._embed, tokens, x)
        if self._smeared:
            before = room.array("smeared", shape, np.float32)
            symbols = smeared_symbols(tokens, cache, self.begin, len(self._smeared))
            for table, own in zip(self._smeared, symbols, strict=True):
                embed(table, own, before)
                x += before
        if self._positions is not None:
            x += self._positions[cache.position : cache.position + count, :, None]
        normal = room.array("normal", shape, np.float32)
        cos, sin = self._circle
        for block, layer in zip(self._blocks, cache.layers, strict=True):
            block.attention_norm(x, normal)
            float_kernel.attend(block.qkv(normal, room), layer, cos, sin, cache.position, normal)
            block.out.add(normal, x)
            block.mlp_norm(x, normal)
            block.down.add(self._activated(block.up(normal, room)), x)
        cache.position += count
        self._norm(x, normal)
        probabilities = np.empty((lanes, count, self.vocab_size), dtype=np.float32)
        float_kernel.softmax(self._head(normal, room), probabilities)
        return probabilities

    def _activated(self, x: np.ndarray) -> np.ndarray:
        if self._positions is not None:
            return F.gelu(torch.from_numpy(x)).numpy()
        float_kernel.squared_relu(x)
        return x


class _Block:
    """Norms and products of a block."""

    def __init__(self, weights: dict[str, np.ndarray], prefix: str):
        self.attention_norm, self.mlp_norm = (_Norm(weights, f"{prefix}{n}_norm") for n in ("attention", "mlp"))
        self.qkv, self.out, self.up, self.down = (
            _Affine(weights, f"{prefix}{name}") for name in ("qkv", "out", "up", "down")
        )


class _Norm:
    """RMS norm, or LayerNorm where there are gains."""

    def __init__(self, weights: dict[str, np.ndarray], name: str):
        self._gain, self._bias = weights.get(f"{name}.weight"), weights.get(f"{name}.bias")

    def __call__(self, x: np.ndarray, y: np.ndarray) -> None:
        """Of `x` (count, width, lanes), to `y`."""
        if self._gain is None:
            float_kernel.rms_normed(x, y)
        else:
            float_kernel.layer_normed(x, self._gain, self._bias, y)


class _Affine:
    """A product and what is added to it, if anything."""

    def __init__(self, weights: dict[str, np.ndarray], name: str):
        self._matrix, bias = Matrix(weights[f"{name}.weight"]), weights.get(f"{name}.bias")
        self._bias = None if bias is None else bias[:, None]

    def __call__(self, x: np.ndarray, room: Room) -> np.ndarray:
        """Outputs (count, outputs, lanes) for `x` (count, inputs, lanes), in an array of `room`."""
        y = self._matrix.times(x, room)
        if self._bias is not None:
            y += self._bias
        return y

    def add(self, x: np.ndarray, y: np.ndarray) -> None:
        """Add the outputs to `y`."""
        self._matrix.add(x, y)
        if self._bias is not None:
            y += self._bias
