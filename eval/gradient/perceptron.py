"""A perceptron, that is logistic regression, with all derivatives in closed form."""

import torch
import torch.nn.functional as F
from torch import Tensor


class Perceptron:
    """Examples with two labels, and the loss -log sigmoid(+-w.z) of each."""

    def __init__(self, inputs: Tensor, labels: Tensor):
        """`inputs` (examples, width), `labels` (examples,) of 0 and 1."""
        self.signed = inputs * (2 * labels.to(inputs.dtype) - 1)[:, None]
        self.num_examples = len(inputs)

    def start(self) -> Tensor:
        """Zeros (width,)."""
        return self.signed.new_zeros(self.signed.shape[1])

    def losses(self, state: Tensor) -> Tensor:
        """Nats of each label (examples,)."""
        return F.softplus(-(self.signed @ state))

    def gradient(self, state: Tensor, weights: Tensor) -> Tensor:
        """Of the weighted losses (width,)."""
        return -((weights * torch.sigmoid(-(self.signed @ state))) @ self.signed)

    def adjoint(self, state: Tensor, weights: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
        """By weights (examples,) and state (width,)."""
        missed = torch.sigmoid(-(self.signed @ state))
        along = self.signed @ direction
        return -missed * along, (weights * missed * (1 - missed) * along) @ self.signed


class SoftmaxRegression:
    """Examples with one of several labels, and the loss -log softmax(W x + b) of each; a state is (W, b) flat."""

    def __init__(self, inputs: Tensor, labels: Tensor, classes: int):
        """`inputs` (examples, width), `labels` (examples,) below `classes`."""
        self.inputs = torch.cat([inputs, torch.ones_like(inputs[:, :1])], dim=1)
        self.labels = F.one_hot(labels, classes).to(inputs.dtype)
        self.num_examples = len(inputs)

    def start(self) -> Tensor:
        """Zeros (classes * (width + 1),)."""
        return self.inputs.new_zeros(self.labels.shape[1] * self.inputs.shape[1])

    def losses(self, state: Tensor) -> Tensor:
        """Nats of each label (examples,)."""
        return -(self._scores(state).log_softmax(dim=1) * self.labels).sum(dim=1)

    def gradient(self, state: Tensor, weights: Tensor) -> Tensor:
        """Of the weighted losses (parameters,)."""
        missed = self._scores(state).softmax(dim=1) - self.labels
        return ((weights[:, None] * missed).T @ self.inputs).flatten()

    def adjoint(self, state: Tensor, weights: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
        """By weights (examples,) and state (parameters,)."""
        chances, along = self._scores(state).softmax(dim=1), self._scores(direction)
        curved = chances * (along - (chances * along).sum(dim=1, keepdim=True))
        of_weights = ((chances - self.labels) * along).sum(dim=1)
        return of_weights, ((weights[:, None] * curved).T @ self.inputs).flatten()

    def _scores(self, state: Tensor) -> Tensor:
        return self.inputs @ state.view(self.labels.shape[1], -1).T
