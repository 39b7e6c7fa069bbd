"""The float model but its products, compiled: float32, a lane in each place of a vector.

Keys and values are kept in 16 bits, with a unit for each head and position: half the memory to read, and an error of
2^-16 of the largest entry, which costs less than a millionth of the code length.
"""

import numpy as np

from eval.kernels.attention import add_scores, mix, transposed
from eval.kernels.vectors import WIDTH, greater, load, multiply_add, nearest, power_of_two, root, smaller, spread, store
from harness.machine.jit import unlocked
from harness.model.functions import EPSILON

_LARGEST = np.float32(32767)
_EPSILON, _LAYER_NORM_EPSILON = np.float32(EPSILON), np.float32(1e-5)
# Smaller powers of e are no normal numbers.
_SMALLEST_EXPONENT = np.float32(-87)
_TINY = np.float32(1e-30)
_LOG2_E, _LN2_HIGH, _LN2_LOW = np.float32(1.44269504), np.float32(-0.693359375), np.float32(2.12194440e-4)
# Of exp(x) - 1 - x = x^2 * (...) where |x| <= ln(2) / 2 (Cephes).
_E0, _E1, _E2 = np.float32(1.9875691500e-4), np.float32(1.3981999507e-3), np.float32(8.3334519073e-3)
_E3, _E4, _E5 = np.float32(4.1665795894e-2), np.float32(1.6666665459e-1), np.float32(5.0000001201e-1)
_ZERO, _ONE = np.float32(0), np.float32(1)


@unlocked
def power_of_e(x):
    """Compute exp of a vector of numbers that are not positive; those below -87 count as -87."""
    x = greater(x, spread(_SMALLEST_EXPONENT))
    n = nearest(x * spread(_LOG2_E))
    x = multiply_add(n, spread(_LN2_LOW), multiply_add(n, spread(_LN2_HIGH), x))
    p = multiply_add(spread(_E0), x, spread(_E1))
    p = multiply_add(p, x, spread(_E2))
    p = multiply_add(p, x, spread(_E3))
    p = multiply_add(p, x, spread(_E4))
    p = multiply_add(p, x, spread(_E5))
    return multiply_add(p, x * x, x + spread(_ONE)) * power_of_two(n)


@unlocked
def rms_normed(x, y):
    """Write the RMS norm of `x` (count, width, lanes) to `y`."""
    count, width, lanes = x.shape
    for t in range(count):
        for lane in range(0, lanes, WIDTH):
            first = t * width * lanes + lane
            scale = _inverse_norm(x, first, lanes, width)
            for at in range(first, first + width * lanes, lanes):
                store(load(_ZERO, x, at) * scale, y, at)


@unlocked
def layer_normed(x, gain, bias, y):
    """Write the LayerNorm of `x` (count, width, lanes) with `gain` and `bias` (width,) to `y`."""
    count, width, lanes = x.shape
    inverse = spread(_ONE / np.float32(width))
    for t in range(count):
        for lane in range(0, lanes, WIDTH):
            first = t * width * lanes + lane
            mean, variance = spread(_ZERO), spread(_ZERO)
            for at in range(first, first + width * lanes, lanes):
                mean = mean + load(_ZERO, x, at)
            mean = mean * inverse
            for at in range(first, first + width * lanes, lanes):
                centred = load(_ZERO, x, at) - mean
                variance = multiply_add(centred, centred, variance)
            scale = spread(_ONE) / root(multiply_add(variance, inverse, spread(_LAYER_NORM_EPSILON)))
            for f in range(width):
                at = first + f * lanes
                normal = (load(_ZERO, x, at) - mean) * scale
                store(multiply_add(normal, spread(gain[f]), spread(bias[f])), y, at)


@unlocked
def squared_relu(x):
    """Replace x by max(x, 0)^2."""
    for at in range(0, x.size, WIDTH):
        positive = greater(load(_ZERO, x, at), spread(_ZERO))
        store(positive * positive, x, at)


