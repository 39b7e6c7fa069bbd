"""What a sparsity rule is: a force on each weight by itself, with tensors of its own beside the optimizer's.

Every rule is elementwise, so the tensors that it works on may be parameters or flat parts of many of them. On a CPU it
is applied piece by piece: all that it reads and writes of a piece stays in the cache, and a dozen operations cost
little more than one walk through memory.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

# Most elements of a piece on a CPU: what an operation reads and writes stays in a second-level cache of 1 MiB, and its
# call costs little beside it. Measured with FPP: an eighth takes twice as long, and so does four times as much.
PIECE_ELEMENTS = 1 << 16
# Usual root mean square of Adam's update of a weight, in learning rates (Liu et al. 2025, "Muon is scalable").
ADAM_UPDATE_SIZE = 0.2
_EPSILON = 1e-8
STEPS_KEY = "rule_steps"
STATE_PREFIX = "rule_"


@dataclass(frozen=True, slots=True)
class Piece:
    """Part of a parameter, flat, and what a rule needs to know at this step."""

    weights: Tensor
    """Shape (n,); a rule changes it in place where its coupling is `decoupled`."""
    gradient: Tensor | None
    """Shape (n,), with the coupling `adam`: a rule adds to it in place."""
    state: dict[str, Tensor]
    """What the rule keeps, by name, shape (rows, n), to be changed in place."""
    alpha: float
    """Strength at this step, in this tensor."""
    rate: float
    """With the coupling `decoupled` the usual size of a weight's update, else the learning rate."""
    step: int
    """How many steps the rule has taken, this one included."""


class Rule(ABC):
    """Base of all rules; `alpha` is the strength, `coupling` says whether they act before the optimizer's step."""

    kept: ClassVar[dict[str, int]] = {}
    """Names of the state beside each parameter, and how many numbers it holds for each weight."""
    replaces_step: ClassVar[bool] = False
    """Whether the rule moves the weights by itself, with no step of the optimizer; it then never rests."""

    def __init__(self, alpha: float, coupling: str):
        self.alpha, self.coupling = alpha, coupling
        self.strength = 1.0
        """Factor on `alpha`, between 0 (the rule rests) and 1; a schedule sets it before each step."""

    def start(self, weights: Tensor) -> dict[str, Tensor]:
        """Make the state before the first step, (rows, n) by name, for flat `weights` (n,)."""
        return {name: weights.new_zeros(rows, weights.numel()) for name, rows in self.kept.items()}

    @abstractmethod
    def act(self, piece: Piece) -> None:
        """Take the rule's part of a step on a piece of a parameter."""

    @torch.no_grad()
    def apply(self, parameter: Tensor, state: dict, rate: float, scale: float) -> None:
        """Take the rule's part of a step on a contiguous parameter with its `state`; `scale` multiplies alpha."""
        if not (self.strength or self.replaces_step):
            return
        if STEPS_KEY not in state:
            state[STEPS_KEY] = 0
            state |= self.start(parameter.detach().view(-1))
        state[STEPS_KEY] += 1
        alpha = self.alpha * self.strength * scale
        gradient = parameter.grad if self.coupling == "adam" else None
        for part in _parts(parameter):
            self.act(
                Piece(
                    weights=parameter.view(-1)[part],
                    gradient=None if gradient is None else gradient.view(-1)[part],
                    state={name: state[name][:, part] for name in self.kept},
                    alpha=alpha,
                    rate=rate,
                    step=state[STEPS_KEY],
                )
            )


class Force(Rule):
    """A rule beside an optimizer, by one of two couplings.

    `adam`: `add_gradient` before the optimizer's step, which scales it (the published way). `decoupled`: `shrink` after
    the step, with the learning rate in units of a weight's usual update, as AdamW does with decay: R-L1
    with an alpha of 0.5 pulls every weight with half the force of its optimizer, whichever that is.
    """

    def act(self, piece: Piece) -> None:
        """Add to the gradient or move the weights, as the coupling says."""
        (self.add_gradient if self.coupling == "adam" else self.shrink)(piece)

    @abstractmethod
    def add_gradient(self, piece: Piece) -> None:
        """Add the rule's force to the gradient, before the optimizer's step."""

    @abstractmethod
    def shrink(self, piece: Piece) -> None:
        """Move the weights, after the optimizer's step."""


def moments(piece: Piece, forces: Tensor, betas: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    """Update Adam's moments (Kingma and Ba 2015) of what a rule keeps by `forces` (rows, n).

    Returns the mean, whose bias is still to be divided out, and the size of a step, without it.
    """
    (first, second), state = betas, piece.state
    mean = state["rule_exp_avg"].lerp_(forces, 1 - first)
    square = state["rule_exp_avg_sq"].mul_(second).addcmul_(forces, forces, value=1 - second)
    return mean, square.sqrt().mul_((1 - second**piece.step) ** -0.5).add_(_EPSILON)


def forget(state: dict) -> None:
    """Remove a rule's state from an optimizer's state of a parameter."""
    for key in [key for key in state if isinstance(key, str) and key.startswith(STATE_PREFIX)]:
        del state[key]


def _parts(parameter: Tensor) -> Iterator[slice]:
    length = PIECE_ELEMENTS if parameter.device.type == "cpu" else max(1, parameter.numel())
    return (slice(start, start + length) for start in range(0, parameter.numel(), length))
