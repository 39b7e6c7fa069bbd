"""The training sequences that pruning is judged on."""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.data.batches import MicroBatch
from harness.learner import Learner
from harness.model.transformer import token_nats


class Sample:
    """Measures means over a fixed sample; ranks divide the work and get the same numbers."""

    def __init__(self, learner: Learner, micro_batches: list[MicroBatch]):
        """`micro_batches` are this rank's part."""
        self.learner, self.ranks, self._micro_batches = learner, learner.ranks, micro_batches

    def mean_loss(self, model: nn.Module) -> float:
        """Compute the mean loss in nats a token."""
        return self._mean(lambda ids, inputs: token_nats(model, ids, self.learner.dtype, inputs))

    def error_rate(self, model: nn.Module) -> float:
        """Compute the fraction of tokens that `model` does not take for the most likely."""

        def errors(ids: Tensor, inputs: Tensor | None) -> Tensor:
            with self._arithmetic():
                return (model(ids if inputs is None else inputs).argmax(dim=-1) != ids).float()

        return self._mean(errors)

    @torch.no_grad()
    def second_moments(self, model: nn.Module, layer: nn.Linear) -> Tensor:
        """Compute the mean of x x' over the inputs x of a layer of `model`, float64 (inputs, inputs)."""
        count = 0.0
        with summing_moments({"layer": layer}) as (sums, masks):
            for micro_batch in self._micro_batches:
                ids, mask = self.learner.on_device(micro_batch)
                masks.append(mask)
                count += int(micro_batch.mask.sum())
                with self._arithmetic():
                    model(ids)
        return self.ranks.sum_tensor(sums["layer"]) / self.ranks.sum(count)[0]

    def gradient_squares(self, model: nn.Module) -> dict[str, Tensor]:
        """Compute the mean over tokens of the square of the loss's gradient, by weight of `model`, float64.

        Squares are of whole sequences, as if what their tokens pull at were independent. In float64: no last bit of a
        sum, which another number of threads may change, decides which weights a file holds.
        """
        model, count = copy.deepcopy(model).double(), 0.0
        squares = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
        for micro_batch in self._micro_batches:
            ids, mask = self.learner.on_device(micro_batch)
            inputs = self.learner.inputs_on_device(micro_batch)
            count += int(micro_batch.mask.sum())
            for row in range(len(ids)):
                tokens = ids[row : row + 1]
                model.zero_grad()
                with torch.enable_grad():
                    logits = model(tokens if inputs is None else inputs[row : row + 1])
                    nats = F.cross_entropy(logits.flatten(0, 1), tokens.flatten(), reduction="none")
                    nats[mask[row]].sum().backward()
                for name, p in model.named_parameters():
                    if p.grad is not None:
                        squares[name] += p.grad.square()
        count = self.ranks.sum(count)[0]
        return {name: self.ranks.sum_tensor(total) / count for name, total in squares.items()}

    @torch.no_grad()
    def _mean(self, values: Callable[[Tensor, Tensor | None], Tensor]) -> float:
        """Mean over all tokens of `values(ids, inputs)`, which has the shape of `ids`."""
        total = tokens = 0.0
        for micro_batch in self._micro_batches:
            ids, mask = self.learner.on_device(micro_batch)
            total += float(
                values(ids, self.learner.inputs_on_device(micro_batch)).masked_fill(~mask, 0.0).sum(dtype=torch.float64)
            )
            tokens += int(micro_batch.mask.sum())
        total, tokens = self.ranks.sum(total, tokens)
        return total / tokens

    def _arithmetic(self) -> torch.autocast:
        dtype = self.learner.dtype
        device = self.ranks.device.type
        return torch.autocast(device, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16)


@contextmanager
def summing_moments(layers: Mapping[str, nn.Linear]) -> Iterator[tuple[dict[str, Tensor], list[Tensor]]]:
    """Sum x x' over the inputs x of layers, float64 (inputs, inputs) by name, while a model runs.

    Yields the sums and a list: the mask (n, length) of the tokens that count is appended to it before each run.
    """
    masks: list[Tensor] = []
    sums = {
        name: torch.zeros(layer.in_features, layer.in_features, dtype=torch.float64, device=layer.weight.device)
        for name, layer in layers.items()
    }

    def add(inputs: tuple[Tensor], total: Tensor) -> None:
        x = inputs[0].float()[masks[-1]]
        with torch.autocast(x.device.type, enabled=False):
            total.add_(x.T @ x)

    handles = [
        layer.register_forward_pre_hook(lambda _, inputs, total=sums[name]: add(inputs, total))
        for name, layer in layers.items()
    ]
    try:
        yield sums, masks
    finally:
        for handle in handles:
            handle.remove()
