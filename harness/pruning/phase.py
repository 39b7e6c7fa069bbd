"""The prune phase: what happens between two stretches of training, on any backend."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from harness.backends.base import Backend, gather_state, scatter_state
from harness.config.pruning import PruneConfig
from harness.errors import RunFailure
from harness.model.transformer import Transformer
from harness.optim.optimizer import Optimizer, is_regularised, rounded
from harness.pruning.feedback import sparse_with_feedback
from harness.pruning.layerwise import prune_layers, sparse_fit
from harness.pruning.random_gradient import remove_without_influence
from harness.pruning.sample import Sample
from harness.pruning.step_sizes import Scale, balanced_steps
from harness.pruning.structure import DeadStructure, find_dead
from harness.pruning.tamade import Outcome, finite_loss, shown, tamade
from harness.pruning.worth import remove_unworthy

UNITS = {"loss": "nats/token", "accuracy": "of the next tokens"}


@dataclass(frozen=True, slots=True)
class PruneReport:
    """The report of a pruning."""

    threshold: float | None
    """Smallest magnitude that was kept; None without a threshold."""
    loss_before: float
    loss_after: float
    """Nats/token, or, with `prune.measure=accuracy`, the fraction of tokens not predicted."""
    evaluations: int
    """How often that was measured for it."""
    parameters: int
    nonzeros: int
    """Of all parameters, those that are not zero now."""
    unworthy: int
    """Weights that were removed since their bits cost more than `prune.price` allows."""
    without_influence: int
    """Weights that random-gradient pruning removed."""
    dead: DeadStructure
    """Parts that cannot influence the output."""
    warnings: list[str]
    """Where an assumption of a method did not hold, with the numbers."""

    def lines(self, config: PruneConfig) -> Iterator[str]:
        """Describe the pruning in lines for the user."""
        by_layer = f"{config.kind}, alpha {config.alpha:g},"
        how = by_layer if self.threshold is None else f"|weight| >= {self.threshold:.3g}"
        before, after = (shown(loss, config.measure) for loss in (self.loss_before, self.loss_after))
        yield (
            f"{how} keeps {self.nonzeros:,} of {self.parameters:,} weights ({self.nonzeros / self.parameters:.1%}); "
            f"{config.measure} {before} -> {after} {UNITS[config.measure]} on {config.sample_sequences} training "
            f"sequences ({self.evaluations} evaluations)"
        )
        if self.unworthy:
            yield f"{self.unworthy:,} weights are not worth {config.price:g} times their bits and are removed"
        dead = self.dead
        removed = f"; {self.without_influence:,} weights removed for that" if config.random_gradient else ""
        yield (
            f"without influence on the output are {dead.rows:,} rows and {dead.columns:,} columns of the blocks' "
            f"matrices, {dead.heads:,} heads, {dead.units:,} hidden units, {dead.channels:,} residual channels and "
            f"{dead.weights:,} non-zero weights{removed}"
        )
        yield from (f"warning: {warning}" for warning in self.warnings)


@torch.no_grad()
def prune(
    backend: Backend,
    optimizer: Optimizer,
    replica: Transformer,
    sample: Sample,
    config: PruneConfig,
    seed: int,
    is_last: bool,
    text_tokens: int,
) -> tuple[PruneReport, dict[str, float]]:
    """Prune, drop the rule, hold zeros at zero and, after the last pruning, weights on their grid from now on.

    The search runs on `replica`, a whole model with any weights, since a backend may have shared its own out.
    Weights that never had a gradient, such as the embeddings of symbols never seen, go first: they hold their random
    initial values, influenced no loss and would only cost bits. The grid is laid when the zeros no longer change; it is
    right for weights that are kept together with a text of `text_tokens`.

    Returns the report and, by tensor, the step of its grid (empty without one). Raises RunFailure where the loss is not
    finite or no weight survives.
    """
    _copy_trained(backend, optimizer, replica)
    report = _prune_replica(replica, sample, config, seed, text_tokens)
    optimizer.set_rule(None)
    pruned = {name: p.detach() for name, p in replica.named_parameters()}
    scatter_state(backend, optimizer, "mask", {name: (p != 0).float() for name, p in pruned.items()})
    grid_steps = _lay_grid(replica, sample, text_tokens, config.grid) if config.grid and is_last else {}
    if grid_steps:
        steps = {name: torch.full_like(p, grid_steps.get(name, 1.0)) for name, p in pruned.items()}
        scatter_state(backend, optimizer, "grid_step", steps)
        scatter_state(backend, optimizer, "unrounded", pruned)
        pruned = {name: rounded(p, steps[name]) if name in grid_steps else p for name, p in pruned.items()}
    backend.set_weights(pruned)
    return report, grid_steps


def _copy_trained(backend: Backend, optimizer: Optimizer, replica: Transformer) -> None:
    """The weights of the run in `replica`, with those at zero that never had a gradient.

    Nor may they have had none for so long that their second moment has vanished: some 1,600 steps with a beta2 of 0.95.
    """
    trained = gather_state(backend, optimizer, "exp_avg_sq", missing=1.0)
    weights = dict(backend.weights())
    for name, p in replica.named_parameters():
        p.copy_(weights[name])
        if is_regularised(p):
            p.mul_(trained[name] != 0)


def _prune_replica(
    replica: Transformer, sample: Sample, config: PruneConfig, seed: int, text_tokens: int
) -> PruneReport:
    unworthy, without_influence, warnings = 0, 0, []

    def mean_loss() -> float:
        return sample.mean_loss(replica)

    def loss() -> float:
        return sample.error_rate(replica) if config.measure == "accuracy" else mean_loss()

    def clean() -> None:
        nonlocal without_influence
        if config.random_gradient:
            removal = remove_without_influence(replica, mean_loss, seed)
            without_influence += removal.weights
            if removal.warning:
                warnings.append(removal.warning)

    if config.is_by_layer:
        before = finite_loss(loss)
        by_descent = partial(sparse_fit, steps=config.steps)
        fit = partial(sparse_with_feedback if config.kind == "feedback" else by_descent, alpha=config.alpha)
        moments = partial(sample.second_moments, replica)
        prune_layers(replica, moments, sample.ranks.broadcast_tensor, clean, fit)
        outcome = Outcome(None, before, loss(), evaluations=2, warnings=[])
    else:
        clean()
        outcome = tamade(replica, loss, config)
        clean()
    if config.price:
        unworthy = remove_unworthy(replica, sample, config.price, text_tokens)
        clean()
        outcome = replace(outcome, loss_after=finite_loss(loss))
    nonzero = {name: p != 0 for name, p in replica.named_parameters()}
    if not any(nonzero[name].any() for name, p in replica.named_parameters() if is_regularised(p)):
        strength = "alpha" if config.is_by_layer else "tolerance"
        raise RunFailure(f"pruning: no weight survives; lower rule.alpha or prune.{strength} and train again")
    return PruneReport(
        threshold=outcome.threshold,
        loss_before=outcome.loss_before,
        loss_after=outcome.loss_after,
        evaluations=outcome.evaluations,
        parameters=sum(p.numel() for p in nonzero.values()),
        nonzeros=sum(int(p.sum()) for p in nonzero.values()),
        unworthy=unworthy,
        without_influence=without_influence,
        dead=find_dead(nonzero, replica.config.heads)[1],
        warnings=[*outcome.warnings, *warnings],
    )


def _lay_grid(replica: Transformer, sample: Sample, text_tokens: int, factor: float) -> dict[str, float]:
    """Steps of the grid of each regularised tensor: `factor` times those that balance weights and text.

    The text is as hard to predict as the sample; the weights of `replica` come back as they were.
    """
    originals = {name: p.detach().clone() for name, p in replica.named_parameters() if is_regularised(p)}
    tensors = {name: p for name, p in replica.named_parameters() if name in originals}
    scales = {name: _scale(p) for name, p in originals.items()}

    def text_nats(steps: Mapping[str, float]) -> float:
        for name, p in tensors.items():
            p.copy_(rounded(originals[name], steps[name]))
        return text_tokens * sample.mean_loss(replica)

    balanced = balanced_steps(scales, text_nats)
    for name, p in tensors.items():
        p.copy_(originals[name])
    return {name: float(np.float32(scales[name].limited(factor * step))) for name, step in balanced.items()}


def _scale(weights: Tensor) -> Scale:
    nonzeros = weights[weights != 0]
    return Scale(float(nonzeros.square().mean().sqrt()) if len(nonzeros) else 1.0, len(nonzeros))
