"""TAMADE: the largest magnitude threshold that the loss tolerates."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from harness.errors import RunFailure
from harness.optimizer import is_regularised

PRUNERS = ("none", "tamade")


@dataclass(kw_only=True, slots=True)
class PruneConfig:
    """Pruning between the main and the fine-tuning phase."""

    kind: str = "none"
    """`none` or `tamade`."""
    tolerance: float = 0.02
    """Relative rise of the loss that pruning may cause."""
    resolution: float = 1e-7
    """Width of the bracket of the threshold at which the search ends."""
    grid: float = 0.0
    """Step of the grid that fine-tuning rounds weights to, relative to the rms of a tensor's non-zeros; 0: no grid."""
    sample_sequences: int = 64
    """Training sequences that the loss is measured on; held-out text stays unseen."""

    def problems(self) -> list[str]:
        """Every bad value, a line each."""
        found = []
        if self.kind not in PRUNERS:
            found.append(f"prune.kind={self.kind}: unknown; use one of {', '.join(PRUNERS)}")
        if not 0 <= self.tolerance <= 1:
            found.append(f"prune.tolerance={self.tolerance}: must be between 0 and 1 (a relative rise of the loss)")
        if not (math.isfinite(self.resolution) and self.resolution > 0):
            found.append(f"prune.resolution={self.resolution}: must be positive")
        if not 0 <= self.grid <= 2:
            found.append(f"prune.grid={self.grid}: must be between 0 (no grid) and 2")
        if self.sample_sequences < 1:
            found.append(f"prune.sample_sequences={self.sample_sequences}: must be at least 1")
        return found


@dataclass(frozen=True, slots=True)
class PruneReport:
    """What a search found."""

    threshold: float
    loss_before: float
    loss_after: float
    nonzeros: int
    evaluations: int


@torch.no_grad()
def tamade(model: nn.Module, mean_loss: Callable[[], float], tolerance: float, resolution: float) -> PruneReport:
    """Zero every regularised weight smaller than the largest threshold with loss <= (1 + tolerance) * loss before.

    `mean_loss()` is the loss of the model as it stands, the same number on every rank, so that every rank takes the
    same branch. The threshold is found by bisection on [0, max |weight|], as published.

    Raises RunFailure where the loss is not finite or no weight survives.
    """
    tensors = [p for p in model.parameters() if is_regularised(p)]
    originals = [p.clone() for p in tensors]

    def loss_at(threshold: float) -> float:
        for p, original in zip(tensors, originals, strict=True):
            torch.mul(original, original.abs() >= threshold, out=p)
        return mean_loss()

    before = loss_at(0.0)
    if not math.isfinite(before):
        raise RunFailure(f"pruning: the loss before it is {before}; lower the learning rates and train again")
    low, high = 0.0, max(float(p.abs().max()) for p in originals)
    evaluations = 1
    while high - low > resolution:
        middle = (low + high) / 2
        evaluations += 1
        if loss_at(middle) <= (1 + tolerance) * before:
            low = middle
        else:
            high = middle
    after = loss_at(low)
    nonzeros = sum(int(p.count_nonzero()) for p in model.parameters())
    if not any(bool(p.any()) for p in tensors):
        raise RunFailure("pruning: no weight survives; lower rule.alpha or prune.tolerance and train again")
    return PruneReport(low, before, after, nonzeros, evaluations + 1)
