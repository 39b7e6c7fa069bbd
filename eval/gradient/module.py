"""Any module with a loss for each example; derivatives of second order by automatic differentiation."""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.func import functional_call

from harness.model.functions import plain_formulas

LossFunction = Callable[[Callable[..., Tensor], Tensor], Tensor]
"""A module to call, and examples (n, ...) -> the loss of each (n,)."""


class ModuleLearner:
    """Examples of a module; its parameters, tied ones once, are the state."""

    def __init__(self, module: nn.Module, examples: Tensor, loss: LossFunction, rows: int | None = None):
        """`examples` (examples, ...); at most `rows` of them are computed at a time."""
        self.module, self.examples, self.loss = module, examples, loss
        self.num_examples = len(examples)
        self.rows = rows or max(1, self.num_examples)
        shapes = {name: parameter.shape for name, parameter in module.named_parameters()}
        self._shapes = shapes
        ends = torch.tensor([0, *(shape.numel() for shape in shapes.values())]).cumsum(0).tolist()
        self._places = [slice(start, end) for start, end in pairwise(ends)]

    def start(self) -> Tensor:
        """The module's parameters (parameters,) as they are."""
        return torch.cat([parameter.detach().flatten() for parameter in self.module.parameters()])

    def losses(self, state: Tensor) -> Tensor:
        """Loss of each example (examples,)."""
        with torch.no_grad():
            parts = [self._losses(self._parameters(state), rows) for rows in self._parts()]
        return torch.cat(parts)

    def gradient(self, state: Tensor, weights: Tensor) -> Tensor:
        """Of the weighted losses (parameters,)."""
        total = torch.zeros_like(state)
        for rows in self._parts():
            parameters = self._parameters(state)
            loss = (self._losses(parameters, rows) * weights[rows]).sum()
            total += _flat(torch.autograd.grad(loss, list(parameters.values())))
        return total

    def adjoint(self, state: Tensor, weights: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
        """By weights (examples,) and state (parameters,)."""
        of_weights, total = [], torch.zeros_like(state)
        along = [direction[place].view(shape) for place, shape in zip(self._places, self._shapes.values(), strict=True)]
        for rows in self._parts():
            parameters, own = self._parameters(state), weights[rows].detach().requires_grad_()
            each = list(parameters.values())
            with plain_formulas():
                loss = (self._losses(parameters, rows) * own).sum()
                gradients = torch.autograd.grad(loss, each, create_graph=True)
                product = torch.stack([(g * d).sum() for g, d in zip(gradients, along, strict=True)]).sum()
                found = torch.autograd.grad(product, [own, *each], materialize_grads=True)
            of_weights.append(found[0])
            total += _flat(found[1:])
        return torch.cat(of_weights), total

    def _parts(self) -> list[slice]:
        return [slice(first, first + self.rows) for first in range(0, self.num_examples, self.rows)]

    def _parameters(self, state: Tensor) -> dict[str, Tensor]:
        return {
            name: state[place].view(shape).detach().requires_grad_()
            for place, (name, shape) in zip(self._places, self._shapes.items(), strict=True)
        }

    def _losses(self, parameters: dict[str, Tensor], rows: slice) -> Tensor:
        return self.loss(lambda *inputs: functional_call(self.module, parameters, inputs), self.examples[rows])


def _flat(tensors: tuple[Tensor, ...] | list[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])
