"""Which weights are worth their bits: what each costs in the file, beside what the text would lose without it.

Without a weight w the code of the text grows by about w^2 / 2 times the second moment of its gradient, for each token
(LeCun et al. 1989, "Optimal brain damage", with the Fisher information in place of the Hessian). What it costs depends
on how many other weights its row and column have. What is removed is a choice of the sender: a receiver sees zeros.
"""

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F

from harness.model.transformer import Transformer
from harness.units import nats_from_bits

_EXTRA_BITS_PER_OCTAVE = 2
"""Of a magnitude beyond 1: one that it is longer, one for which."""


class Worth:
    """Removes the weights that are worth less than a price times their bits."""

    def __init__(self, gradient_squares: Mapping[str, np.ndarray], text_tokens: int):
        """`gradient_squares` are means over tokens, of each weight; `text_tokens` are those of the text to be coded."""
        self._loss_factors = {name: 0.5 * text_tokens * squares for name, squares in gradient_squares.items()}

    def kept(self, name: str, integers: np.ndarray, step: np.float32, price: float) -> np.ndarray:
        """The integers of a tensor on a grid, zeros in place of those that are not worth `price` times their bits."""
        lost_nats = self._loss_factors[name] * np.square(integers * np.float64(step))
        return np.where(lost_nats < price * cost_nats(integers), 0, integers)


def gradient_squares(model: Transformer, rows: np.ndarray) -> dict[str, np.ndarray]:
    """Mean over tokens of the square of the loss's gradient in nats, by weight, for token ids `rows` (n, length).

    Squares are of whole sequences, as if what their tokens pull at were independent. In float64: no last bit of a sum,
    which another number of threads may change, decides what a file holds.
    """
    model = model.double()
    squares = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for row in rows:
        tokens = torch.from_numpy(row[None])
        model.zero_grad()
        F.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten(), reduction="sum").backward()
        for name, p in model.named_parameters():
            if p.grad is not None:
                squares[name] += p.grad.square()
    return {name: total.numpy() / rows.size for name, total in squares.items()}


def cost_nats(integers: np.ndarray) -> np.ndarray:
    """About what each weight that is not zero costs beyond a zero in its place, in nats.

    Chances that a weight is not zero are taken as if those of rows and of columns were independent.
    """
    nonzero = (integers != 0).reshape(len(integers), -1)

    def log_odds(axis: int | None) -> np.ndarray:
        count = nonzero.sum(axis, keepdims=True) + 0.5
        return np.log(count / (nonzero.size / count.size + 1 - count))

    bits = 1 + _EXTRA_BITS_PER_OCTAVE * np.log2(np.maximum(np.abs(integers), 1))
    return nats_from_bits(bits) - (log_odds(1) + log_odds(0) - log_odds(None)).reshape(integers.shape)
