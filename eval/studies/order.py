"""The order of examples is learnt: a relaxed permutation by Sinkhorn's iteration, hardened by the Hungarian method.

Step s learns from row s of a doubly stochastic matrix, and what falls is the area under the loss curve. An order that
is found with knowledge of the text takes log2 n! bits to name.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from eval.gradient.training import MOST_OF_UNIFORM, Prequential, Training, check_costs
from eval.studies.config import OrderConfig
from eval.studies.kept import Kept
from eval.studies.ordered import Ordered, make_ordered
from harness.files import write_file
from harness.machine.ranks import Ranks
from harness.units import bits_from_nats

SINKHORN_ITERATIONS, _COOLING = 20, 0.97
_FIRST_DEVIATION, _BETAS, _EPSILON = 0.1, (0.9, 0.999), 1e-8


@dataclass(kw_only=True, slots=True)
class OrderPoint:
    """A learnt order beside random ones; areas are sums of the losses in nats before each step, ideal lengths."""

    labels: str
    """`true`, or `shuffled`: the control, from which nothing can be learnt."""
    seed: int
    examples: int
    uniform_nats: float
    """What symbols of equal probability take."""
    random_areas: list[float] = field(default_factory=list)
    random_heldout: list[float] = field(default_factory=list)
    """Mean loss on what is held out after the last step of each; nothing where nothing is."""
    area: float = math.inf
    """Of the learnt order."""
    heldout: float | None = None
    order: list[int] = field(default_factory=list)
    """The learnt order: number of the example that comes first, second and so on."""
    areas: list[float] = field(default_factory=list)
    """Area of the hardened order after each epoch."""

    @property
    def area_bits(self) -> float:
        """Bits of the area of the learnt order."""
        return bits_from_nats(self.area)

    @property
    def name_bits(self) -> float:
        """log2 n!, what naming the order takes."""
        return math.lgamma(self.examples + 1) / math.log(2)

    @property
    def total_bits(self) -> float:
        """Area and name of the order."""
        return self.area_bits + self.name_bits


def point_path(config: OrderConfig, labels: str, seed: int) -> Path:
    """Path of a finished job's point."""
    return config.directory / "points" / f"{labels}_s{seed}.json"


def measure_order(config: OrderConfig, ranks: Ranks, labels: str, seed: int) -> None:
    """Learn the order of one job from where it was left, and keep it.

    Raises UsageError where there is nothing to order, or too much; RunFailure where training diverges.
    """
    ordered = make_ordered(config, seed, is_shuffled=labels == "shuffled")
    learning = _Learning(config, ordered, ranks, labels, seed)
    for line in learning.epochs():
        print(line, flush=True)
    path = point_path(config, labels, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    if config.source == "documents":
        lines = "".join(f"{number}\n" for number in learning.point.order)
        write_file(config.directory / f"order_s{seed}.txt", lines.encode())
    write_file(path, (json.dumps(asdict(learning.point), indent=1) + "\n").encode())
    learning.kept.remove()


def read_points(config: OrderConfig) -> list[OrderPoint]:
    """Read the points of all finished jobs."""
    paths = [point_path(config, *job) for job in config.jobs()]
    return [OrderPoint(**json.loads(path.read_text())) for path in paths if path.exists()]


def sinkhorn(logits: Tensor, temperature: float) -> Tensor:
    """A nearly doubly stochastic matrix (n, n) of `logits` (n, n): rows and columns made sum 1, in turns.

    Sinkhorn & Knopp 1967; as a relaxation of permutations Mena et al. 2018.
    """
    logs = logits / temperature
    for _ in range(SINKHORN_ITERATIONS):
        logs = logs - logs.logsumexp(dim=0, keepdim=True)
        logs = logs - logs.logsumexp(dim=1, keepdim=True)
    return logs.exp()


def hardened(matrix: Tensor) -> np.ndarray:
    """The permutation of the largest sum of entries: the column of each row (n,)."""
    return linear_sum_assignment(matrix.detach().numpy(), maximize=True)[1]


class _Learning:
    def __init__(self, config: OrderConfig, ordered: Ordered, ranks: Ranks, labels: str, seed: int):
        self.config, self.ordered = config, ordered
        self.training = Training(ordered.learner, Prequential(ordered.learner), config.learning_rate, ranks)
        count = ordered.learner.num_examples
        self.random = np.random.default_rng(seed)
        first = torch.from_numpy(self.random.normal(scale=_FIRST_DEVIATION, size=(count, count))).float()
        self.tensors = {"logits": first, "mean": torch.zeros_like(first), "square": torch.zeros_like(first)}
        uniform = count * ordered.unit_nats * ordered.scale
        self.point = OrderPoint(labels=labels, seed=seed, examples=count, uniform_nats=uniform)
        self.kept = Kept(config.directory / "work" / f"{labels}_s{seed}.safetensors")

    def epochs(self) -> Iterator[str]:
        """Go on to the last epoch; a line after each tenth."""
        found = self.kept.read()
        if found:
            self.tensors, words = found
            epoch, self.point = words["epoch"], OrderPoint(**words["point"])
        else:
            epoch = 0
            self._try_random_orders()
            yield f"random orders: {bits_from_nats(float(np.mean(self.point.random_areas))):.1f} bits"
        while epoch < self.config.epochs:
            self._improve(epoch)
            epoch += 1
            if epoch % 10 == 0 or epoch == self.config.epochs:
                self.kept.write(self.tensors, {"epoch": epoch, "point": asdict(self.point)})
                yield f"epoch {epoch}: {self.point.area_bits:.1f} bits, and {self.point.name_bits:.1f} for the order"

    def _try_random_orders(self) -> None:
        for _ in range(self.config.random_orders):
            area, heldout = self._area(self.random.permutation(self.point.examples))
            self.point.random_areas.append(area)
            if heldout is not None:
                self.point.random_heldout.append(heldout)

    def _improve(self, epoch: int) -> None:
        """One step of Adam on the logits; the best hardened order is kept."""
        first, last = self.config.temperatures
        logits = self.tensors["logits"].requires_grad_()
        matrix = sinkhorn(logits, max(last, first * _COOLING**epoch))
        policy = matrix.detach()
        slopes = self.training.gradient(policy, self.training.run(policy))
        (gradient,) = torch.autograd.grad((matrix * slopes).sum(), logits)
        mean = self.tensors["mean"].lerp_(gradient, 1 - _BETAS[0])
        square = self.tensors["square"].lerp_(gradient.square(), 1 - _BETAS[1])
        unbiased = [moment / (1 - beta ** (epoch + 1)) for moment, beta in zip((mean, square), _BETAS, strict=True)]
        step = unbiased[0] / (unbiased[1].sqrt() + _EPSILON)
        self.tensors["logits"] = (logits - self.config.order_rate * step).detach()
        order = hardened(policy)
        area, heldout = self._area(order)
        self.point.areas.append(area)
        if area < self.point.area:
            self.point.area, self.point.heldout, self.point.order = area, heldout, order.tolist()

    def _area(self, order: np.ndarray) -> tuple[float, float | None]:
        """Area in nats of an order, and the mean loss on what is held out after it."""
        policy = torch.zeros(len(order), len(order))
        policy[torch.arange(len(order)), torch.from_numpy(order)] = 1
        trajectory = self.training.run(policy)
        check_costs(trajectory.costs, self.config.learning_rate, MOST_OF_UNIFORM * self.ordered.unit_nats)
        heldout = self.ordered.heldout
        loss = float(heldout.losses(trajectory.last).mean()) if heldout else None
        return trajectory.total * self.ordered.scale, loss
