"""The order of a model's units that makes its weights shortest to code: the largest first.

Hidden units, and value channels inside of each head, may stand in any order without a change of what the model computes
but in the last bits of sums. In the order of their sizes neighbours are alike, so that what the coder has learnt of one
serves the next, and dead units stand together. No order is sent: a receiver never sees another one.
"""

from collections.abc import Mapping

import numpy as np


def largest_first(weights: Mapping[str, np.ndarray], heads: int) -> dict[str, np.ndarray]:
    """Put hidden units and value channels in the order of their non-zero weights, then of the sum of magnitudes.

    `weights` are those of a model with `heads` attention heads a block, by name.
    """
    ordered = dict(weights)
    for name in weights:
        if name.endswith(".up.weight"):
            block = name.removesuffix("up.weight")
            _order_hidden(ordered, block)
            _order_values(ordered, block, heads)
    return ordered


def _order_hidden(weights: dict[str, np.ndarray], block: str) -> None:
    up, down, bias = f"{block}up.weight", f"{block}down.weight", f"{block}up.bias"
    order = _order(weights[up], weights[down])
    weights[up], weights[down] = weights[up][order], weights[down][:, order]
    if bias in weights:
        weights[bias] = weights[bias][order]


def _order_values(weights: dict[str, np.ndarray], block: str, heads: int) -> None:
    qkv, out, bias = f"{block}qkv.weight", f"{block}out.weight", f"{block}qkv.bias"
    width = weights[out].shape[1]
    values = weights[qkv][2 * width :]
    order = np.concatenate(
        [part[_order(values[part], weights[out][:, part])] for part in np.split(np.arange(width), heads)]
    )
    rows = np.concatenate([np.arange(2 * width), 2 * width + order])
    weights[qkv], weights[out] = weights[qkv][rows], weights[out][:, order]
    if bias in weights:
        weights[bias] = weights[bias][rows]


def _order(incoming: np.ndarray, outgoing: np.ndarray) -> np.ndarray:
    """Order of units by `incoming` (units, inputs) and `outgoing` (outputs, units) weights."""
    nonzeros = np.count_nonzero(incoming, axis=1) + np.count_nonzero(outgoing, axis=0)
    sizes = np.abs(incoming).sum(axis=1, dtype=np.float64) + np.abs(outgoing).sum(axis=0, dtype=np.float64)
    return np.lexsort((-sizes, -nonzeros))
