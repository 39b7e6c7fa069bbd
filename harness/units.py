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
    """Code length in bits of `nats` (a float or an array of floats)."""
    return nats / NATS_PER_BIT


def nats_from_bits(bits: Amount) -> Amount:
    """Inverse of `bits_from_nats`."""
    return bits * NATS_PER_BIT


def bytes_from_bits(bits: float) -> float:
    """Ideal (not rounded) length in bytes of `bits`."""
    return bits / BITS_PER_BYTE


def bits_from_bytes(num_bytes: float) -> float:
    """Number of bits in `num_bytes`."""
    return num_bytes * BITS_PER_BYTE


def bits_per_byte(bits: float, raw_bytes: float) -> float:
    """Code length per byte of raw data; zero bytes cost nothing by convention."""
    return bits / raw_bytes if raw_bytes else 0.0
