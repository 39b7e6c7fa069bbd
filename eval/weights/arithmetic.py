"""A binary arithmetic coder whose carries propagate, and small functions of integers, for the model of weights."""

import numpy as np

from eval.weights.tables import AT, CODE, LOW, RANGE
from harness.machine.jit import uncounted


@uncounted
def code_bit(coder, stream, probability, bit, decoding):
    """Code `bit`, whose probability of being 1 is given; returns it. What is read beyond the end of `stream` is 0."""
    first = (coder[RANGE] >> 16) * probability
    if decoding:
        bit = np.int64(coder[CODE] < first)
    if bit:
        coder[RANGE] = first
    else:
        coder[LOW] += first
        coder[RANGE] -= first
        coder[CODE] -= first
        if coder[LOW] >= 1 << 48:
            coder[LOW] -= 1 << 48
            if not decoding:
                at = coder[AT] - 1
                while stream[at] == 255:
                    stream[at] = 0
                    at -= 1
                stream[at] += 1
    while coder[RANGE] < 1 << 40:
        at = coder[AT]
        if decoding:
            coder[CODE] = (coder[CODE] << 8) + (np.int64(stream[at + 6]) if at + 6 < len(stream) else 0)
        else:
            stream[at] = coder[LOW] >> 40
        coder[AT] = at + 1
        coder[LOW] = (coder[LOW] & ((1 << 40) - 1)) << 8
        coder[RANGE] <<= 8
    return bit


@uncounted
def moved(rates, counter, bit, slowest):
    """A counter after `bit`."""
    seen, probability = np.int64(counter) & 1023, np.int64(counter) >> 10
    probability += ((bit << 22) - probability) * rates[seen] >> 16
    return np.uint32(min(max(probability, 64), (1 << 22) - 64) << 10 | min(seen + 1, slowest))


@uncounted
def log(logs, x):
    """Sixteenths of an octave, rounded down; at most 511."""
    if x < 1 << 12:
        return logs[x]
    if x < 1 << 20:
        return logs[x >> 8] + 128
    return logs[min(x >> 20, 4095)] + 320


@uncounted
def bits_of(x):
    """Number of bits of `x`, 0 for 0."""
    bits = 0
    while x >> bits:
        bits += 1
    return bits


@uncounted
def sign(x):
    """-1, 0 or 1."""
    return np.int64(x > 0) - np.int64(x < 0)


@uncounted
def clip(x, smallest, largest):
    """The nearest number from `smallest` to `largest`."""
    return min(max(x, smallest), largest)
