"""AdamW and Muon whose step applies an elementwise rule and keeps pruned weights at zero.

Muon (Jordan et al. 2024) trains the matrices of the blocks; AdamW trains embeddings, head, norms and biases, or
everything with `kind: adamw`. Rule and mask live in the optimizer so that a backend may shard their state.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from harness.bounds import bound_problems, bounded
from harness.data.schedule import Moment, learning_rate_factor
from harness.optim.adamw import AdamW
from harness.optim.muon import Muon
from harness.rules.config import RuleConfig, kind_of_tensor
from harness.rules.rule import ADAM_UPDATE_SIZE, Rule, forget

OPTIMIZERS = ("muon", "adamw")
SCHEDULES = ("linear", "cosine")

MakeParts = Callable[[list[dict], "OptimizerConfig"], list["Ruled"]]


@dataclass(kw_only=True, slots=True)
class OptimizerConfig:
    """Which optimizer, and its learning rates."""

    kind: str = bounded("muon", choices=OPTIMIZERS)
    """`muon` (matrices of the blocks by Muon, the rest by AdamW) or `adamw`."""
    learning_rate: float = bounded(3e-3, above=0)
    """Peak learning rate of AdamW."""
    embedding_factor: float = bounded(1.0, above=0)
    """Factor on it for the embedding."""
    head_factor: float = bounded(1.0, above=0)
    """Factor on it for the head."""
    vectors_factor: float = bounded(1.0, above=0)
    """Factor on it for vectors: biases, gains, and those of `model.smear`."""
    muon_learning_rate: float = bounded(0.01, above=0)
    """Peak learning rate of Muon."""
    muon_momentum: float = bounded(0.95, least=0, most=0.9999)
    """Decay rate of Muon's momentum."""
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])
    """Decay rates of AdamW's moments."""
    weight_decay: float = bounded(0.0, least=0)
    """Decoupled weight decay: each step takes this times the learning rate of a matrix away; vectors do not decay."""
    warmup_tokens: int = bounded(120_000, least=0)
    """Tokens over which the learning rate rises linearly at the start of the main phase."""
    batch_exponent: float = bounded(0.5, least=0, most=1)
    """Learning rates of smaller steps (`train.batch_schedule`): those of full ones times (fraction of it) to this."""
    schedule: str = bounded("linear", choices=SCHEDULES)
    """Shape of the decay: `linear` or `cosine`."""
    final_fraction: float = bounded(0.0, least=0, most=1)
    """Fraction of the peak that the decay ends at."""
    finetune_fraction: float = bounded(0.3, least=0, most=1)
    """Fraction of the peak that the fine-tuning phase starts from."""
    clip_norm: float | None = bounded(None, above=0, words="must be positive, or null for no clipping")
    """Largest global norm of the gradient; none leaves it as it is."""

    def peak_of(self, kind: str) -> float:
        """Peak learning rate of AdamW for tensors of a kind."""
        return self.learning_rate * getattr(self, f"{kind}_factor", 1.0)

    def scaled(self, factor: float) -> "OptimizerConfig":
        """The same with all learning rates times `factor`."""
        adamw, muon = factor * self.learning_rate, factor * self.muon_learning_rate
        return replace(self, learning_rate=adamw, muon_learning_rate=muon)

    def problems(self) -> list[str]:
        """Every bad value, a line each."""
        problems = bound_problems(self, "optimizer.")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            problems.append(f"optimizer.betas={self.betas}: must be two numbers in [0, 1)")
        return problems


class Ruled(torch.optim.Optimizer):
    """Mixin before a torch optimizer: rule before or after its step, then the mask, then the grid.

    All of it is elementwise, in tensors beside the optimizer's own state of a parameter, so that the parameters may
    just as well be flat partitions of many tensors. What depends on a tensor's shape is in its parameter group:
    `regularised`, `alpha_scale` (factor on the rule's strength), `peak` (its largest learning rate) and `update_size`
    (usual root mean square of a weight's update, in learning rates).
    """

    rule: Rule | None = None

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """One optimizer step with the rule's part of it; weights with a mask of 0 stay exactly 0.

        Weights on a grid are seen rounded by the forward and backward pass, while the step moves their unrounded
        values (the straight-through estimator of Bengio et al. 2013).
        """
        rule, regularised = self.rule, list(self.regularised())
        if rule and rule.replaces_step:
            for group, parameter, state in regularised:
                rule.apply(parameter, state, group["lr"], group["alpha_scale"])
            return
        for _, parameter, state in regularised:
            if "unrounded" in state:
                parameter.copy_(state["unrounded"])
        # PyTorch's optimizers take a state that is not empty for their own.
        kept = [state or {} for _, _, state in regularised]
        if rule and rule.coupling == "adam":
            for (group, parameter, _), state in zip(regularised, kept, strict=True):
                rule.apply(parameter, state, group["lr"], group["alpha_scale"])
        super().step()
        for (group, parameter, _), its_rule in zip(regularised, kept, strict=True):
            state = self.state[parameter]
            state |= its_rule
            if rule and rule.coupling == "decoupled":
                rule.apply(parameter, state, group["lr"] * group["update_size"], group["alpha_scale"])
            if "mask" in state:
                parameter.mul_(state["mask"])
            if "unrounded" in state:
                state["unrounded"].copy_(parameter)
                parameter.copy_(rounded(parameter, state["grid_step"]))

    def regularised(self) -> Iterator[tuple[dict, Tensor, dict]]:
        """Group, parameter and state of everything that rules and masks touch."""
        for group in self.param_groups:
            if group["regularised"]:
                for parameter in group["params"]:
                    yield group, parameter, self.state[parameter]


