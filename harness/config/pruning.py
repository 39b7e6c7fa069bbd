"""What `prune` sets: how weights are removed after the main phase."""

import math
from dataclasses import dataclass

PRUNERS = ("none", "tamade", "layerwise")
MEASURES = ("loss", "accuracy")
TEXTS = ("heldout", "train")
MAX_ROUNDS, LARGEST_GRID = 100, 16


@dataclass(kw_only=True, slots=True)
class PruneConfig:
    """Pruning after the main phase."""

    kind: str = "none"
    """`none`, `tamade` (a threshold on magnitudes) or `layerwise` (each linear layer fits its own outputs)."""
    measure: str = "loss"
    """What is tolerated: a relative rise of the mean `loss`, or an absolute drop of next-token `accuracy`."""
    tolerance: float = 0.02
    """`tamade`: rise of the loss, relative, or drop of the accuracy, absolute, that pruning may cause."""
    resolution: float = 1e-7
    """`tamade`: width of the bracket of the threshold at which the search ends."""
    random_gradient: bool = True
    """Remove weights without influence before and after the search, or after each layer of `layerwise`."""
    alpha: float = 1e-3
    """`layerwise`: price of a weight, in mean squares of an output of its layer."""
    steps: int = 500
    """`layerwise`: Adam steps a layer."""
    rounds: int = 1
    """How often to prune: each time, an equal stretch of fine-tuning follows."""
    grid: float = 0.0
    """Steps of the grid that fine-tuning rounds weights to, in those that balance weights and text; 0: no grid."""
    text: str = "heldout"
    """`heldout` or `train`: the text that the file is to hold, of which the grid needs the length."""
    sample_sequences: int = 64
    """Training sequences that the loss is measured on; held-out text stays unseen."""

    @property
    def prunings(self) -> int:
        """How often a run prunes."""
        return 0 if self.kind == "none" else self.rounds

    def problems(self) -> list[str]:
        """Every bad value, a line each."""
        found = []
        for key, known in (("kind", PRUNERS), ("measure", MEASURES), ("text", TEXTS)):
            if getattr(self, key) not in known:
                found.append(f"prune.{key}={getattr(self, key)}: unknown; use one of {', '.join(known)}")
        if not 0 <= self.tolerance <= 1:
            what = "drop of the accuracy" if self.measure == "accuracy" else "relative rise of the loss"
            found.append(f"prune.tolerance={self.tolerance}: must be between 0 and 1 (a {what})")
        if self.measure == "accuracy" and self.tolerance == 1:
            found.append("prune.tolerance=1: every weight may go when all of the accuracy may; use less than 1")
        for key in ("resolution", "alpha"):
            if not (math.isfinite(getattr(self, key)) and getattr(self, key) > 0):
                found.append(f"prune.{key}={getattr(self, key)}: must be positive")
        if not 1 <= self.rounds <= MAX_ROUNDS:
            found.append(f"prune.rounds={self.rounds}: must be between 1 and {MAX_ROUNDS}")
        if not 0 <= self.grid <= LARGEST_GRID:
            found.append(f"prune.grid={self.grid}: must be between 0 (no grid) and {LARGEST_GRID}")
        for key in ("steps", "sample_sequences"):
            if getattr(self, key) < 1:
                found.append(f"prune.{key}={getattr(self, key)}: must be at least 1")
        return found

    def limit(self, before: float) -> float:
        """The largest tolerated loss, or share of tokens not predicted, where it was `before`."""
        return before + self.tolerance if self.measure == "accuracy" else (1 + self.tolerance) * before
