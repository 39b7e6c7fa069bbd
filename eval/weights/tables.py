"""Tables of integers for the coder of weights, from exact arithmetic: every machine makes the same ones.

Probabilities are in units of 2^-16. A stretched one, ln(p / (1 - p)), is in units of 2^-8 and at most LIMIT from 0.
"""

from decimal import Decimal, localcontext
from functools import cache
from typing import NamedTuple

import numpy as np

LIMIT = 2816
LOW, RANGE, CODE, AT = 0, 1, 2, 3
"""A coder, int64: lower end and size of the interval (48 bits), the code above that end, bytes done."""
_DIGITS = 30
_NUM_LOGS = 1 << 12
_NUM_RATES = 1 << 10
_HALF_TIME = 8


class Tables(NamedTuple):
    """What is looked up; nothing changes it."""

    squash: np.ndarray
    """Chance of each stretched one, from -LIMIT on: int32 (2 * LIMIT + 1,)."""
    stretch: np.ndarray
    """Stretched probability of each probability: int16 (65536,)."""
    logs: np.ndarray
    """floor(16 * log2(i)), 0 for i = 0: int64 (4096,)."""
    rates: np.ndarray
    """Share of 2^16 by which an average of n values moves to the next one, 1 / (n + 1.5): int64 (1024,)."""
    shares: np.ndarray
    """Share of 2^16 that what was known before keeps after n values: int64 (4096,)."""


@cache
def make_tables() -> Tables:
    """All of them, in a tenth of a second."""
    with localcontext(prec=_DIGITS):
        upper = [int((65536 / (1 + (Decimal(-i) / 256).exp())).to_integral_value()) for i in range(LIMIT + 1)]
    squash = np.array([65536 - value for value in upper[:0:-1]] + upper, dtype=np.int32)
    stretch = np.minimum(np.searchsorted(squash, np.arange(65536)) - LIMIT, LIMIT).astype(np.int16)
    # 2^k <= i^16 < 2^(k + 1)
    logs = [0] + [(i**16).bit_length() - 1 for i in range(1, _NUM_LOGS)]
    numbers = np.arange(_NUM_LOGS, dtype=np.int64)
    return Tables(
        squash=squash,
        stretch=stretch,
        logs=np.array(logs, dtype=np.int64),
        rates=(2 << 16) // (2 * numbers[:_NUM_RATES] + 3),
        shares=(_HALF_TIME << 16) // (numbers + _HALF_TIME),
    )