class RuledAdamW(Ruled, AdamW):
    """AdamW with a rule."""


class RuledMuon(Ruled, Muon):
    """Muon with a rule."""


class Optimizer:
    """The optimizers of a model as one: a shared schedule, one rule."""

    def __init__(self, model: nn.Module, config: OptimizerConfig, rule: Rule | None, make_parts: MakeParts):
        """`make_parts` turns parameter groups into torch optimizers with the mixin `Ruled`."""
        self.config = config
        self.parts = make_parts(parameter_groups(model, config), config)
        self.set_rule(rule)

    def set_rule(self, rule: Rule | None) -> None:
        """Use `rule` from the next step on; what one before it kept is still there, or with None forgotten."""
        self.rule = rule
        for part in self.parts:
            part.rule = rule
            if rule is None:
                for state in part.state.values():
                    forget(state)

    def set_learning_rate(self, moment: Moment) -> float:
        """Set the learning rates of a step; returns the factor on the peaks."""
        config = self.config
        warmup = 0 if moment.is_finetuning else config.warmup_tokens
        factor = learning_rate_factor(moment, warmup, config.schedule, config.final_fraction)
        factor *= config.finetune_fraction if moment.is_finetuning else 1.0
        factor *= moment.batch**config.batch_exponent
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = group["peak"] * factor
        return factor

    def step(self) -> None:
        """Clip, step every part, and forget the gradients."""
        if self.config.clip_norm is not None:
            parameters = [p for part in self.parts for group in part.param_groups for p in group["params"]]
            nn.utils.clip_grad_norm_(parameters, self.config.clip_norm)
        for part in self.parts:
            part.step()
            part.zero_grad(set_to_none=True)


def parameter_groups(model: nn.Module, config: OptimizerConfig) -> list[dict]:
    """Parameter groups of AdamW and, one for each size of update, of Muon (`muon` says which)."""
    groups: dict[tuple, dict] = {}
    for name, p in model.named_parameters():
        by_muon = config.kind == "muon" and is_block_matrix(name, p)
        size = muon_update_size(p) if by_muon else ADAM_UPDATE_SIZE
        settings = {"muon": by_muon, "regularised": is_regularised(p), "update_size": size}
        settings["alpha_scale"] = getattr(p, "alpha_scale", 1.0)
        # Gains would decay to nothing, and so would smears, which have learning rates of their own.
        settings["weight_decay"] = config.weight_decay if p.dim() > 1 else 0.0
        peak = config.muon_learning_rate if by_muon else config.peak_of(kind_of_tensor(name, p))
        settings |= {"peak": peak, "lr": peak}
        group = groups.setdefault(tuple(settings.values()), {"params": [], **settings})
        group["params"].append(p)
    return list(groups.values())


def torch_parts(
    groups: list[dict],
    config: OptimizerConfig,
    muon_dtype: torch.dtype = torch.float32,
    rank: int = 0,
    world_size: int = 1,
) -> list[Ruled]:
    """One optimizer for each kind of group; Muon shares its work out among `world_size` ranks."""
    own = {by_muon: [group for group in groups if group["muon"] == by_muon] for by_muon in (False, True)}
    parts: list[Ruled] = []
    if own[False]:
        parts.append(RuledAdamW(own[False], tuple(config.betas)))
    if own[True]:
        parts.append(RuledMuon(own[True], config.muon_momentum, muon_dtype, rank, world_size))
    return parts


def rounded(weights: Tensor, grid_step: Tensor | float) -> Tensor:
    """The multiples of `grid_step` nearest to `weights`."""
    return weights.div(grid_step).round_().mul_(grid_step)


def muon_update_size(matrix: Tensor) -> float:
    """Root mean square of Muon's update in learning rates: an orthogonal matrix times Muon's own factor."""
    rows, columns = matrix.shape
    return math.sqrt(max(1.0, rows / columns) / max(rows, columns))


def is_block_matrix(name: str, parameter: Tensor) -> bool:
    """Whether Muon trains this parameter: a matrix inside a block."""
    return parameter.dim() == 2 and name.startswith("blocks.")


def mark_parameters(model: nn.Module, config: RuleConfig) -> None:
    """Note on each parameter whether rules and pruning touch it, and the factor on the rule's strength in it."""
    touched = [p for name, p in model.named_parameters() if kind_of_tensor(name, p) in config.touched]
    num_weights = sum(p.numel() for p in touched)
    for p in model.parameters():
        p.is_regularised = any(p is other for other in touched)  # type: ignore[attr-defined]
        scale = num_weights / (p.numel() * len(touched)) if config.layer_normalisation else 1.0
        p.alpha_scale = scale  # type: ignore[attr-defined]


def is_regularised(parameter: Tensor) -> bool:
    """Whether rules and pruning touch this parameter; where nobody has said so, matrices and embeddings."""
    return getattr(parameter, "is_regularised", parameter.dim() >= 2)
