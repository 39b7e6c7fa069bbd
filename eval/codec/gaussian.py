"""Real numbers coded at float32 resolution: every float32 is a cell, as wide as half the way to either neighbour.

The probability of a cell is the mass that a Gaussian has in it. A float32 becomes an integer of 32 bits in the same
order as the numbers, coded as four digits of 8 bits: the table of a digit holds the masses of its 256 intervals. Where
these are narrow against sigma, the density hardly changes among them and the digit is coded flat.

Encoder and decoder need the same tables on any machine, so nothing comes from libm or BLAS: exponentials, tanh and the
normal distribution are made of float64 additions, products, divisions and comparisons alone, which IEEE 754 fixes, and
tables are rounded to integers, whose sums are exact.
"""

import math

import numpy as np

from eval.codec.range_coder import RangeDecoder, RangeEncoder
from harness.units import BITS_PER_BYTE, bits_from_nats

DIGITS, DIGIT_SIZE = 4, 256
# A digit is coded flat where all of its intervals together are narrower than this, h, in sigmas: on average that costs
# h^2 / 24 nats a number, at most a thousandth of a bit, and saves half the time.
FLAT_WIDTH = 2.0**-3
# Masses of intervals up to this width, in sigmas, come from the density in their middle.
_NARROW = 2.0**-5
_STEPS_PER_SIGMA, _REACH = 32, 37
_TABLE_SCALE = 2.0**40
_LOG2_E = 1.4426950408889634
# ln 2 in two parts, so that a multiple of the first is exact.
_LN_2_HIGH, _LN_2_LOW = 0.693147180369123816490, 1.90821492927058770002e-10
_INVERSE_FACTORIALS = [1.0 / math.factorial(n) for n in range(14)]
_SQRT_TWO_PI = 2.5066282746310005
# Positions of -max and +max among the ordered integers: infinities and NaNs lie beyond.
_FIRST, _LAST = 0x00800000, 0xFF7FFFFF


