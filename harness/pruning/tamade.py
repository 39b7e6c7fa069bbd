"""TAMADE: the largest magnitude threshold that the loss tolerates."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from harness.config.pruning import PruneConfig
from harness.errors import RunFailure
from harness.optim.optimizer import is_regularised

# The scan ends at this many halvings of the largest weight; the search by halves goes on from there.
SCAN_HALVINGS = 16
# Falls of the loss below this fraction are rounding: of float32 sums, or of bf16 products over thousands of tokens.
ROUNDING = 1e-5


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of a method; losses are nats/token or, for `accuracy`, the fraction of tokens not predicted."""

    threshold: float | None
    """Smallest magnitude that was kept; None where that did not decide."""
    loss_before: float
    loss_after: float
    evaluations: int
    """How often the loss was measured."""
    warnings: list[str]
    """Where the loss did not rise with the threshold, which a search by halves takes for granted."""


@torch.no_grad()
def tamade(model: nn.Module, loss: Callable[[], float], config: PruneConfig) -> Outcome:
    """Zero every regularised weight smaller than the largest threshold with a tolerated loss.

    `loss()` is that of the model as it stands, in the units of `Outcome`, the same number on every rank, so that every
    rank takes the same branch. A scan at max |weight| / 2, / 4, ... finds the largest acceptable threshold of these;
    bisection goes on above it, down to `config.resolution`. The published bisection on [0, max |weight|] measures the
    same thresholds from the top to the first acceptable one. So the result is the same where the loss rises with the
    threshold, and whether it does is known at a price of at most 16 evaluations, those of the scan below it.

    Raises RunFailure where the loss is not finite.
    """
    tensors = [p for p in model.parameters() if is_regularised(p)]
    originals = [p.clone() for p in tensors]
    losses: dict[float, float] = {}

    def zero_below(threshold: float) -> None:
        for p, original in zip(tensors, originals, strict=True):
            torch.mul(original, original.abs() >= threshold, out=p)

    def is_tolerated(threshold: float) -> bool:
        zero_below(threshold)
        losses[threshold] = loss()
        return losses[threshold] <= limit

    losses[0.0] = finite_loss(loss)
    limit = config.limit(losses[0.0])
    low, high = _scan(max(float(p.abs().max()) for p in originals), config.resolution, is_tolerated)
    # Between neighbouring numbers there is no other one, however fine the resolution.
    while high - low > config.resolution and low < (middle := (low + high) / 2) < high:
        if is_tolerated(middle):
            low = middle
        else:
            high = middle
    zero_below(low)
    return Outcome(low, losses[0.0], losses[low], len(losses), unexpected_losses(losses, limit, config.measure))


def finite_loss(loss: Callable[[], float]) -> float:
    """Compute `loss()` before pruning; raises RunFailure where it is not finite."""
    before = loss()
    if not math.isfinite(before):
        raise RunFailure(
            f"pruning: the loss before it is {before}; lower optimizer.learning_rate or "
            "optimizer.muon_learning_rate and train again"
        )
    return before


def unexpected_losses(losses: dict[float, float], limit: float, measure: str) -> list[str]:
    """Describe where `losses`, by threshold, do not rise with it, a line each; `limit` is the largest tolerated one.

    They are the smallest refused threshold below the largest tolerated one, and the deepest fall beyond rounding.
    """
    name = "accuracy" if measure == "accuracy" else "loss"
    points, lines = sorted(losses.items()), []
    refused = next(((at, value) for at, value in points if not value <= limit), None)
    tolerated = next((at, value) for at, value in reversed(points) if value <= limit)
    if refused and refused[0] < tolerated[0]:
        lines.append(
            f"the {name} was not tolerated at the threshold {refused[0]:.6g} ({shown(refused[1], measure)}, limit "
            f"{shown(limit, measure)}) but is at the larger {tolerated[0]:.6g} ({shown(tolerated[1], measure)}); "
            "the largest tolerated one that was seen is used, and there may be a larger one"
        )
    highest, deepest = points[0], (0.0, points[0], points[0])
    for point in points:
        highest = point if point[1] > highest[1] else highest
        deepest = max(deepest, (highest[1] - point[1], highest, point), key=lambda fall: fall[0])
    fall, above, below = deepest
    if fall > ROUNDING * abs(below[1]):
        lines.append(
            f"the {name} gets better with a larger threshold, from {shown(above[1], measure)} at {above[0]:.6g} to "
            f"{shown(below[1], measure)} at {below[0]:.6g}; a search by halves expects that it gets worse"
        )
    return lines


def shown(loss: float, measure: str) -> str:
    """Format a loss in nats/token; for `accuracy` as the fraction of tokens that are predicted."""
    return f"{1 - loss:.4%}" if measure == "accuracy" else f"{loss:.6g}"


def _scan(largest: float, resolution: float, is_tolerated: Callable[[float], bool]) -> tuple[float, float]:
    """Bracket of the threshold: the largest tolerated of 0 and `largest` / 2, / 4, ..., and the next larger one."""
    low, high = 0.0, largest
    for halvings in range(1, SCAN_HALVINGS + 1):
        threshold = largest / 2**halvings
        if 2 * threshold <= resolution:
            break
        tolerated = is_tolerated(threshold)
        if low == 0.0:
            low, high = (threshold, high) if tolerated else (0.0, threshold)
    return low, high
