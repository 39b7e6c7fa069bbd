"""What `prune` sets: how weights are removed after the main phase."""

from dataclasses import dataclass

from harness.bounds import bound_problems, bounded

PRUNERS = ("none", "tamade", "layerwise", "feedback")
MEASURES = ("loss", "accuracy")
TEXTS = ("heldout", "train")
MAX_ROUNDS, LARGEST_GRID = 100, 16


@dataclass(kw_only=True, slots=True)
class PruneConfig:
    """Pruning after the main phase."""

    kind: str = bounded("none", choices=PRUNERS)
    """`none`, `tamade` (a threshold on magnitudes), `layerwise` or `feedback` (docs/offline.md)."""
    measure: str = bounded("loss", choices=MEASURES)
    """What is tolerated: a relative rise of the mean `loss`, or an absolute drop of next-token `accuracy`."""
    tolerance: float = 0.02
    """`tamade`: rise of the loss, relative, or drop of the accuracy, absolute, that pruning may cause."""
    resolution: float = bounded(1e-7, above=0)
    """`tamade`: width of the bracket of the threshold at which the search ends."""
    random_gradient: bool = True
    """Remove weights without influence before and after `tamade`, or after each layer of the other kinds."""
    alpha: float = bounded(1e-3, above=0)
    """`layerwise`, `feedback`: price of a weight, in mean squares of an output of its layer."""
    price: float = bounded(0.0, least=0)
    """Before fine-tuning, weights go that are worth less to the text than so many times their bits; 0: all stay."""
    steps: int = bounded(500, least=1)
    """`layerwise`: Adam steps a layer."""
    rounds: int = bounded(1, least=1, most=MAX_ROUNDS)
    """How often to prune: each time, an equal stretch of fine-tuning follows."""
    grid: float = bounded(0.0, least=0, most=LARGEST_GRID, words=f"must be between 0 (no grid) and {LARGEST_GRID}")
    """Steps of the grid that fine-tuning rounds weights to, in those that balance weights and text; 0: no grid."""
    text: str = bounded("heldout", choices=TEXTS)
    """`heldout` or `train`: the text that the file is to hold, of which the grid needs the length."""
    sample_sequences: int = bounded(64, least=1)
    """Training sequences that the loss is measured on; held-out text stays unseen."""

    @property
    def is_by_layer(self) -> bool:
        """Whether linear layers are pruned one after another, by what their outputs lose."""
        return self.kind in ("layerwise", "feedback")

    @property
    def prunings(self) -> int:
        """How often a run prunes."""
        return 0 if self.kind == "none" else self.rounds

    def problems(self) -> list[str]:
        """Every bad value, a line each."""
        problems = bound_problems(self, "prune.")
        if not 0 <= self.tolerance <= 1:
            what = "drop of the accuracy" if self.measure == "accuracy" else "relative rise of the loss"
            problems.append(f"prune.tolerance={self.tolerance}: must be between 0 and 1 (a {what})")
        if self.measure == "accuracy" and self.tolerance == 1:
            problems.append("prune.tolerance=1: every weight may go when all of the accuracy may; use less than 1")
        return problems

    def limit(self, before: float) -> float:
        """Compute the largest tolerated loss (or fraction of tokens not predicted), given that `before` pruning."""
        return before + self.tolerance if self.measure == "accuracy" else (1 + self.tolerance) * before
