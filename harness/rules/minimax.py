"""Probabilistic minimax: PMMP, and its fictitious play, FPP.

min over theta, w, gamma in [0, 1], max over u of
    L(theta) + alpha sum gamma + sum u (theta - w gamma)^2 + sum u w^2 gamma (1 - gamma),
the Lagrangian of theta being w in a fraction gamma of draws and 0 in the others. One Adam step on w, gamma and u goes
with each step on theta; all four see the values before it.
"""

from typing import ClassVar

import torch
from torch import Tensor

from harness.rules.rule import ADAM_UPDATE_SIZE, Force, Piece, moments


class PMMP(Force):
    """Probabilistic minimax: w, gamma and u beside every weight, in the three rows of `rule_players`."""

    kept: ClassVar = {"rule_players": 3, "rule_exp_avg": 3, "rule_exp_avg_sq": 3}

    def __init__(self, alpha: float, coupling: str, start_u: float, betas: tuple[float, ...]):
        super().__init__(alpha, coupling)
        self.start_u, self.betas = start_u, betas

    def start(self, weights: Tensor) -> dict[str, Tensor]:
        """Start with w at the weight, gamma at 1 and u at `start_u`."""
        state = super().start(weights)
        w, gamma, u = state["rule_players"]
        w.copy_(weights)
        gamma.fill_(1.0)
        u.fill_(self.start_u)
        return state

    def add_gradient(self, piece: Piece) -> None:
        """g += 2 u (theta - w gamma)."""
        theta, (w, gamma, u) = piece.weights, piece.state["rule_players"]
        forces, force = minimax_forces(theta, w, gamma, u, piece.alpha)
        assert piece.gradient is not None
        piece.gradient.add_(force)
        self._step_players(piece, forces, piece.rate)

    def shrink(self, piece: Piece) -> None:
        """Pull theta to w gamma by an implicit step, which no u makes overshoot."""
        theta, (w, gamma, u) = piece.weights, piece.state["rule_players"]
        forces, _ = minimax_forces(theta, w, gamma, u, piece.alpha)
        self._pull(theta, w, gamma, u, piece.rate)
        self._step_players(piece, forces, piece.rate / ADAM_UPDATE_SIZE)

    @staticmethod
    def _pull(theta: Tensor, w: Tensor, gamma: Tensor, u: Tensor, rate: float) -> None:
        pull = u * (2 * rate)
        theta.addcmul_(pull, w * gamma).div_(pull.add_(1.0))

    def _step_players(self, piece: Piece, forces: Tensor, learning_rate: float) -> None:
        """One step of Adam (Kingma and Ba 2015) on w, gamma and u."""
        mean, size = moments(piece, forces, self.betas)
        players = piece.state["rule_players"]
        players.addcdiv_(mean, size, value=-learning_rate / (1 - self.betas[0] ** piece.step))
        players[1].clamp_(0.0, 1.0)


class FPP(PMMP):
    """PMMP as fictitious play: each side responds to the other's average so far, in the rows of `rule_means`.

    Theta, w and gamma see the running mean of u; u sees those of theta, w and gamma. Means are over all steps of the
    rule, the values at this step included; their rows are w, gamma, u and theta.
    """

    kept: ClassVar = {**PMMP.kept, "rule_means": 4}

    def add_gradient(self, piece: Piece) -> None:
        """g += 2 mean(u) (theta - w gamma)."""
        forces, force, _ = self._answers(piece)
        assert piece.gradient is not None
        piece.gradient.add_(force)
        self._step_players(piece, forces, piece.rate)

    def shrink(self, piece: Piece) -> None:
        """Pull theta to w gamma with the mean of u."""
        w, gamma, _ = piece.state["rule_players"]
        forces, _, mean_u = self._answers(piece)
        self._pull(piece.weights, w, gamma, mean_u, piece.rate)
        self._step_players(piece, forces, piece.rate / ADAM_UPDATE_SIZE)

    def _answers(self, piece: Piece) -> tuple[Tensor, Tensor, Tensor]:
        theta, players, means = piece.weights, piece.state["rule_players"], piece.state["rule_means"]
        means[:3].lerp_(players, 1 / piece.step)
        mean_w, mean_gamma, mean_u, mean_theta = means
        mean_theta.lerp_(theta, 1 / piece.step)
        means_of_others = (mean_theta, mean_w, mean_gamma)
        forces, force = minimax_forces(theta, players[0], players[1], mean_u, piece.alpha, means_of_others)
        return forces, force, mean_u


def minimax_forces(
    theta: Tensor,
    w: Tensor,
    gamma: Tensor,
    u: Tensor,
    alpha: float,
    seen_by_u: tuple[Tensor, Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute the gradients to descend on: of w, gamma and -u as rows (3, n), and of theta (n,).

    Without the loss, whose gradient the optimizer has. `seen_by_u` is the theta, w and gamma that u answers, if others.
    """
    forces = theta.new_empty(3, theta.numel())
    of_w, of_gamma, of_u = forces
    parts = gap, mean, rest = _parts(theta, w, gamma)
    # -[(theta - w gamma)^2 + w^2 gamma (1 - gamma)]
    its_gap, its_mean, its_rest = _parts(*seen_by_u) if seen_by_u else parts
    torch.mul(its_mean, its_rest, out=of_u).addcmul_(its_gap, its_gap).neg_()
    # u w [w (1 - 2 gamma) - 2 (theta - w gamma)] + alpha
    torch.sub(rest, mean, out=of_gamma).sub_(gap, alpha=2).mul_(w).mul_(u).add_(alpha)
    # 2 u gamma [w (1 - gamma) - (theta - w gamma)]
    torch.sub(rest, gap, out=of_w).mul_(gamma).mul_(u).mul_(2)
    return forces, gap.mul_(u).mul_(2)


def _parts(theta: Tensor, w: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Theta - w gamma, w gamma and w (1 - gamma)."""
    mean = w * gamma
    return theta - mean, mean, w - mean
