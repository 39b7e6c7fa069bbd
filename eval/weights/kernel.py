"""The adaptive model of the integers of weights: integer arithmetic alone.

A weight is a few binary decisions: is it zero; how many bits has its magnitude, in unary; which, the three highest ones
by a tree and the others plainly; which sign. Counters of several contexts each give a probability, a gated network of
weights mixes them in the logistic domain (Mahoney 2005, the PAQ family), and counters and network learn from every
decision. The same function encodes and decodes. Probabilities are in units of 2^-16, stretched ones of 2^-8
(eval/weights/tables.py). Indices are bounded by construction: compiled code does not check them.
"""

from typing import NamedTuple

import numpy as np

from eval.weights.arithmetic import bits_of, clip, code_bit, log, moved, sign
from eval.weights.tables import LIMIT, Tables
from harness.machine.jit import inlined, uncounted

ZERO, SIGN, LENGTH, TREE = 0, 1, 2, 23
"""Decisions: one, one, one for each bit of the magnitude beyond the first, seven for each length."""
MOST_BITS = 21
_TREE_BITS = 3
NUM_DECISIONS = TREE + (MOST_BITS - 1) * 7
_KINDS = 5
"""Contexts with a table of counters each."""
_PLACES = 1024
_LINE_DECISIONS = 8
"""Decisions of which every row and column has a counter; the last one stands for all further ones."""
_TENSOR = _KINDS * NUM_DECISIONS * _PLACES
_ROW = _TENSOR + NUM_DECISIONS
_COLUMNS = _ROW + _LINE_DECISIONS
_NUM_COUNTERS = _KINDS + 3
_INPUTS = _NUM_COUNTERS + 3
_CHOICES = 700 + NUM_DECISIONS
_UNKNOWN = 1 << 31
_FIRST_WEIGHT = (15 << 16) // 100
_RATE, _RATE_BITS = 6, 18
_SLOWEST = 255
_ONE = 1 << 12
"""A magnitude of 1 in averages of magnitudes."""
BYTES_PER_WEIGHT = 56
"""More than the decisions of one weight can take."""
_MEAN, _SEEN, _REFERENCE = 0, 1, 2


class Model(NamedTuple):
    """Everything that coding remembers."""

    tables: Tables
    counters: np.ndarray
    """Chance of a 1 (22 bits) and number of decisions seen (10 bits): uint32 (all,)."""
    weights: np.ndarray
    """In units of 2^-16: int32 (choices, inputs)."""
    inputs: np.ndarray
    """Stretched probabilities of the current decision, and other inputs: int32 (inputs,)."""
    cells: np.ndarray
    """Its counters: int64 (counters,)."""
    places: np.ndarray
    """Contexts of the current weight, for its magnitude and for its sign: int64 (2, kinds)."""
    flags: np.ndarray
    """Counters of dead rows and columns: uint32 (12,)."""
    tensor: np.ndarray
    """Average magnitude, number of weights seen, reference row of the current tensor: int64 (3,)."""
    columns: np.ndarray
    """Average magnitude and sum of signs of each of its columns: int64 (2, widest)."""
    coder: np.ndarray
    """LOW, RANGE, CODE and AT: int64 (4,)."""


def new_model(tables: Tables, widest: int) -> Model:
    """The model before the first tensor; `widest` is the largest number of columns."""
    weights = np.zeros((_CHOICES, _INPUTS), dtype=np.int32)
    weights[:, :_NUM_COUNTERS] = _FIRST_WEIGHT
    return Model(
        tables=tables,
        counters=np.full(_COLUMNS + _LINE_DECISIONS * widest, _UNKNOWN, dtype=np.uint32),
        weights=weights,
        inputs=np.zeros(_INPUTS, dtype=np.int32),
        cells=np.zeros(_NUM_COUNTERS, dtype=np.int64),
        places=np.zeros((2, _KINDS), dtype=np.int64),
        flags=np.full(12, _UNKNOWN, dtype=np.uint32),
        tensor=np.zeros(3, dtype=np.int64),
        columns=np.zeros((2, widest), dtype=np.int64),
        coder=np.array([0, 1 << 48, 0, 0], dtype=np.int64),
    )


