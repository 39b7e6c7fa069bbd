"""Nats, bits and bytes: the only place that divides by ln 2 or by 8.

A loss is in nats inside a model; every code length outside it is in bits; every size on disk is in bytes.
"""

import math
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import numpy as np

NATS_PER_BIT = math.log(2.0)
BITS_PER_BYTE = 8

Amount = TypeVar("Amount", float, "np.ndarray")


def bits_from_nats(nats: Amount) -> Amount:
    """Convert `nats` (a float or an array of floats) to bits."""
    return nats / NATS_PER_BIT


def nats_from_bits(bits: Amount) -> Amount:
    """Convert bits to nats."""
    return bits * NATS_PER_BIT


def bytes_from_bits(bits: float) -> float:
    """Convert `bits` to bytes, not rounded."""
    return bits / BITS_PER_BYTE


def bits_from_bytes(num_bytes: float) -> float:
    """Convert bytes to bits."""
    return num_bytes * BITS_PER_BYTE


def bits_per_byte(bits: float, raw_bytes: float) -> float:
    """Divide a code length by the bytes of raw data; of zero bytes it is 0 by convention."""
    return bits / raw_bytes if raw_bytes else 0.0
