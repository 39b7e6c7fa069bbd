"""AdamW and Muon whose step applies an elementwise rule and keeps pruned weights at zero.

Muon (Jordan et al. 2024) trains the matrices of the blocks; AdamW trains embeddings, head, norms and biases, or
everything with `kind: adamw`. Rule and mask live in the optimizer so that a backend may shard their state.
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from harness.schedule import learning_rate_factor
from harness.sparsity.rules import Rule

OPTIMIZERS = ("muon", "adamw")
SCHEDULES = ("linear", "cosine")


@dataclass(kw_only=True, slots=True)
class OptimizerConfig:
    """Which optimizer, and its learning rates."""

    kind: str = "muon"
    """`muon` (matrices of the blocks by Muon, the rest by AdamW) or `adamw`."""
    learning_rate: float = 3e-3
    """Peak learning rate of AdamW."""
    muon_learning_rate: float = 0.01
    """Peak learning rate of Muon."""
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])
    """Decay rates of AdamW's moments."""
    weight_decay: float = 0.0
    """Decoupled weight decay."""
    warmup_steps: int = 30
    """Steps over which the learning rate rises linearly at the start of the main phase."""
    schedule: str = "linear"
    """Shape of the decay: `linear` or `cosine`."""
    final_fraction: float = 0.0
    """Fraction of the peak that the decay ends at."""
    finetune_fraction: float = 0.3
    """Fraction of the peak that the fine-tuning phase starts from."""
    clip_norm: float | None = None
    """Largest global norm of the gradient; none leaves it as it is."""

    def problems(self) -> list[str]:
        """Every bad value, a line each."""
        found = []
        if self.kind not in OPTIMIZERS:
            found.append(f"optimizer.kind={self.kind}: unknown; use one of {', '.join(OPTIMIZERS)}")
        if self.schedule not in SCHEDULES:
            found.append(f"optimizer.schedule={self.schedule}: unknown; use one of {', '.join(SCHEDULES)}")
        for key in ("learning_rate", "muon_learning_rate"):
            if not (math.isfinite(getattr(self, key)) and getattr(self, key) > 0):
                found.append(f"optimizer.{key}={getattr(self, key)}: must be positive")
        for key in ("final_fraction", "finetune_fraction"):
            if not 0 <= getattr(self, key) <= 1:
                found.append(f"optimizer.{key}={getattr(self, key)}: must be between 0 and 1")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            found.append(f"optimizer.betas={self.betas}: must be two numbers in [0, 1)")
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            found.append(f"optimizer.weight_decay={self.weight_decay}: must be 0 or more")
        if self.warmup_steps < 0:
            found.append(f"optimizer.warmup_steps={self.warmup_steps}: must be 0 or more")
        if self.clip_norm is not None and not self.clip_norm > 0:
            found.append(f"optimizer.clip_norm={self.clip_norm}: must be positive, or null for no clipping")
        return found


class _Ruled:
    """Mixin before a torch optimizer: rule before or after its step, then the mask, then the grid.

    All of it is elementwise, in tensors beside the optimizer's own state of a parameter.
    """

    rule: Rule | None = None

    @torch.no_grad()
    def step(self) -> None:
        """One optimizer step with the rule's part of it; weights with a mask of 0 stay exactly 0.

        Weights on a grid are seen rounded by the forward and backward pass, while the step moves their unrounded
        values (the straight-through estimator of Bengio et al. 2013).
        """
        rule = self.rule
        for _, parameter in self._regularised():
            if "unrounded" in self.state[parameter]:
                parameter.copy_(self.state[parameter]["unrounded"])
        if rule and rule.coupling == "adam":
            for _, parameter in self._regularised():
                rule.add_gradient(parameter, parameter.grad, self.state[parameter])
        super().step()
        for group, parameter in self._regularised():
            if rule and rule.coupling == "decoupled":
                rule.shrink(parameter, group["lr"] * self.update_size(parameter), self.state[parameter])
            if "mask" in self.state[parameter]:
                parameter.mul_(self.state[parameter]["mask"])
            if "unrounded" in self.state[parameter]:
                self.state[parameter]["unrounded"].copy_(parameter)
                self._round(parameter)

    @torch.no_grad()
    def freeze_zeros(self) -> None:
        """From now on every regularised weight that is 0 stays 0."""
        for _, parameter in self._regularised():
            self.state[parameter]["mask"] = (parameter != 0).to(parameter.dtype)

    @torch.no_grad()
    def zero_untrained(self) -> None:
        """Zero every regularised weight that has never had a gradient, such as embeddings of symbols never seen.

        It still holds its random initial value, which influenced no loss and would only cost bits.
        """
        for _, parameter in self._regularised():
            if "exp_avg_sq" in self.state[parameter]:
                parameter.mul_(self.state[parameter]["exp_avg_sq"] != 0)

    @torch.no_grad()
    def round_to_grid(self, relative_step: float) -> None:
        """From now on regularised weights are multiples of a step per tensor, relative to its non-zeros' rms."""
        for _, parameter in self._regularised():
            state, nonzeros = self.state[parameter], parameter[parameter != 0]
            rms = nonzeros.square().mean().sqrt() if len(nonzeros) else torch.ones(())
            state["grid_step"] = torch.full_like(parameter, float(relative_step * rms))
            state["unrounded"] = parameter.clone()
            self._round(parameter)

    def _round(self, parameter: Tensor) -> None:
        step = self.state[parameter]["grid_step"]
        parameter.div_(step).round_().mul_(step)

    def _regularised(self) -> list[tuple[dict, Tensor]]:
        return [(group, p) for group in self.param_groups if group["regularised"] for p in group["params"]]


