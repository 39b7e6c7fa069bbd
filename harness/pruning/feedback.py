"""Rounding with error feedback: what rounding one weight does to an output, the weights after it make up for.

Inputs of a layer correlate, so that the error of one weight can be corrected by others of its row: columns are rounded
one after another, and the error of each is taken from those that are still to come, by the second moments of the inputs
(GPTQ, Frantar et al. 2023, section 3; the same as LDLQ, Chee et al. 2023). With a dead zone around zero it chooses
which weights become zero too. What is rounded is a choice of the sender: a receiver sees integers.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from harness.data.order import Sequences
from harness.errors import UsageError
from harness.model.transformer import Transformer, token_nats
from harness.pruning.sample import summing_moments

# Columns between which errors are carried at once; those further on get the sums of a block.
BLOCK = 64
# Added to second moments where weights are pruned, in mean squares of an input.
DAMPING = 0.01
ROWS_PER_FORWARD = 8


@dataclass(frozen=True, slots=True)
class Inputs:
    """What rounding needs to know of the inputs of a layer."""

    order: np.ndarray
    """Columns of its weights in the order in which they are rounded."""
    factor: np.ndarray
    """Upper Cholesky factor (inputs, inputs) of the inverse second moments, in that order."""


class Feedback:
    """Rounds the weights of linear layers with feedback, and those of other tensors to the nearest."""

    def __init__(self, moments: Mapping[str, np.ndarray], damping: float, order: str):
        """`moments` are the sums of x x' over inputs x of each linear layer, by the name of its weights.

        `damping` is added to them, in mean squares of an input; `order` is as in `eval.feedback_order`.
        """
        self._inputs = {name: _inputs(moment, damping, order) for name, moment in moments.items()}

    def rounded(self, name: str, weights: np.ndarray, step: np.float32, dead_zone: float) -> np.ndarray:
        """Integers (int64) of a tensor on a grid; those below 1/2 + `dead_zone` become 0, and zeros stay."""
        if name in self._inputs:
            return round_with_feedback(weights, float(step), self._inputs[name], dead_zone)
        return _nearest(weights / step, dead_zone).astype(np.int64)


def round_with_feedback(weights: np.ndarray, step: float, inputs: Inputs, dead_zone: float) -> np.ndarray:
    """Integers (outputs, inputs), int64, such that their outputs are close to those of `weights`."""
    kept = _with_feedback(weights, inputs, lambda column, _: step * _nearest(column / step, dead_zone))
    return np.rint(kept / step).astype(np.int64)


def sparse_with_feedback(weights: Tensor, second_moments: Tensor, alpha: float) -> Tensor:
    """Remove the weights (outputs, inputs) that cost little once those after them in their row make up for it.

    A weight goes where its removal adds less than the fraction `alpha` of the mean square of an output of its layer,
    given that all weights after it move by the optimal brain surgeon's update (SparseGPT, Frantar & Alistarh 2023,
    section 3.3, with a price instead of a share). Zeros stay zero. `second_moments`, the mean of x x', stands for all
    inputs.
    """
    own, moments = weights.cpu().double().numpy(), second_moments.cpu().double().numpy()
    output_square = float(((own @ moments) * own).sum()) / len(own)
    if output_square <= 0:
        return torch.zeros_like(weights)
    inputs = _inputs(moments / output_square, DAMPING, "natural")
    kept = _with_feedback(own, inputs, lambda column, size: np.where((column / size) ** 2 < alpha, 0.0, column))
    return torch.from_numpy(kept).to(weights)


def _with_feedback(
    weights: np.ndarray, inputs: Inputs, chosen: Callable[[np.ndarray, float], np.ndarray]
) -> np.ndarray:
    """What `chosen(column, diagonal of the factor)` makes of column after column, each after what those before lost."""
    open_ = weights[:, inputs.order].astype(np.float64)
    may_live, factor = open_ != 0, inputs.factor
    kept = np.zeros(open_.shape)
    for start in range(0, open_.shape[1], BLOCK):
        end = min(start + BLOCK, open_.shape[1])
        errors = np.zeros((len(open_), end - start))
        for column in range(start, end):
            own, size = open_[:, column], float(factor[column, column])
            kept[:, column] = np.where(may_live[:, column], chosen(own, size), 0.0)
            error = (own - kept[:, column]) / size
            open_[:, column + 1 : end] -= np.outer(error, factor[column, column + 1 : end])
            errors[:, column - start] = error
        open_[:, end:] -= errors @ factor[start:end, end:]
    result = np.empty(kept.shape)
    result[:, inputs.order] = kept
    return result


def input_moments(model: Transformer, rows: np.ndarray, dtype: torch.dtype) -> dict[str, np.ndarray]:
    """Sums of x x' over the inputs x of each linear layer for token ids `rows` (n, length), float64."""
    layers = {f"{name}.weight": layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    with torch.inference_mode(), summing_moments(layers) as (sums, masks):
        for start in range(0, len(rows), ROWS_PER_FORWARD):
            tokens = torch.from_numpy(rows[start : start + ROWS_PER_FORWARD])
            masks.append(torch.ones_like(tokens, dtype=torch.bool))
            token_nats(model, tokens, dtype)
    return {name: total.numpy() for name, total in sums.items()}


def sample_rows(sequences: Sequences, count: int) -> np.ndarray:
    """Token ids (n, length) of at most `count` whole sequences, spread evenly over a text."""
    whole = sequences.num_sequences - (0 if sequences.num_sequences == 1 else 1)
    ids = np.unique(np.linspace(0, whole - 1, min(count, whole)).astype(np.int64))
    tokens, _ = sequences.read(ids)
    return tokens


def _inputs(moments: np.ndarray, damping: float, kind: str) -> Inputs:
    diagonal = np.diag(moments)
    damped = moments + np.eye(len(moments)) * max(damping * diagonal.mean(), np.finfo(np.float64).tiny)
    order = np.argsort(-diagonal, kind="stable") if kind == "largest" else np.arange(len(moments))
    try:
        inverse = np.linalg.inv(damped[np.ix_(order, order)])
        return Inputs(order, np.linalg.cholesky((inverse + inverse.T) / 2).T)
    except np.linalg.LinAlgError:
        raise UsageError(f"eval.feedback_damping={damping:g}: too small for inputs that correlate; use 0.01") from None


def _nearest(scaled: np.ndarray, dead_zone: float) -> np.ndarray:
    return np.where(np.abs(scaled) < 0.5 + dead_zone, 0.0, np.rint(scaled))