@unlocked
def attend(qkv, cache, cos, sin, start, out):
    """Write the attention of `qkv` (count, 3 * width, lanes) to `out` (count, width, lanes).

    `cache` are keys and values, int16 (tiles, heads, length, head width, 16), and the units of both, float32 (tiles,
    heads, length, 16): read before position `start`, and written from there on. Queries and keys are normalised and
    turned by `cos` and `sin` (length, head width / 2), unless these are empty.
    """
    keys, values, key_units, value_units = cache
    tiles, heads, length, head_width, _ = keys.shape
    count, features, lanes = qkv.shape
    scores = np.empty((length, WIDTH), dtype=np.float32)
    row = np.empty((head_width, WIDTH), dtype=np.float32)
    scale = _ONE / np.sqrt(np.float32(head_width))
    for tile in range(tiles):
        for head in range(heads):
            line = (tile * heads + head) * length
            for t in range(count):
                end = start + t + 1
                at = t * features * lanes + head * head_width * lanes + tile * WIDTH
                step = heads * head_width * lanes
                _read(qkv, at + step, lanes, cos, sin, end - 1, row)
                _keep(row, keys, key_units, line + end - 1)
                _copy(qkv, at + 2 * step, lanes, row)
                _keep(row, values, value_units, line + end - 1)
                _read(qkv, at, lanes, cos, sin, end - 1, row)
                add_scores(row, keys, line * head_width * WIDTH, end, scores)
                total = _weigh(scores, key_units, value_units, line, end, scale)
                mix(scores, values, line * head_width * WIDTH, end, row)
                to = (t * heads + head) * head_width * lanes + tile * WIDTH
                for d in range(head_width):
                    store(load(_ZERO, row, d * WIDTH) / total, out, to + d * lanes)


@unlocked
def softmax(logits, out):
    """Write the softmax of `logits` (count, vocabulary, lanes), which are overwritten, to `out` (lanes, count, ...)."""
    count, symbols, lanes = logits.shape
    for t in range(count):
        for lane in range(0, lanes, WIDTH):
            first = t * symbols * lanes + lane
            largest, total = load(_ZERO, logits, first), spread(_ZERO)
            for at in range(first, first + symbols * lanes, lanes):
                largest = greater(load(_ZERO, logits, at), largest)
            for at in range(first, first + symbols * lanes, lanes):
                power = power_of_e(load(_ZERO, logits, at) - largest)
                total = total + power
                store(power, logits, at)
            inverse = spread(_ONE) / total
            for at in range(first, first + symbols * lanes, lanes):
                store(load(_ZERO, logits, at) * inverse, logits, at)
    transposed(logits, out)


@unlocked
def _inverse_norm(x, first, stride, number):
    """1 / root mean square of `number` entries."""
    total = spread(_ZERO)
    for at in range(first, first + number * stride, stride):
        total = multiply_add(load(_ZERO, x, at), load(_ZERO, x, at), total)
    inverse = spread(_ONE / np.float32(number))
    return spread(_ONE) / root(multiply_add(total, inverse, spread(_EPSILON)))


@unlocked
def _copy(qkv, place, lanes, row):
    for d in range(len(row)):
        store(load(_ZERO, qkv, place + d * lanes), row, d * WIDTH)


@unlocked
def _read(qkv, place, lanes, cos, sin, position, row):
    """A query or key (head width, 16), normalised and turned."""
    if not len(cos):
        _copy(qkv, place, lanes, row)
        return
    half = len(row) // 2
    scale = _inverse_norm(qkv, place, lanes, 2 * half)
    for d in range(half):
        first = load(_ZERO, qkv, place + d * lanes) * scale
        second = load(_ZERO, qkv, place + (half + d) * lanes) * scale
        c, s = spread(cos[position, d]), spread(sin[position, d])
        store(first * c - second * s, row, d * WIDTH)
        store(multiply_add(first, s, second * c), row, (half + d) * WIDTH)


@unlocked
def _keep(row, cache, units, line):
    """Round a row (head width, 16) to 16 bits in a unit of each lane."""
    size, largest = row.size, spread(_TINY)
    for i in range(0, size, WIDTH):
        x = load(_ZERO, row, i)
        largest = greater(greater(x, spread(_ZERO) - x), largest)
    store(largest / spread(_LARGEST), units, line * WIDTH)
    inverse = spread(_LARGEST) / largest
    for i in range(0, size, WIDTH):
        whole = nearest(load(_ZERO, row, i) * inverse)
        store(smaller(greater(whole, spread(-_LARGEST)), spread(_LARGEST)), cache, line * size + i)


@unlocked
def _weigh(scores, key_units, value_units, line, end, scale):
    """Make scores weights of what the cache holds of the values; returns what these weights are multiples of."""
    largest, total = spread(np.float32(-np.inf)), spread(_ZERO)
    for at in range(0, end * WIDTH, WIDTH):
        score = load(_ZERO, scores, at) * load(_ZERO, key_units, line * WIDTH + at) * spread(scale)
        largest = greater(score, largest)
        store(score, scores, at)
    for at in range(0, end * WIDTH, WIDTH):
        power = power_of_e(load(_ZERO, scores, at) - largest)
        total = total + power
        store(power * load(_ZERO, value_units, line * WIDTH + at), scores, at)
    return total
