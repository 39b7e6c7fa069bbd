"""Elementwise rules that an optimizer applies to regularised tensors; nothing is added to the loss.

A rule has two couplings: `adam` adds its gradient before Adam's scaling (the published way), `decoupled` applies it to
the weights with the learning rate after the step, as AdamW does with decay. There the learning rate counts in units of
a weight's usual update: an alpha of 0.5 pulls every weight towards zero with half the force of its optimizer,
whichever that is.
"""

import math
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

RULES = ("none", "rl1")
COUPLINGS = ("adam", "decoupled")


@dataclass(kw_only=True, slots=True)
class RuleConfig:
    """The L0 method of the main phase."""

    kind: str = "none"
    """`none` or `rl1`."""
    alpha: float = 0.0
    """Strength: `adam` in nats of the mean loss per unit of the penalty; `decoupled` as a share of the update."""
    ramp: float = 0.0
    """Share of the main phase over which the strength rises linearly from 0."""
    coupling: str = "decoupled"
    """`adam` or `decoupled`; matrices trained by Muon need `decoupled`."""

    def problems(self) -> list[str]:
        """Every bad value, a line each."""
        found = []
        if self.kind not in RULES:
            found.append(f"rule.kind={self.kind}: unknown; use one of {', '.join(RULES)}")
        if self.coupling not in COUPLINGS:
            found.append(f"rule.coupling={self.coupling}: unknown; use one of {', '.join(COUPLINGS)}")
        if not (math.isfinite(self.alpha) and self.alpha >= 0):
            found.append(f"rule.alpha={self.alpha}: must be finite and not negative")
        if not 0 <= self.ramp <= 1:
            found.append(f"rule.ramp={self.ramp}: must be between 0 and 1 (a share of the main phase)")
        if self.kind == "rl1" and self.alpha == 0:
            found.append("rule.alpha=0: rl1 needs a positive strength, or set rule.kind=none")
        return found


class Rule(Protocol):
    """What an optimizer calls for each regularised parameter; `state` is the optimizer's state of that parameter."""

    coupling: str
    strength: float
    """Factor on the rule's force, between 0 and 1; a ramp sets it before each step."""

    def add_gradient(self, parameter: Tensor, gradient: Tensor, state: dict) -> None:
        """Add the rule's gradient in place, before the optimizer's step (coupling `adam`)."""

    def shrink(self, parameter: Tensor, learning_rate: float, state: dict) -> None:
        """Apply the rule to the weights in place, after the optimizer's step (coupling `decoupled`)."""


class RL1:
    """Relaxed l1: alpha * sum |theta|.

    Coupling `decoupled` is the proximal step (soft threshold), which makes exact zeros while training.
    """

    def __init__(self, alpha: float, coupling: str):
        self.alpha, self.coupling, self.strength = alpha, coupling, 1.0

    def add_gradient(self, parameter: Tensor, gradient: Tensor, state: dict) -> None:
        """g += alpha sign(theta), with sign(0) = 0."""
        gradient.add_(parameter.sign(), alpha=self.strength * self.alpha)

    def shrink(self, parameter: Tensor, learning_rate: float, state: dict) -> None:
        """Theta moves towards zero by learning_rate * alpha and stops there."""
        threshold = learning_rate * self.strength * self.alpha
        parameter.sub_(parameter.clamp(-threshold, threshold))


def make_rule(config: RuleConfig) -> Rule | None:
    """The rule that `config` names, or None."""
    return RL1(config.alpha, config.coupling) if config.kind == "rl1" else None