class RuledAdamW(_Ruled, torch.optim.AdamW):
    """AdamW with a rule."""

    def update_size(self, parameter: Tensor) -> float:
        """Usual root mean square of a weight's update, in learning rates (Liu et al. 2025, "Muon is scalable")."""
        return 0.2


class RuledMuon(_Ruled, torch.optim.Muon):
    """Muon with a rule."""

    def update_size(self, parameter: Tensor) -> float:
        """Root mean square of a weight's update, in learning rates: an orthogonal matrix times Muon's own factor."""
        rows, columns = parameter.shape
        return math.sqrt(max(1.0, rows / columns) / max(rows, columns))


class Optimizer:
    """The optimizers of a model as one: a shared schedule, one rule, one state."""

    def __init__(self, model: nn.Module, config: OptimizerConfig, rule: Rule | None):
        self.config = config
        named = list(model.named_parameters())
        by_muon = [p for name, p in named if config.kind == "muon" and is_block_matrix(name, p)]
        chosen = {id(p) for p in by_muon}
        rest = [(name, p) for name, p in named if id(p) not in chosen]
        groups = [
            {"params": [p for _, p in rest if is_regularised(p)], "regularised": True},
            {"params": [p for _, p in rest if not is_regularised(p)], "regularised": False},
        ]
        decay, betas = config.weight_decay, tuple(config.betas)
        adamw = RuledAdamW([g for g in groups if g["params"]], lr=config.learning_rate, betas=betas, weight_decay=decay)
        self.parts: list[RuledAdamW | RuledMuon] = [adamw]
        self.peaks = [config.learning_rate]
        if by_muon:
            group = {"params": by_muon, "regularised": True}
            self.parts.append(RuledMuon([group], lr=config.muon_learning_rate, weight_decay=decay))
            self.peaks.append(config.muon_learning_rate)
        self.set_rule(rule)

    def set_rule(self, rule: Rule | None) -> None:
        """Use `rule` from the next step on."""
        self.rule = rule
        for part in self.parts:
            part.rule = rule

    def freeze_zeros(self) -> None:
        """From now on every regularised weight that is 0 stays 0."""
        for part in self.parts:
            part.freeze_zeros()

    def round_to_grid(self, relative_step: float) -> None:
        """From now on regularised weights are multiples of a step per tensor, relative to its non-zeros' rms."""
        for part in self.parts:
            part.round_to_grid(relative_step)

    def grid_step(self, parameter: Tensor) -> float | None:
        """Step of a parameter that lies on a grid."""
        states = [part.state[parameter] for part in self.parts if parameter in part.state]
        steps = states[0].get("grid_step") if states else None
        return None if steps is None else float(steps.flatten()[0])

    def zero_untrained(self) -> None:
        """Zero every regularised weight that has never had a gradient."""
        for part in self.parts:
            part.zero_untrained()

    def set_learning_rate(self, step: int, num_steps: int, finetuning: bool) -> float:
        """Set the learning rates of `step` of a phase of `num_steps`; returns the factor on the peaks."""
        config = self.config
        warmup = 0 if finetuning else config.warmup_steps
        factor = learning_rate_factor(step, num_steps, warmup, config.schedule, config.final_fraction)
        factor *= config.finetune_fraction if finetuning else 1.0
        for part, peak in zip(self.parts, self.peaks, strict=True):
            for group in part.param_groups:
                group["lr"] = peak * factor
        return factor

    def step(self) -> None:
        """Clip, step every part, and forget the gradients."""
        if self.config.clip_norm is not None:
            parameters = [p for part in self.parts for group in part.param_groups for p in group["params"]]
            nn.utils.clip_grad_norm_(parameters, self.config.clip_norm)
        for part in self.parts:
            part.step()
            part.zero_grad(set_to_none=True)

    def state_dict(self) -> dict:
        """State of every part."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state: dict) -> None:
        """Inverse of `state_dict`."""
        for part, part_state in zip(self.parts, state["parts"], strict=True):
            part.load_state_dict(part_state)


def is_block_matrix(name: str, parameter: Tensor) -> bool:
    """Whether Muon trains this parameter: a matrix inside a block."""
    return parameter.dim() == 2 and name.startswith("blocks.")


def is_regularised(parameter: Tensor) -> bool:
    """Whether rules and pruning touch this parameter: matrices and embeddings, not norms and biases."""
    return parameter.dim() >= 2
