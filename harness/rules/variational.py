"""A variational posterior in place of weights: each is a Gaussian, whose distance from a prior is charged.

Hinton and van Camp 1993; Graves 2011; section 3.2 of "The description length of deep learning models". The model is
run with w = mu + s eps, s = log(1 + exp(rho)), eps new at every step; mu and rho descend on the mean loss of a token
plus KL(q || p) / N, whose sum over N tokens bounds the evidence. By bits back a file of that length could be written;
nobody does.
"""

import hashlib
from collections.abc import Iterator
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.rules.rule import Piece, Rule, moments

FIRST_DEVIATION = 0.02
# Deviations learn faster: they have as far to go as a few of their own sizes.
_RHO_FACTOR = 10


class Variational(Rule):
    """A diagonal Gaussian over the weights, trained in place of them: means and rhos are rows of `rule_posterior`."""

    kept: ClassVar = {"rule_posterior": 2, "rule_noise": 1, "rule_exp_avg": 2, "rule_exp_avg_sq": 2}
    replaces_step = True

    def __init__(self, prior: float, num_tokens: int, seed: int, betas: tuple[float, ...]):
        """`prior` is the standard deviation of N(0, prior^2); `num_tokens` those that the code is of."""
        super().__init__(1 / num_tokens, "adam")
        self.prior, self.seed, self.betas = prior, seed, betas
        self._noise: torch.Generator | None = None
        self._step = 0

    def start(self, weights: Tensor) -> dict[str, Tensor]:
        """Start with means at the weights; the first step sees no noise."""
        state = super().start(weights)
        state["rule_posterior"][0].copy_(weights)
        state["rule_posterior"][1].fill_(FIRST_DEVIATION).expm1_().log_()
        return state

    def act(self, piece: Piece) -> None:
        """One step of Adam on means and rhos; the weights become a new draw."""
        assert piece.gradient is not None
        (posterior, (noise,)), betas = (piece.state["rule_posterior"], piece.state["rule_noise"]), self.betas
        forces = bound_gradients(posterior, noise, piece.gradient, piece.alpha, self.prior)
        mean, size = moments(piece, forces, betas)
        for row, factor in enumerate((1, _RHO_FACTOR)):
            posterior[row].addcdiv_(mean[row], size[row], value=-factor * piece.rate / (1 - betas[0] ** piece.step))
        noise.normal_(generator=self._generator(piece))
        torch.addcmul(posterior[0], F.softplus(posterior[1]), noise, out=piece.weights)

    def _generator(self, piece: Piece) -> torch.Generator:
        """The noise of a step follows from it and the seed: the same on every rank, and in a run that goes on."""
        device = piece.weights.device
        if self._noise is None or piece.step != self._step:
            self._noise, self._step = torch.Generator(device), piece.step
            key = hashlib.blake2b(f"noise:{self.seed}:{piece.step}".encode(), digest_size=7).digest()
            self._noise.manual_seed(int.from_bytes(key))
        return self._noise


def bound_gradients(posterior: Tensor, noise: Tensor, gradient: Tensor, alpha: float, prior: float) -> Tensor:
    """Gradients (2, n) by means and rhos, the rows of `posterior`, of loss + alpha KL(q || p).

    `gradient` (n,) is the loss's at weights that are `noise` deviations from the means.
    """
    mean, rho = posterior
    deviation = F.softplus(rho)
    pull = (deviation / prior**2 - 1 / deviation) * alpha
    return torch.stack([gradient + mean * (alpha / prior**2), (gradient * noise + pull) * torch.sigmoid(rho)])


def kl_nats(mean: Tensor, deviation: Tensor, prior: float) -> Tensor:
    """KL(q || p) in nats of Gaussians from N(0, prior^2), a scalar of float64."""
    mean, deviation = mean.double(), deviation.double()
    terms = torch.log(prior / deviation) + (deviation.square() + mean.square()) / (2 * prior**2) - 0.5
    return terms.sum()


def posterior_of(model: nn.Module, states: list[dict[Tensor, dict]]) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Name, mean and standard deviation of each weight of a model, by the states of its optimizers."""
    for name, parameter in model.named_parameters():
        state = next(each[parameter] for each in states if parameter in each)
        mean, rho = state["rule_posterior"]
        yield name, mean.view_as(parameter), F.softplus(rho).view_as(parameter)
