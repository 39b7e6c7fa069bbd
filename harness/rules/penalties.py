"""Rules that are penalties on the size of each weight: R-L1 and DRR."""

from torch import Tensor

from harness.rules.rule import Force, Piece


class RL1(Force):
    """Relaxed l1: alpha * sum |theta|.

    The coupling `decoupled` is the proximal step (soft threshold), which makes exact zeros while training.
    """

    def add_gradient(self, piece: Piece) -> None:
        """g += alpha sign(theta), with sign(0) = 0."""
        assert piece.gradient is not None
        piece.gradient.add_(piece.weights.sign(), alpha=piece.alpha)

    def shrink(self, piece: Piece) -> None:
        """Move theta towards zero by rate * alpha, at most to zero."""
        threshold = piece.rate * piece.alpha
        piece.weights.sub_(piece.weights.clamp(-threshold, threshold))


class DRR(Force):
    """Differentiable relaxation of the count: alpha * sum (1 - exp(-beta |theta|)) + rho * sum theta^2 (DRR-O)."""

    def __init__(self, alpha: float, coupling: str, beta: float, l2: float):
        super().__init__(alpha, coupling)
        self.beta, self.l2 = beta, l2

    def add_gradient(self, piece: Piece) -> None:
        """g += alpha beta sign(theta) exp(-beta |theta|) + 2 rho theta, with sign(0) = 0."""
        force = self._fading(piece.weights).mul_(piece.weights.sign())
        assert piece.gradient is not None
        piece.gradient.add_(force, alpha=piece.alpha * self.beta)
        if self.l2:
            piece.gradient.add_(piece.weights, alpha=2 * self.l2 * self.strength)

    def shrink(self, piece: Piece) -> None:
        """Move theta towards zero by rate * alpha beta exp(-beta |theta|), at most to zero.

        Then the square term's implicit step.
        """
        threshold = self._fading(piece.weights).mul_(piece.rate * piece.alpha * self.beta)
        piece.weights.sub_(piece.weights.clamp(-threshold, threshold))
        if self.l2:
            piece.weights.div_(1 + 2 * self.l2 * self.strength * piece.rate)

    def _fading(self, weights: Tensor) -> Tensor:
        return weights.abs().mul_(-self.beta).exp_()
