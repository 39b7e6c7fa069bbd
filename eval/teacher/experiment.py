"""The teacher-student experiment: what it is made of, its data, and many students side by side.

A small random network, the teacher, makes noisy targets; larger students learn them with each sparsity rule, and the
question is how short weights and targets become together. Layers are matrices (outputs, inputs + 1) with the biases in
the last column, so that rules and pruning touch biases like any other weight.
"""

import math
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from eval.teacher.inputs import layer_shapes, make_inputs
from harness.bounds import bound_problems, bounded
from harness.config.settings import name_problems
from harness.rules.config import COUPLINGS, SPARSE_RULES

UNPRUNED = "unpruned"
METHODS = (UNPRUNED, "none", *(f"{kind}-{coupling}" for kind in SPARSE_RULES for coupling in COUPLINGS))
LOSSES = ("mse", "gaussian")
FIRST_SIGMA = 0.1
MAX_WIDTH, MAX_TARGETS, MAX_SEEDS = 4096, 1 << 20, 1000
_POSITIVE = "must be finite and positive"


@dataclass(kw_only=True, slots=True)
class TeacherConfig:
    """Settings of the teacher-student experiment; the defaults are the published ones where there are such."""

    kind: str = bounded("teacher", choices=("teacher",))
    """Kind of the study."""
    name: str = "teacher"
    """Name of the experiment: its directory is `runs_dir`/`name`."""
    runs_dir: str = "runs"
    """Directory of all runs."""
    teacher: list[int] = field(default_factory=lambda: [2, 5, 8, 1])
    """Widths of the teacher's layers, inputs first."""
    student: list[int] = field(default_factory=lambda: [2, 25, 25, 1])
    """Widths of the student's layers."""
    noise: float = bounded(0.08, above=0, words=_POSITIVE)
    """Standard deviation of the noise on the targets."""
    targets: list[int] = field(default_factory=lambda: [30, 300, 2000])
    """Numbers of targets, an experiment each."""
    seeds: int = bounded(3, least=1, most=MAX_SEEDS)
    """How often everything is drawn anew: teacher, inputs, noise and initial student."""
    methods: list[str] = field(default_factory=lambda: list(METHODS))
    """`unpruned`, `none` (no rule, but pruned), or a rule and its coupling, such as `drr-adam`."""
    losses: list[str] = field(default_factory=lambda: list(LOSSES))
    """`mse`, `gaussian` (code length, sigma trained too), or both."""
    alphas: list[float] = field(default_factory=lambda: [1.0, 3.0, 10.0, 30.0, 100.0])
    """Strengths with the coupling `adam`, in nats of the code of all targets per unit of the penalty.

    Divided by the number of targets; with `mse` also times 2 noise^2, which is what a nat is there.
    """
    shares: list[float] = field(default_factory=lambda: [0.1, 0.3, 1.0, 3.0, 10.0])
    """Strengths with the coupling `decoupled`, in usual updates of a weight: see `rule.alpha`."""
    beta: float = bounded(5.0, above=0, words=_POSITIVE)
    """drr: steepness of exp(-beta |weight|)."""
    ramp: float = bounded(0.0, least=0, most=1, words="must be between 0 and 1 (a share of the main phase)")
    """Fraction of the main phase over which the strength rises linearly from 0."""
    learning_rate: float = bounded(0.01, above=0, words=_POSITIVE)
    """Peak learning rate of AdamW; it falls to 0 as half a cosine."""
    steps: int = bounded(1500, least=1)
    """Optimizer steps of the main phase."""
    finetune_steps: int = bounded(300, least=1)
    """Optimizer steps after pruning, without penalty."""
    batch_targets: int = bounded(300, least=1)
    """Targets of a step; all of them where there are no more."""
    tolerances: list[float] = field(default_factory=lambda: [0.02])
    """Relative rises of the mean squared error that pruning (TAMADE) may cause, a pruned student each."""

    @property
    def is_published(self) -> bool:
        """Whether networks and noise are those of the published totals."""
        defaults = TeacherConfig()
        return all(getattr(self, key) == getattr(defaults, key) for key in ("teacher", "student", "noise"))

    @property
    def directory(self) -> Path:
        """Where results, archives and logs lie."""
        return Path(self.runs_dir) / self.name

    def strengths(self, method: str) -> list[float]:
        """The strengths that a method is tried with; a single 0 without a rule."""
        if method in (UNPRUNED, "none"):
            return [0.0]
        return self.alphas if method.endswith("-adam") else self.shares

    def problems(self) -> list[str]:
        """Every bad value, a line each."""
        problems = [*name_problems(self.name), *bound_problems(self, "")]
        for key in ("teacher", "student"):
            widths = getattr(self, key)
            if len(widths) < 2 or not all(1 <= width <= MAX_WIDTH for width in widths) or widths[-1] != 1:
                problems.append(f"{key}={widths}: must be two or more widths from 1 to {MAX_WIDTH}, the last one 1")
        if self.teacher and self.student and self.teacher[0] != self.student[0]:
            problems.append(f"student={self.student}: must have as many inputs as the teacher ({self.teacher[0]})")
        for key, known in (("methods", METHODS), ("losses", LOSSES)):
            names = getattr(self, key)
            if not names or len(set(names)) < len(names) or not set(names) <= set(known):
                problems.append(f"{key}={names}: must name some of {', '.join(known)}, each once")
        for key, low, high in (("targets", 1, MAX_TARGETS), ("tolerances", 0, 1)):
            values = getattr(self, key)
            if not values or len(set(values)) < len(values) or not all(low <= value <= high for value in values):
                problems.append(f"{key}={values}: must be some numbers from {low} to {high}, each once")
        for key in ("alphas", "shares"):
            values = getattr(self, key)
            is_good = all(math.isfinite(value) and value > 0 for value in values)
            if not values or len(set(values)) < len(values) or not is_good:
                problems.append(f"{key}={values}: must be some positive numbers, each once")
        return problems


