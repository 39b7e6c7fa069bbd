"""l0-ADMM: consensus with a vector that has few non-zeros."""

from typing import ClassVar

from torch import Tensor

from harness.rules.rule import Force, Piece


class L0ADMM(Force):
    """Alternates a step on f(x) + rho/2 ||x - z + v||^2 with z = H(x + v) and v += x - z; H thresholds hard.

    The nodes of the consensus are the batches: each is a node's one visit (stochastic ADMM, Ouyang et al. 2013), so
    N = 1 in the threshold sqrt(2 alpha / (rho N)). Nodes that were ranks would need weights that differ between ranks,
    which nothing here has: gradients are averaged before every step. `rule_z`, `rule_v` lie beside every weight.
    """

    kept: ClassVar = {"rule_z": 1, "rule_v": 1}

    def __init__(self, alpha: float, coupling: str, rho: float):
        super().__init__(alpha, coupling)
        self.rho = rho

    def add_gradient(self, piece: Piece) -> None:
        """Update z and v to the weights as they are; then g += rho (x - z + v)."""
        z, v = self._answer(piece)
        assert piece.gradient is not None
        piece.gradient.add_((piece.weights - z).add_(v), alpha=self.rho)

    def shrink(self, piece: Piece) -> None:
        """Update z and v to the weights after the step; then pull x to z - v by an implicit step."""
        z, v = self._answer(piece)
        pull = piece.rate * self.rho
        piece.weights.lerp_(z - v, pull / (1 + pull))

    def _answer(self, piece: Piece) -> tuple[Tensor, Tensor]:
        (z,), (v,) = piece.state["rule_z"], piece.state["rule_v"]
        total = v.add_(piece.weights)
        z.copy_(total).mul_(total.square() > 2 * piece.alpha / self.rho)
        v.sub_(z)
        return z, v
