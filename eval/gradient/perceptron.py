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
