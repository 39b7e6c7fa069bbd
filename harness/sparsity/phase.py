"""The prune phase: what happens once, between the main and the fine-tuning phase, on any backend."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from harness.backends.base import Backend, gather_state, scatter_state
from harness.optimizer import Optimizer, is_regularised, rounded
from harness.sparsity.prune import PruneConfig, PruneReport, tamade


@torch.no_grad()
def prune(
    backend: Backend,
    optimizer: Optimizer,
    replica: nn.Module,
    mean_loss: Callable[[nn.Module], float],
    config: PruneConfig,
) -> tuple[PruneReport, dict[str, float]]:
    """Prune, drop the rule, and hold zeros at zero and weights on their grid from now on.

    The search runs on `replica`, a whole model with any weights, since a backend may have shared its own out.
    `mean_loss(replica)` is the same number on every rank. Weights that never had a gradient, such as the embeddings of
    symbols never seen, go first: they hold their random initial values, influenced no loss and would only cost bits.

    Returns the report and, by tensor, the step of its grid (empty without one).
    """
    trained = gather_state(backend, optimizer, "exp_avg_sq", missing=1.0)
    weights = dict(backend.weights())
    for name, p in replica.named_parameters():
        p.copy_(weights[name])
        if is_regularised(p):
            p.mul_(trained[name] != 0)
    report = tamade(replica, lambda: mean_loss(replica), config.tolerance, config.resolution)

    optimizer.set_rule(None)
    pruned = {name: p.detach() for name, p in replica.named_parameters()}
    scatter_state(backend, optimizer, "mask", {name: (p != 0).float() for name, p in pruned.items()})
    grid_steps = {name: _grid_step(p, config.grid) for name, p in pruned.items() if config.grid and is_regularised(p)}
    if grid_steps:
        steps = {name: torch.full_like(p, grid_steps.get(name, 1.0)) for name, p in pruned.items()}
        scatter_state(backend, optimizer, "grid_step", steps)
        scatter_state(backend, optimizer, "unrounded", pruned)
        pruned = {name: rounded(p, steps[name]) if name in grid_steps else p for name, p in pruned.items()}
    backend.set_weights(pruned)
    return report, grid_steps


def _grid_step(weights: Tensor, relative_step: float) -> float:
    """Step relative to the root mean square of the non-zeros."""
    nonzeros = weights[weights != 0]
    return float(relative_step * nonzeros.square().mean().sqrt()) if len(nonzeros) else relative_step
