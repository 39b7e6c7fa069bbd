"""The variational code of labels: a Gaussian over the weights, its distance from a prior, and the expected data bits.

Hinton and van Camp 1993; Graves 2011; section 3.2 of "The description length of deep learning models". By bits back the
length KL(q || p) + E_q[-log p(labels)] could be reached, but nobody writes the file: it is ideal.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from harness.model.transformer import ModelConfig, make_model
from harness.units import bits_from_nats

DRAWS = 8
"""Weights that are drawn for the expected data bits."""
_FIRST_DEVIATION = 0.02
# Deviations learn faster: they have as far to go as a few of their own sizes.
_RHO_FACTOR = 10
_EVALUATION_ROWS = 1000


@dataclass(slots=True)
class Posterior:
    """A diagonal Gaussian: means, and deviations log(1 + exp(rho)); the prior is N(0, `prior`^2)."""

    means: dict[str, Tensor]
    rhos: dict[str, Tensor]
    prior: float

    def deviations(self) -> dict[str, Tensor]:
        """Standard deviation of each weight."""
        return {name: F.softplus(rho) for name, rho in self.rhos.items()}

    def draw(self, noise: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights that are `noise` deviations from the means."""
        return {name: self.means[name] + s * noise[name] for name, s in self.deviations().items()}

    def kl_nats(self) -> Tensor:
        """KL(q || p) in nats, a scalar."""
        terms = [
            (torch.log(self.prior / s) + (s.square() + self.means[name].square()) / (2 * self.prior**2) - 0.5).sum()
            for name, s in self.deviations().items()
        ]
        return torch.stack(terms).sum()

    def gradients(
        self, of_weights: Mapping[str, Tensor], noise: Mapping[str, Tensor], num_labels: int
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Gradients by means and rhos of loss and KL in nats a label, given the loss's by the drawn weights."""
        means, rhos = {}, {}
        for name, s in self.deviations().items():
            g, mean = of_weights[name], self.means[name]
            means[name] = g + mean / (self.prior**2 * num_labels)
            pull = (s / self.prior**2 - 1 / s) / num_labels
            rhos[name] = (g * noise[name] + pull) * torch.sigmoid(self.rhos[name])
        return means, rhos


@dataclass(frozen=True, slots=True)
class VariationalCode:
    """The length of a variational code in bits, and its parts."""

    kl_bits: float
    data_bits: float
    prior: float
    accuracy: float
    """Of the means, on held-out labels."""

    @property
    def total_bits(self) -> float:
        """Both parts."""
        return self.kl_bits + self.data_bits


@dataclass(frozen=True, slots=True)
class Labelled:
    """Inputs (n, channels, rows, columns) and their labels (n,), int64."""

    inputs: Tensor
    labels: Tensor

    @classmethod
    def of(cls, inputs: np.ndarray, labels: np.ndarray) -> "Labelled":
        """The same of arrays."""
        return cls(torch.from_numpy(np.array(inputs)), torch.from_numpy(labels.astype(np.int64)))

    def batches(self, size: int, generator: torch.Generator) -> Iterator["Labelled"]:
        """All rows once, in an order that is drawn."""
        for rows in torch.randperm(len(self.labels), generator=generator).split(size):
            yield Labelled(self.inputs[rows], self.labels[rows])


def fit_variational(
    config: ModelConfig,
    num_classes: int,
    seed: int,
    train: Labelled,
    heldout: Labelled,
    prior: float,
    epochs: int,
    batch: int = 128,
    learning_rate: float = 1e-3,
) -> VariationalCode:
    """Fit the posterior of a classifier by Adam, with one draw of the weights a step, and measure its code."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = make_model(config, num_classes, seed)
    means = {name: p.detach().clone() for name, p in model.named_parameters()}
    first_rho = float(np.log(np.expm1(_FIRST_DEVIATION)))
    posterior = Posterior(means, {name: torch.full_like(p, first_rho) for name, p in means.items()}, prior)
    groups: list[dict[str, Any]] = [{"params": [*posterior.means.values()]}]
    groups.append({"params": [*posterior.rhos.values()], "lr": _RHO_FACTOR * learning_rate})
    adam = torch.optim.Adam(groups, lr=learning_rate)
    steps = epochs * -(-len(train.labels) // batch)
    schedule = torch.optim.lr_scheduler.LambdaLR(adam, lambda step: max(0.02, 1 - step / steps))
    for _ in range(epochs):
        for part in train.batches(batch, generator):
            noise = _noise(means, generator)
            weights = {name: w.requires_grad_() for name, w in posterior.draw(noise).items()}
            logits = functional_call(model, weights, (part.inputs,))[:, 0]
            loss = F.cross_entropy(logits, part.labels)
            own = dict(zip(weights, torch.autograd.grad(loss, [*weights.values()]), strict=True))
            of_means, of_rhos = posterior.gradients(own, noise, len(train.labels))
            for name in means:
                posterior.means[name].grad, posterior.rhos[name].grad = of_means[name], of_rhos[name]
            adam.step()
            schedule.step()
    return _measured(model, posterior, train, heldout, generator)


@torch.no_grad()
def _measured(
    model: torch.nn.Module, posterior: Posterior, train: Labelled, heldout: Labelled, generator: torch.Generator
) -> VariationalCode:
    nats = 0.0
    for _ in range(DRAWS):
        weights = posterior.draw(_noise(posterior.means, generator))
        nats += float(_nats(model, weights, train)) / DRAWS
    logits = torch.cat(
        [functional_call(model, posterior.means, (x,))[:, 0] for x in heldout.inputs.split(_EVALUATION_ROWS)]
    )
    right = float((logits.argmax(dim=1) == heldout.labels).double().mean())
    return VariationalCode(
        bits_from_nats(float(posterior.kl_nats())), bits_from_nats(nats), posterior.prior, accuracy=right
    )


def _nats(model: torch.nn.Module, weights: dict[str, Tensor], rows: Labelled) -> Tensor:
    """Code length of all labels in nats."""
    parts = zip(rows.inputs.split(_EVALUATION_ROWS), rows.labels.split(_EVALUATION_ROWS), strict=True)
    terms = [F.cross_entropy(functional_call(model, weights, (x,))[:, 0], y, reduction="sum") for x, y in parts]
    return torch.stack(terms).double().sum()


def _noise(like: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    return {name: torch.randn(p.shape, generator=generator, dtype=p.dtype) for name, p in like.items()}
