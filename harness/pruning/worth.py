"""Which weights are worth their bits: what each costs in the file, beside what the text would lose without it.

Without a weight w the code of the text grows by about w^2 / 2 times the second moment of its gradient, for each token
(LeCun et al. 1989, "Optimal brain damage", with the Fisher information in place of the Hessian). What it costs depends
on how many other weights its row and its column have.
"""

import torch
from torch import Tensor

from harness.model.transformer import Transformer
from harness.optim.optimizer import is_regularised
from harness.pruning.sample import Sample
from harness.units import nats_from_bits

_SIGN_BITS = 1


@torch.no_grad()
def remove_unworthy(replica: Transformer, sample: Sample, price: float, text_tokens: int) -> int:
    """Zero the weights that are worth less than `price` times their bits to a text; returns how many.

    At a price of 1 they cost more than they save; what fine-tuning regains can be worth a higher one.
    """
    removed, squares = 0, sample.gradient_squares(replica)
    for name, p in replica.named_parameters():
        if is_regularised(p) and p.dim() > 1:
            lost_nats = 0.5 * text_tokens * squares[name] * p.double().square()
            unworthy = (p != 0) & (lost_nats < price * cost_nats(p != 0))
            removed += int(unworthy.sum())
            p.masked_fill_(unworthy, 0.0)
    return removed


def cost_nats(nonzero: Tensor) -> Tensor:
    """About what each weight costs that is not zero, beyond a zero in its place, in nats (float64).

    `nonzero` is the pattern (bool) of a tensor, its rows first. The chances that a weight is not zero are taken as if
    those of rows and of columns were independent; with it goes a sign.
    """
    pattern = nonzero.flatten(1).double()

    def log_odds(counts: Tensor, of: int) -> Tensor:
        return torch.log((counts + 0.5) / (of - counts + 0.5))

    rows, columns = log_odds(pattern.sum(1, keepdim=True), pattern.shape[1]), log_odds(pattern.sum(0), len(pattern))
    whole = log_odds(pattern.sum(), pattern.numel())
    return (nats_from_bits(_SIGN_BITS) - (rows + columns - whole)).view(nonzero.shape)
