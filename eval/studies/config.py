"""Settings of the two studies that learn how to learn: `kind: policy` and `kind: order`."""

import math
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

from harness.bounds import bound_problems, bounded
from harness.config.settings import name_problems
from harness.corpus.config import CorpusConfig
from harness.model.transformer import ModelConfig

LEARNERS = ("perceptron", "transformer")
ORDERED = ("table", "documents")
MAX_EXAMPLES, MAX_STEPS, MAX_SEEDS, MAX_ORDERED = 1 << 20, 1 << 20, 1000, 1024
_POSITIVE = "must be finite and positive"


@dataclass(kw_only=True, slots=True)
class PolicyConfig:
    """Settings of a study of policies: the weight of every example at every step is learnt."""

    kind: str = bounded("policy", choices=("policy",))
    """Kind of the study."""
    name: str = "policy"
    """Name of the study: its directory is `runs_dir`/`name`."""
    runs_dir: str = "runs"
    """Directory of all runs."""
    learner: str = bounded("perceptron", choices=LEARNERS)
    """What is trained: `perceptron` or `transformer` (see `model`)."""
    examples: list[int] = field(default_factory=lambda: [1024])
    """Numbers of training examples, a job each."""
    steps: list[int] = field(default_factory=lambda: [500])
    """Numbers of steps of gradient descent, each on all examples; a job each."""
    seeds: int = bounded(1, least=1, most=MAX_SEEDS)
    """How often everything is drawn anew, a job each."""
    desired: int = bounded(2048, least=1, most=MAX_EXAMPLES)
    """Examples whose loss the policy lowers."""
    test: int = bounded(4096, least=1, most=MAX_EXAMPLES)
    """Examples that the policy is judged by."""
    corrupted: float = bounded(0.25, least=0, most=1)
    """Fraction of the examples with the wrong label, or whose text has been changed."""
    operations: int = bounded(20, least=0, most=1000)
    """transformer: changes of a corrupted text; each replaces a symbol, drops the last, or repeats one."""
    width: int = bounded(64, least=1, most=1 << 16)
    """perceptron: numbers of an input."""
    learning_rate: float = bounded(0.1, above=0, words=_POSITIVE)
    """Learning rate of the steps (eta)."""
    epochs: int = bounded(30, least=1, most=100_000)
    """Changes of the policy."""
    largest_change: float = bounded(0.01, above=0, most=1)
    """Largest change of a weight before the projection; quartered until the loss falls, and kept so."""
    similarity_every: int = bounded(10, least=1)
    """Epochs between two measurements of how alike gradients of training and desired examples are."""
    recompute: bool = False
    """Keep every sqrt(steps)-th state and compute the others again, instead of keeping all."""
    max_memory_bytes: int = bounded(4_000_000_000, least=1)
    """A process that would need more for states and policies is refused."""
    rows: int | None = bounded(None, least=1)
    """transformer: examples that are computed at a time; None is all."""
    stages: int = bounded(8, least=1, most=4096)
    """Stretches of training that the written policy has weights for, each their mean."""
    device: str = bounded("cpu", choices=("auto", "cuda", "cpu"))
    """What computes."""
    model: ModelConfig = field(default_factory=lambda: ModelConfig(width=16, layers=1, heads=2, context=16))
    """transformer: its shape."""
    corpus: CorpusConfig = field(default_factory=lambda: CorpusConfig(subset_bytes=2_000_000))
    """transformer: where sentences come from."""

    @property
    def directory(self) -> Path:
        """Where results lie."""
        return Path(self.runs_dir) / self.name

    def jobs(self) -> list[tuple[int, int, int]]:
        """Examples, steps and seed of each job."""
        return list(product(self.examples, self.steps, range(self.seeds)))

    def problems(self) -> list[str]:
        """Every bad value, a line each."""
        problems = [*name_problems(self.name), *bound_problems(self, "")]
        for key, most in (("examples", MAX_EXAMPLES), ("steps", MAX_STEPS)):
            problems.extend(_count_problems(key, getattr(self, key), most))
        if self.learner == "transformer":
            problems.extend([*self.model.problems(), *self.corpus.problems()])
        return problems


@dataclass(kw_only=True, slots=True)
class OrderConfig:
    """Settings of a study of orders: the order of single examples is learnt, and charged with log2 n! bits."""

    kind: str = bounded("order", choices=("order",))
    """Kind of the study."""
    name: str = "order"
    """Name of the study: its directory is `runs_dir`/`name`."""
    runs_dir: str = "runs"
    """Directory of all runs."""
    source: str = bounded("table", choices=ORDERED)
    """What is ordered: rows of a `table`, whose labels a softmax regression learns, or `documents` of the corpus."""
    table: str = "mnist_5k.csv.gz"
    """table: a CSV file, plain or .gz, of inputs from 0 to 255 and a label in the last column."""
    examples: int = bounded(128, least=2, most=MAX_ORDERED)
    """Rows that are ordered; of documents, all are, and there may be as many at most."""
    heldout: int = bounded(1000, least=1, most=MAX_EXAMPLES)
    """Rows of the table on which the last state is tried."""
    seeds: int = bounded(1, least=1, most=MAX_SEEDS)
    """How often everything is drawn anew; a job each, with true and with shuffled labels."""
    random_orders: int = bounded(20, least=2, most=10_000)
    """Random orders beside it."""
    learning_rate: float = bounded(0.05, above=0, words=_POSITIVE)
    """Learning rate of the steps, one for each example."""
    epochs: int = bounded(80, least=1, most=100_000)
    """Changes of the order."""
    order_rate: float = bounded(0.1, above=0, words=_POSITIVE)
    """Learning rate of Adam on the logits of the order."""
    temperatures: list[float] = field(default_factory=lambda: [1.0, 0.1])
    """First and last temperature of the relaxation; it falls by 3 % an epoch."""
    model: ModelConfig = field(default_factory=lambda: ModelConfig(width=16, layers=1, heads=2, context=64))
    """documents: shape of the transformer; each document counts with its leading `model.context` bytes."""
    corpus: CorpusConfig = field(default_factory=lambda: CorpusConfig(subset_bytes=200_000))
    """documents: where they come from."""

    @property
    def directory(self) -> Path:
        """Where results lie."""
        return Path(self.runs_dir) / self.name

    def jobs(self) -> list[tuple[str, int]]:
        """Labels and seed of each job."""
        return list(product(("true", "shuffled") if self.source == "table" else ("true",), range(self.seeds)))

    def problems(self) -> list[str]:
        """Every bad value, a line each."""
        problems = [*name_problems(self.name), *bound_problems(self, "")]
        at = self.temperatures
        if len(at) != 2 or not all(math.isfinite(value) and value > 0 for value in at) or at[1] > at[0]:
            problems.append(f"temperatures={at}: must be two positive numbers, the first not below the second")
        if self.source == "documents":
            problems.extend([*self.model.problems(), *self.corpus.problems()])
            if self.corpus.documents != "as-is":
                problems.append(f"corpus.documents={self.corpus.documents}: the study finds the order; use as-is")
        return problems


def _count_problems(key: str, values: list[int], most: int) -> list[str]:
    if values and len(set(values)) == len(values) and all(1 <= value <= most for value in values):
        return []
    return [f"{key}={values}: must be some numbers from 1 to {most}, each once"]