@dataclass(frozen=True, slots=True)
class TeacherData:
    """Inputs and targets of some seeds, float32."""

    inputs: Tensor
    """Shape (seeds, width, targets)."""
    targets: Tensor
    """Shape (seeds, targets)."""


class Students(nn.Module):
    """Networks of one shape side by side, in groups of one parameter (students, weights); each has its sigma.

    A group shares its strength of the rule. Weights are multiplied by a mask (all students, weights), at first ones.
    """

    mask: Tensor

    def __init__(self, widths: list[int], groups: list[Tensor]):
        super().__init__()
        self.widths = widths
        self.groups = nn.ParameterList(group.clone() for group in groups)
        num_students = sum(len(group) for group in groups)
        self.log_sigma = nn.Parameter(torch.full((num_students,), math.log(FIRST_SIGMA)))
        self.register_buffer("mask", torch.ones(num_students, groups[0].shape[1]))

    def weights(self) -> Tensor:
        """All weights (students, weights) under the mask."""
        return torch.cat(list(self.groups)) * self.mask

    def forward(self, inputs: Tensor) -> Tensor:
        """Outputs (students, targets) for `inputs` (students, width, targets)."""
        units, weights, start = inputs, self.weights(), 0
        shapes = layer_shapes(self.widths)
        for index, (rows, columns) in enumerate(shapes):
            layer = weights[:, start : start + rows * columns].view(-1, rows, columns)
            start += rows * columns
            units = torch.baddbmm(layer[:, :, -1:], layer[:, :, :-1], units)
            units = units.tanh() if index < len(shapes) - 1 else units
        return units[:, 0]

    def losses(self, data: TeacherData, kind: str) -> Tensor:
        """Mean loss of each student (students,) on data of as many seeds: squared error, or Gaussian nats."""
        squares = (self(data.inputs) - data.targets).square().mean(dim=1)
        return squares if kind == "mse" else gaussian_nats(squares, self.log_sigma)


def gaussian_nats(mse: Tensor, log_sigma: Tensor) -> Tensor:
    """Mean code length of a target in nats, per unit of the targets: mse / (2 sigma^2) + ln(2 pi sigma^2) / 2."""
    return mse * torch.exp(-2 * log_sigma) / 2 + log_sigma + math.log(2 * math.pi) / 2


def make_data(config: TeacherConfig, num_targets: int) -> TeacherData:
    """Draw the inputs and noisy targets of all seeds."""
    inputs = [make_inputs(seed, num_targets, config.teacher[0]) for seed in range(config.seeds)]
    x = torch.from_numpy(np.stack(inputs)).transpose(1, 2).contiguous()
    generators = [torch.Generator().manual_seed(seed) for seed in range(config.seeds)]
    teachers = torch.stack([_teacher(config.teacher, generator) for generator in generators])
    noise = torch.stack([torch.randn(num_targets, generator=generator) for generator in generators])
    with torch.no_grad():
        return TeacherData(x, Students(config.teacher, [teachers])(x) + config.noise * noise)


def first_students(config: TeacherConfig) -> Tensor:
    """Draw initial weights (seeds, weights), one student for each seed."""
    generators = [torch.Generator().manual_seed(MAX_SEEDS + seed) for seed in range(config.seeds)]
    return torch.stack([torch.cat(_uniform_layers(config.student, generator)) for generator in generators])


def _teacher(widths: list[int], generator: torch.Generator) -> Tensor:
    """Random weights (weights,) whose first layer's matrix becomes 2 W + 1, and the second's 2 W."""
    layers = _uniform_layers(widths, generator)
    for index, shift in zip(range(len(layers)), (1.0, 0.0), strict=False):
        rows, columns = layer_shapes(widths)[index]
        matrix = layers[index].view(rows, columns)[:, :-1]
        matrix.mul_(2).add_(shift)
    return torch.cat(layers)


def _uniform_layers(widths: list[int], generator: torch.Generator) -> list[Tensor]:
    """Flat layers, weights and biases uniform within 1 / sqrt(inputs), PyTorch's usual start."""
    layers = []
    for rows, columns in layer_shapes(widths):
        bound = (columns - 1) ** -0.5
        layers.append(torch.empty(rows * columns).uniform_(-bound, bound, generator=generator))
    return layers


def all_jobs(config: TeacherConfig) -> list[tuple[str, str]]:
    """List the jobs: a process for each method and loss, with all numbers of targets."""
    return list(product(config.methods, config.losses))
