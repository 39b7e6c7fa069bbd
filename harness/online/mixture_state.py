"""Everything that a mixture remembers, as named arrays: what checkpoints keep of it."""

from typing import Any, NamedTuple

import numpy as np

from harness.online.logistic_mixer import Network
from harness.online.ngram import Ngram
from harness.online.switch import Switch


class State(NamedTuple):
    """The arrays of a mixture."""

    switch: Switch
    ngram: Ngram
    alone: Network
    """Mixes the contexts of the n-gram model."""
    joint: Network
    """Mixes these and the tables."""
    has_ngram: np.ndarray
    """bool (1,)."""
    has_network: np.ndarray
    """bool (1,)."""
    counts: np.ndarray
    """Of every symbol, for the expert of frequencies: float64 (vocabulary,), or (0,) without it."""
    cumulative: np.ndarray
    """Tables summed up: float64 (tables, lanes, 2^bits + 1)."""
    probabilities: np.ndarray
    """Of the current bit, by expert: float64 (lanes, experts)."""
    places: np.ndarray
    """Of the current symbol: in the text, in its sequence; the symbol before: int64 (lanes, 3)."""
    nodes: np.ndarray
    """Bits of the current symbol so far after a leading one: int64 (lanes,)."""
    nats: np.ndarray
    """Code length of each expert alone: float64 (experts,)."""


def leaves(part: Any, prefix: str = "") -> list[tuple[str, np.ndarray]]:
    """List the arrays of nested named tuples with dotted names."""
    named: list[tuple[str, np.ndarray]] = []
    for name, value in zip(part._fields, part, strict=True):
        named.extend(leaves(value, f"{prefix}{name}.") if isinstance(value, tuple) else [(f"{prefix}{name}", value)])
    return named