def start_tensor(m: Model) -> None:
    """Forget what belongs to the lines of the last tensor; what was known of all its weights is a first guess."""
    means = m.counters[_TENSOR:_ROW]
    means[:] = means & 0xFFFFFC00 | np.minimum(means & 0x3FF, 30)
    lines = m.counters[_COLUMNS:].reshape(_LINE_DECISIONS, -1)
    lines[:] = means[:_LINE_DECISIONS, None] & 0xFFFFFC00 | 1
    m.tensor[:] = _ONE, 0, -1
    m.columns[0], m.columns[1] = _ONE, 0


@uncounted
def code_flags(m, flags, states, axis, stream, decoding):
    """Code whether each line of an axis is dead, int64 (n,); `states` are 0 to 2 by what is known of its link."""
    last = 0
    for i in range(len(flags)):
        k = axis * 6 + states[i] * 2 + last
        last = code_bit(m.coder, stream, np.int64(m.flags[k]) >> 16, flags[i], decoding)
        m.flags[k] = moved(m.tables.rates, m.flags[k], last, 40)
        flags[i] = last


@uncounted
def code_rows(m, matrix, start, stop, row_levels, column_levels, stream, decoding):
    """Code rows `start` to `stop` of `matrix`, int64 (rows, columns), or fill them from `stream`.

    Levels, int64, say how much larger than the average the weights of linked rows and columns are, in sixteenths of an
    octave.
    """
    columns = matrix.shape[1]
    t = m.tables
    m.inputs[_NUM_COUNTERS] = 256
    for r in range(start, stop):
        mean = log(t.logs, m.tensor[_MEAN])
        row_mean, signs = m.tensor[_MEAN], 0
        to_above, to_reference, to_zero = 0, 0, 0
        for k in range(_LINE_DECISIONS):
            m.counters[_ROW + k] = m.counters[_TENSOR + k] & np.uint32(0xFFFFFC00) | np.uint32(1)
        for c in range(columns):
            row = log(t.logs, row_mean) - mean + (row_levels[r] * t.shares[min(c, 4095)] >> 16)
            column = log(t.logs, m.columns[0, c]) - mean + (column_levels[c] * t.shares[min(r, 4095)] >> 16)
            scale = clip(mean + row + column, 0, 511)
            _find_places(m, matrix, r, c, row, column, scale, row_levels[r], column_levels[c], signs)
            value = _code_weight(m, matrix[r, c], r, c, scale >> 3, stream, decoding)
            matrix[r, c] = value
            signs += sign(value)
            m.columns[1, c] += sign(value)
            to_above += abs(value - matrix[max(r - 1, 0), c])
            to_reference += abs(value - matrix[max(m.tensor[_REFERENCE], 0), c])
            to_zero += abs(value)
            size = abs(value) * _ONE
            m.tensor[_MEAN] += (size - m.tensor[_MEAN]) * t.rates[min(m.tensor[_SEEN], 1023)] >> 16
            m.tensor[_SEEN] += 1
            row_mean += (size - row_mean) * t.rates[min(c + 2, _SLOWEST)] >> 16
            m.columns[0, c] += (size - m.columns[0, c]) * t.rates[min(r + 2, _SLOWEST)] >> 16
        # Rows of rare symbols are alike: the last row that was like another is what the next of them is compared with.
        if r and (m.tensor[_REFERENCE] < 0 or 2 * min(to_above, to_reference) < to_zero):
            m.tensor[_REFERENCE] = r


@inlined
def _find_places(m, matrix, r, c, row, column, scale, row_level, column_level, signs):
    """Contexts of the weight at (r, c), from the lines that it is on, linked lines and neighbours."""
    reference = m.tensor[_REFERENCE]
    left = matrix[r, c - 1] if c else 0
    above = matrix[r - 1, c] if r else 0
    second_left = matrix[r, c - 2] if c > 1 else 0
    second_above = matrix[r - 2, c] if r > 1 else 0
    corner = matrix[r - 1, c - 1] if r and c else 0
    other_corner = matrix[r - 1, c + 1] if r and c + 1 < matrix.shape[1] else 0
    same = matrix[reference, c] if reference >= 0 else 0
    near = 2 * (abs(left) + abs(above)) + abs(second_left) + abs(second_above) + abs(corner) + abs(other_corner)
    p = m.places[0]
    p[0] = clip((row >> 2) + 16, 0, 31) * 32 + clip((column >> 2) + 16, 0, 31)
    p[1] = clip((row_level >> 2) + 16, 0, 31) * 32 + clip((column_level >> 2) + 16, 0, 31)
    p[2] = min(abs(above), 127) * 8 + min(abs(above - second_above), 7)
    p[3] = min(abs(same), 127) * 8 + min(abs(same - above), 7)
    p[4] = min(log(m.tables.logs, 16 * near + 16) >> 4, 31) * 32 + min(scale >> 3, 31)
    p = m.places[1]
    p[0] = (clip(m.columns[1, c], -15, 15) + 15) * 31 + clip(signs, -15, 15) + 15
    p[1] = sign(left) * 9 + sign(above) * 3 + sign(corner) + 13
    p[2] = (sign(above) + 1) * 64 + min(abs(above), 63)
    p[3] = (sign(same) + 1) * 64 + min(abs(same), 63)
    p[4] = sign(same) * 3 + sign(above) + 4
    m.inputs[_NUM_COUNTERS + 1], m.inputs[_NUM_COUNTERS + 2] = 8 * row_level, 8 * column_level


