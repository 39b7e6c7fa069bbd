"""Tables of integers from exact arithmetic: Python integers and `decimal`, so every machine makes the same ones.

`decimal` rounds correctly, its `exp` and `ln` included (IBM General Decimal Arithmetic); no value comes from libm.
"""

from decimal import Decimal, localcontext

import numpy as np

_DIGITS = 50
_PI = Decimal("3.14159265358979323846264338327950288419716939937511")
# Binary fractions in which angles and powers are computed: 2^-128.
_FRACTION_BITS = 128


def exp_table(bits: int, steps: int) -> np.ndarray:
    """Tabulate round(2^bits * exp(-i / steps)) for i = 0, 1, ... (float64), as long as it is not 0."""
    with localcontext(prec=_DIGITS):
        ratio = _fraction((Decimal(-1) / steps).exp())
    values, value = [], 1 << _FRACTION_BITS
    while rounded := _rounded(value, bits):
        values.append(rounded)
        value = value * ratio >> _FRACTION_BITS
    return np.array(values, dtype=np.float64)


def circle_tables(length: int, half_width: int, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Tabulate cosines and sines (length, half_width) of position * 10000^(-i / half_width), rounded at 2^-bits."""
    with localcontext(prec=_DIGITS):
        exponent = -Decimal(10000).ln() / half_width
        angles = [_fraction((exponent * i).exp()) for i in range(half_width)]
    first_cos, first_sin = (np.array(part, dtype=object) for part in zip(*map(_cos_sin, angles), strict=True))
    cos, sin = np.full(half_width, 1 << _FRACTION_BITS, dtype=object), np.zeros(half_width, dtype=object)
    rows = []
    for _ in range(length):
        rows.append(np.stack([_rounded(cos, bits), _rounded(sin, bits)]).astype(np.float64))
        cos, sin = (
            (cos * first_cos - sin * first_sin) >> _FRACTION_BITS,
            (sin * first_cos + cos * first_sin) >> _FRACTION_BITS,
        )
    tables = np.stack(rows)
    return tables[:, 0], tables[:, 1]


def normal_table(bits: int, steps: int, reach: int) -> np.ndarray:
    """Tabulate round(2^bits * Phi(i / steps)) for |i| <= reach * steps (float64), Phi the normal distribution.

    Phi(x) = 1/2 + phi(x) * (x + x^3/3 + x^5/15 + ...) (Abramowitz & Stegun 26.2.11).
    """
    values = []
    with localcontext(prec=_DIGITS):
        for i in range(reach * steps + 1):
            x = Decimal(i) / steps
            term = total = x * (-x * x / 2).exp() / (2 * _PI).sqrt()
            odd = 3
            while term > Decimal("1e-15"):
                term = term * x * x / odd
                total += term
                odd += 2
            values.append(_rounded(_fraction(Decimal("0.5") + total), bits))
    upper = np.array(values, dtype=np.float64)
    return np.concatenate([float(1 << bits) - upper[:0:-1], upper])


def _fraction(value: Decimal) -> int:
    return int(value * (1 << _FRACTION_BITS))


def _rounded(value: int | np.ndarray, bits: int) -> int | np.ndarray:
    """Integer nearest to value * 2^(bits - 128)."""
    return (value + (1 << (_FRACTION_BITS - bits - 1))) >> (_FRACTION_BITS - bits)


def _cos_sin(angle: int) -> tuple[int, int]:
    """Cosine and sine of a small positive angle, by their power series; all in units of 2^-128."""
    sums, term, n = [0, 0], 1 << _FRACTION_BITS, 0
    while term:
        sums[n % 2] += -term if n % 4 > 1 else term
        n += 1
        term = (term * angle >> _FRACTION_BITS) // n
    return sums[0], sums[1]
