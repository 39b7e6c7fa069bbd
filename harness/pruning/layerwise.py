"""Layerwise pruning: each linear layer keeps the weights that its own outputs on training text need."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from harness.optim.optimizer import is_regularised

PROBABILITY_TRAVEL = 10.0
"""How far Adam can move a probability over all steps; it is between 0 and 1."""
WEIGHT_TRAVEL = 2.0
"""The same for a weight, in root mean squares of its layer."""


@torch.no_grad()
def prune_layers(
    model: nn.Module,
    second_moments: Callable[[nn.Linear], Tensor],
    agreed: Callable[[Tensor], Tensor],
    after_each: Callable[[], None],
    fit: Callable[[Tensor, Tensor], Tensor],
) -> None:
    """Prune every linear layer of `model` that is regularised, the last one first; `after_each()` is called after each.

    `fit(weights, moments)` returns sparse weights of a layer, given the mean of x x' over its inputs x, float64
    (inputs, inputs), which `second_moments(layer)` measures. In reverse order nothing upstream has changed when a layer
    is pruned, so its targets are its own present outputs. `agreed` returns the first rank's tensor on every rank.
    Embeddings are no linear layers and stay as they are.
    """
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    for layer in reversed([layer for layer in layers if is_regularised(layer.weight)]):
        layer.weight.copy_(agreed(fit(layer.weight, second_moments(layer))))
        after_each()


@torch.no_grad()
def sparse_fit(weights: Tensor, second_moments: Tensor, alpha: float, steps: int) -> Tensor:
    """Compute sparse weights (outputs, inputs) of a layer that give nearly the outputs of `weights`.

    With W = `weights` and inputs x, minimises over w and P in [0, 1]

        sum over outputs of E[(W x - (w P) x)^2] + sum w^2 P (1 - P) E[x^2] + alpha sum P

    by `steps` of Adam, and returns w where P >= 1/2. That is the expected error of keeping each weight with probability
    P, plus a price a weight. Errors are relative to the mean square of an output, so that a price of `alpha` means the
    same in every layer: alone, a weight stays where leaving it out costs more than the fraction `alpha` of an output.
    Zeros stay zero. `second_moments`, the mean of x x', stands for all inputs.
    """
    moments = second_moments.to(weights.device, torch.float64)
    target = weights.double()
    output_square = ((target @ moments) * target).sum() / len(target)
    if output_square <= 0:
        return torch.zeros_like(weights)
    moments, target, nonzero = (moments / output_square).float(), weights.clone(), weights != 0
    squares, size = moments.diagonal(), float(target[nonzero].square().mean().sqrt())
    w, probability = target.clone(), nonzero.float()
    adam = torch.optim.Adam(
        [
            {"params": [w], "lr": WEIGHT_TRAVEL * size / steps},
            {"params": [probability], "lr": PROBABILITY_TRAVEL / steps},
        ]
    )
    for _ in range(steps):
        pull = -2 * (target - w * probability) @ moments
        w.grad = pull * probability + 2 * w * probability * (1 - probability) * squares
        probability.grad = pull * w + w.square() * (1 - 2 * probability) * squares + alpha
        adam.step()
        probability.clamp_(0.0, 1.0).mul_(nonzero)
    return w * (probability >= 0.5)