@inlined
def _code_weight(m, known, r, c, scale, stream, decoding):
    """One integer; `known` is it where an encoder knows it. `scale` (0 to 63) is the logarithm of what is expected."""
    size, value, bits, left = abs(known), np.int64(0), 0, 0
    decision = ZERO
    while True:
        if decision == ZERO:
            bit, first, second = np.int64(size > 0), min(bits_of(r), 7) * 8 + min(bits_of(c), 7), 64 + scale
        elif decision == SIGN:
            bit, first, second = np.int64(known < 0), 128, 129
        elif decision < TREE:
            bit, first, second = np.int64(size >> (bits + 1) > 0), 130 + bits, 160 + min(bits, 7) * 64 + scale
        else:
            bit, first, second = size >> left & 1, 700 + decision, 699
        _point(m, decision, c)
        bit = _decide(m, first, second, bit, stream, decoding)
        if decision == SIGN:
            return -value if bit else value
        if decision == ZERO:
            if not bit:
                return np.int64(0)
            decision = LENGTH
            continue
        if decision < TREE:
            bits += bit
            if bit and bits < MOST_BITS - 1:
                decision += 1
                continue
            value, left = np.int64(1), bits
        else:
            value = value << 1 | bit
        while left > 0 and bits - left >= _TREE_BITS:
            left -= 1
            value = value << 1 | code_bit(m.coder, stream, np.int64(1 << 15), size >> left & 1, decoding)
        if left == 0:
            decision = SIGN
        else:
            decision = TREE + (bits - 1) * 7 + value - 1
            left -= 1


@inlined
def _point(m, decision, c):
    """Find the counters of a decision."""
    places = m.places[np.int64(decision == SIGN)]
    for k in range(_KINDS):
        m.cells[k] = (k * NUM_DECISIONS + decision) * _PLACES + places[k]
    line = min(decision, _LINE_DECISIONS - 1)
    m.cells[_KINDS] = _TENSOR + decision
    m.cells[_KINDS + 1] = _ROW + line
    m.cells[_KINDS + 2] = _COLUMNS + line * m.columns.shape[1] + c


@inlined
def _decide(m, first, second, bit, stream, decoding):
    """Mix, code and learn one decision, with two sets of the network's weights."""
    x, t = m.inputs, m.tables
    for k in range(_NUM_COUNTERS):
        x[k] = t.stretch[m.counters[m.cells[k]] >> 16]
    v, w = m.weights[first], m.weights[second]
    a, b = np.int64(0), np.int64(0)
    for i in range(_INPUTS):
        a += np.int64(v[i]) * np.int64(x[i])
        b += np.int64(w[i]) * np.int64(x[i])
    a, b = clip(a >> 16, -LIMIT, LIMIT), clip(b >> 16, -LIMIT, LIMIT)
    bit = code_bit(m.coder, stream, np.int64(t.squash[((a + b) >> 1) + LIMIT]), bit, decoding)
    a = ((bit << 16) - np.int64(t.squash[a + LIMIT])) * _RATE
    b = ((bit << 16) - np.int64(t.squash[b + LIMIT])) * _RATE
    for i in range(_INPUTS):
        v[i] += np.int32((x[i] * a + (1 << (_RATE_BITS - 1))) >> _RATE_BITS)
        w[i] += np.int32((x[i] * b + (1 << (_RATE_BITS - 1))) >> _RATE_BITS)
    for k in range(_NUM_COUNTERS):
        m.counters[m.cells[k]] = moved(t.rates, m.counters[m.cells[k]], bit, _SLOWEST)
    return bit
