"""Training of students: main phase with a rule, pruning of each, fine-tuning of what is left."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from eval.teacher.experiment import UNPRUNED, Students, TeacherConfig, TeacherData, first_students, make_data
from harness.config.pruning import PruneConfig
from harness.data.schedule import Moment
from harness.errors import RunFailure
from harness.optim.optimizer import Optimizer, OptimizerConfig, torch_parts
from harness.pruning.tamade import tamade
from harness.rules.config import RuleConfig, make_rule

FINETUNE_FRACTION = 0.3


@dataclass(frozen=True, slots=True)
class Trained:
    """One student at the end, in float32."""

    seed: int
    alpha: float
    tolerance: float | None
    """None where nothing was pruned."""
    weights: Tensor
    """Shape (weights,), zeros included."""


def train_students(config: TeacherConfig, method: str, loss: str, num_targets: int) -> list[Trained]:
    """Train a student for each strength and seed, and prune each with every tolerance.

    Raises RunFailure where a weight is not finite any more.
    """
    data, strengths = make_data(config, num_targets), config.strengths(method)
    students = Students(config.student, [first_students(config)] * len(strengths))
    rule_config = make_rule_config(config, method, strengths[0])
    for group, strength in zip(students.groups, strengths, strict=True):
        group.alpha_scale = strength / strengths[0] if strengths[0] else 1.0
    if rule_config.coupling == "adam":
        rule_config.alpha *= nat_of_all_targets(config, loss, num_targets)
    _train(config, students, repeated(data, len(strengths)), loss, config.steps, rule_config, finetuning=False)
    weights = list(students.weights().detach().split(config.seeds))
    if method == UNPRUNED:
        return _listed(weights, strengths, [None])
    pruned = [_pruned(config, group, data, tolerance) for tolerance in config.tolerances for group in weights]
    finetuned = Students(config.student, pruned)
    finetuned.mask.copy_(torch.cat(pruned) != 0)
    with torch.no_grad():
        finetuned.log_sigma.copy_(students.log_sigma.repeat(len(config.tolerances)))
    rest = RuleConfig(kind="none")
    _train(config, finetuned, repeated(data, len(pruned)), loss, config.finetune_steps, rest, finetuning=True)
    return _listed(list(finetuned.weights().detach().split(config.seeds)), strengths, config.tolerances)


def nat_of_all_targets(config: TeacherConfig, loss: str, num_targets: int) -> float:
    """Convert a nat of the code of all targets to the mean loss; of a squared error it is 2 noise^2."""
    return (2 * config.noise**2 if loss == "mse" else 1.0) / num_targets


def make_rule_config(config: TeacherConfig, method: str, alpha: float) -> RuleConfig:
    """Make the settings of the rule and coupling that a method names."""
    kind, _, coupling = method.partition("-")
    if method in (UNPRUNED, "none"):
        return RuleConfig(kind="none")
    return RuleConfig(kind=kind, coupling=coupling, alpha=alpha, beta=config.beta, ramp=config.ramp)


def repeated(data: TeacherData, times: int) -> TeacherData:
    """Repeat the data of all seeds for each group of students."""
    return TeacherData(data.inputs.repeat(times, 1, 1), data.targets.repeat(times, 1))


def _train(
    config: TeacherConfig,
    students: Students,
    data: TeacherData,
    loss: str,
    num_steps: int,
    rule_config: RuleConfig,
    *,
    finetuning: bool,
) -> None:
    settings = OptimizerConfig(
        kind="adamw",
        learning_rate=config.learning_rate,
        betas=[0.9, 0.999],
        warmup_tokens=0,
        schedule="cosine",
        finetune_fraction=FINETUNE_FRACTION,
    )
    optimizer = Optimizer(students, settings, make_rule(rule_config, settings.betas, 1), torch_parts)
    num_targets = data.targets.shape[1]
    order = torch.Generator().manual_seed(0)
    for step in range(num_steps):
        moment = Moment(step / num_steps, (step + 1) / num_steps, step + 1, is_finetuning=finetuning)
        optimizer.set_learning_rate(moment)
        if optimizer.rule:
            optimizer.rule.strength = rule_config.strength(moment.done)
        batch = data
        if config.batch_targets < num_targets:
            chosen = torch.randint(num_targets, (config.batch_targets,), generator=order)
            batch = TeacherData(data.inputs[:, :, chosen], data.targets[:, chosen])
        # The sum: each student sees the gradient of its own mean.
        students.losses(batch, loss).sum().backward()
        optimizer.step()
    if not torch.isfinite(students.weights()).all():
        raise RunFailure(f"learning_rate={config.learning_rate}: weights are not finite any more; lower it")


def _pruned(config: TeacherConfig, group: Tensor, data: TeacherData, tolerance: float) -> Tensor:
    """The students of a group (seeds, weights), each pruned as far as its error on its own targets allows.

    By the squared error, whatever the loss: a relative rise of a code length, which may be negative, means nothing.
    """
    pruned = []
    for seed, weights in enumerate(group):
        student = Students(config.student, [weights[None]])
        seed_data = TeacherData(data.inputs[seed : seed + 1], data.targets[seed : seed + 1])
        # A rule may have left nothing to prune.
        if weights.any():
            tamade(student, functools.partial(_error, student, seed_data), PruneConfig(tolerance=tolerance))
        pruned.append(student.groups[0].detach()[0])
    return torch.stack(pruned)


def _error(student: Students, data: TeacherData) -> float:
    return student.losses(data, "mse").item()


def _listed(groups: list[Tensor], strengths: list[float], tolerances: Sequence[float | None]) -> list[Trained]:
    places = [(tolerance, alpha) for tolerance in tolerances for alpha in strengths]
    return [
        Trained(seed, alpha, tolerance, weights)
        for (tolerance, alpha), group in zip(places, groups, strict=True)
        for seed, weights in enumerate(group)
    ]