def ordered_integers(values: np.ndarray) -> np.ndarray:
    """Number all finite float32 (n,) in their order, as int64 in [0, 2^32); -0.0 stands just below 0.0."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32).astype(np.int64)
    return np.where(bits >> 31, 0xFFFFFFFF - bits, bits + (1 << 31))


def from_ordered(integers: np.ndarray) -> np.ndarray:
    """Inverse of `ordered_integers`."""
    bits = np.where(integers >> 31, integers - (1 << 31), 0xFFFFFFFF - integers)
    return bits.astype(np.uint32).view(np.float32)


def lower_edges(integers: np.ndarray) -> np.ndarray:
    """Find where the cells of ordered integers (any shape, up to 2^32) begin: exact float64, outermost infinite."""
    above = from_ordered(np.clip(integers, _FIRST, _LAST).reshape(-1)).astype(np.float64)
    below = from_ordered(np.clip(integers - 1, _FIRST, _LAST).reshape(-1)).astype(np.float64)
    middle = ((below + above) / 2).reshape(integers.shape)
    return np.where(integers <= _FIRST, -np.inf, np.where(integers > _LAST, np.inf, middle))


def cell_widths(values: np.ndarray) -> np.ndarray:
    """Measure the cell of each float32 (n,), float64; that of the two largest numbers is infinite."""
    integers = ordered_integers(values)
    return lower_edges(integers + 1) - lower_edges(integers)


def gaussian_bits(values: np.ndarray, means: np.ndarray, sigma: float) -> float:
    """Sum the ideal code length of float32 `values` (n,): -log2 of density times width of the cell.

    This is the Gaussian loss, (y - mean)^2 / (2 sigma^2 ln 2) + log2(2 pi sigma^2) / 2, minus log2 of the width. Of
    cells wider than sigma it is no length.
    """
    z = (values.astype(np.float64) - means) / sigma
    density_bits = bits_from_nats(z * z / 2) + math.log2(sigma * _SQRT_TWO_PI)
    return float((density_bits - np.log2(cell_widths(values))).sum())


def encode_values(values: np.ndarray, means: np.ndarray, sigma: float) -> bytes:
    """Code finite float32 `values` (n,) under Gaussians with `means` (n,) float64; any value can be coded."""
    encoder, integers = RangeEncoder(), ordered_integers(values)
    for digit in range(DIGITS):
        rest_bits = BITS_PER_BYTE * (DIGITS - 1 - digit)
        tables = digit_tables(integers >> (rest_bits + BITS_PER_BYTE), digit, means, sigma)
        encoder.encode((integers >> rest_bits) % DIGIT_SIZE, tables)
    return encoder.stream()


def decode_values(stream: bytes, means: np.ndarray, sigma: float) -> np.ndarray:
    """Decode what `encode_values` has coded: float32 (n,).

    Raises UsageError where the stream cannot have been coded with these means, or does not end with the values.
    """
    decoder, prefixes = RangeDecoder(stream), np.zeros(len(means), dtype=np.int64)
    for digit in range(DIGITS):
        prefixes = prefixes * DIGIT_SIZE + decoder.decode(digit_tables(prefixes, digit, means, sigma))
    decoder.check_end()
    return from_ordered(prefixes)


def digit_tables(prefixes: np.ndarray, digit: int, means: np.ndarray, sigma: float) -> np.ndarray:
    """Compute tables (n, 256) of digit number `digit`, given the digits before it in `prefixes` (n,)."""
    rest_bits = BITS_PER_BYTE * (DIGITS - 1 - digit)
    tables = np.ones((len(prefixes), DIGIT_SIZE))
    ends = lower_edges((prefixes[:, None] + np.arange(2)) << (rest_bits + BITS_PER_BYTE))
    wide = np.flatnonzero(ends[:, 1] - ends[:, 0] > FLAT_WIDTH * sigma)
    # In blocks that stay in the cache.
    for rows in np.array_split(wide, len(wide) // 64 + 1):
        places = prefixes[rows, None] * DIGIT_SIZE + np.arange(DIGIT_SIZE + 1)
        masses = interval_masses((lower_edges(places << rest_bits) - means[rows, None]) / sigma)
        largest = masses.max(axis=1, keepdims=True, initial=0.0)
        # Too far away for any mass to be left: flat.
        tables[rows] = np.where(largest > 0, np.rint(masses / np.where(largest > 0, largest, 1) * _TABLE_SCALE), 1.0)
    return tables


def interval_masses(edges: np.ndarray) -> np.ndarray:
    """Mass of the standard normal between neighbours of `edges` (n, m + 1), ascending: (n, m).

    To a few billionths of each within 13 sigmas, to 1e-5 in the tails, and 0 beyond 37 sigmas.
    """
    edges = np.clip(edges, -_REACH, _REACH)
    low, high = edges[:, :-1], edges[:, 1:]
    masses = _narrow_masses(low, high)
    wide = np.flatnonzero((high - low).reshape(-1) > _NARROW)
    a, b = low.reshape(-1)[wide], high.reshape(-1)[wide]
    # Above the mean as its mirror image: differences of small tails keep their digits.
    a, b = np.where(a > 0, -b, a), np.where(a > 0, -a, b)
    below = np.where(b > 0, 1.0 - _lower_tails(-np.abs(b)), _lower_tails(-np.abs(b)))
    masses.reshape(-1)[wide] = below - _lower_tails(a)
    return masses


def exponential(x: np.ndarray) -> np.ndarray:
    """exp of float64 `x` in [-745, 0], to the last few bits."""
    powers = np.rint(x * _LOG2_E)
    rest = (x - powers * _LN_2_HIGH) - powers * _LN_2_LOW
    series = np.full_like(rest, _INVERSE_FACTORIALS[-1])
    for coefficient in reversed(_INVERSE_FACTORIALS[:-1]):
        series = series * rest + coefficient
    return np.ldexp(series, powers.astype(np.int32))


def tanh(x: np.ndarray) -> np.ndarray:
    """Tanh of float64 `x`, to 1e-16."""
    small = exponential(-2 * np.minimum(np.abs(x), 20.0))
    return np.copysign((1 - small) / (1 + small), x)


def _narrow_masses(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Mass between `low` and `high` from the derivatives of the density in the middle."""
    width, middle = high - low, (low + high) / 2
    h, z = width * width, middle * middle
    density = exponential(z * -0.5) / _SQRT_TWO_PI
    return density * width * (1 + (z - 1) * h / 24 + ((z - 6) * z + 3) * (h * h) / 1920)


def _lower_tails(z: np.ndarray) -> np.ndarray:
    """Mass below each `z` (n,) in [-37, 0]."""
    nearest = np.rint(z * _STEPS_PER_SIGMA)
    places = nearest / _STEPS_PER_SIGMA
    return _TAILS[(nearest + _REACH * _STEPS_PER_SIGMA).astype(np.int64)] + _narrow_masses(places, z)


def _tail_table() -> np.ndarray:
    """Mass below -37, ..., 0 in steps of 1/32 sigma."""
    places = np.arange(-_REACH * _STEPS_PER_SIGMA, 1) / _STEPS_PER_SIGMA
    return np.concatenate([[0.0], np.cumsum(_narrow_masses(places[:-1], places[1:]))])


_TAILS = _tail_table()
