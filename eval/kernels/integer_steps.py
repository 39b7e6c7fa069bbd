"""The portable model but its products, compiled: the operations of `eval.portable` in their order, 16 lanes a vector.

Sums are of integers and exact, so that they may be fused and in any order. All else is one IEEE 754 operation after
another, in the type of its array.
"""

import numpy as np

from eval.kernels.attention import add_scores, mix
from eval.kernels.vectors import WIDTH, cast, greater, load, multiply_add, nearest, root, smaller, spread, store
from harness.machine.jit import unlocked

_WIDE = np.float64(0)


@unlocked
def normed(x, norm, gain, bias, y):
    """Integers of the RMS norm of `x` (count, width, lanes), or of LayerNorm where `gain` is not empty, to `y`.

    `norm` are scale and epsilon of `eval.portable_products.NormedProduct`.
    """
    count, width, lanes = x.shape
    scale, epsilon = norm
    for t in range(count):
        for lane in range(0, lanes, WIDTH):
            first = t * width * lanes + lane
            mean, squares = spread(_WIDE), spread(_WIDE)
            if len(gain):
                for at in range(first, first + width * lanes, lanes):
                    mean = mean + load(_WIDE, x, at)
                mean = nearest(mean / spread(np.float64(width)))
            for at in range(first, first + width * lanes, lanes):
                centred = load(_WIDE, x, at) - mean
                squares = multiply_add(centred, centred, squares)
            inverse = spread(scale) / root(squares + spread(epsilon))
            for f in range(width):
                at = first + f * lanes
                normal = (load(_WIDE, x, at) - mean) * inverse
                if len(gain):
                    normal = normal * spread(gain[f]) + spread(bias[f])
                store(nearest(normal), y, at)


@unlocked
def turn(qkv, scales, norm, cos, sin, start):
    """Normalise and turn queries and keys of `qkv` (count, 3, heads, head width, lanes), and scale values, in place.

    `scales` are those of queries and keys, and of values; `norm` as in `normed`; `cos` and `sin` (length, half).
    """
    count, _, heads, head_width, lanes = qkv.shape
    like, size = qkv.dtype.type(0), head_width * lanes
    scale, epsilon = norm
    for row in range(count * 3 * heads):
        first, position = row * size, start + row // (3 * heads)
        if row // heads % 3 == 2:
            for at in range(first, first + size, WIDTH):
                store(nearest(load(like, qkv, at) * spread(scales[1])), qkv, at)
            continue
        half = size // 2
        for lane in range(first, first + lanes, WIDTH):
            squares = spread(_WIDE)
            for at in range(lane, lane + size, lanes):
                x = nearest(load(like, qkv, at) * spread(scales[0]))
                store(x, qkv, at)
                wide = cast(_WIDE, x)
                squares = multiply_add(wide, wide, squares)
            inverse = cast(like, spread(scale) / root(squares + spread(epsilon)))
            for d in range(head_width // 2):
                at = lane + d * lanes
                x, y = load(like, qkv, at), load(like, qkv, at + half)
                c, s = spread(cos[position, d]), spread(sin[position, d])
                store(nearest((x * c - y * s) * inverse), qkv, at)
                store(nearest((x * s + y * c) * inverse), qkv, at + half)


@unlocked
def biased(sums, scale, bias, limit, y):
    """Add `bias` (features,) to `sums` (count, features, lanes) in its unit, cut to `limit`, and write that to `y`."""
    count, features, lanes = sums.shape
    for row in range(count * features):
        for at in range(row * lanes, (row + 1) * lanes, WIDTH):
            x = nearest(load(_WIDE, sums, at) * spread(scale) + spread(bias[row % features]))
            store(smaller(greater(x, spread(-limit)), spread(limit)), y, at)


@unlocked
def attend(qkv, keys, values, start, factor, levels, table, multiple, out):
    """Write the integer attention of `qkv` (count, 3, heads, head width, lanes) to `out` (count, width, lanes).

    `keys` and `values` (tiles, heads, length, head width, 16) are read before position `start` and written from there
    on. `factor`, `levels` and `table` as in `eval.portable.Mixer`; `out` is in 1 / `multiple` of the values' unit.
    """
    tiles, heads, length, head_width, _ = keys.shape
    count, lanes = len(qkv), qkv.shape[4]
    like, size, part = table.dtype.type(0), head_width * WIDTH, heads * head_width * lanes
    scores, row = np.empty((length, WIDTH), dtype=table.dtype), np.empty((head_width, WIDTH), dtype=table.dtype)
    for tile in range(tiles):
        for head in range(heads):
            place = (tile * heads + head) * length * size
            for t in range(count):
                position = start + t
                at = (3 * t * heads + head) * head_width * lanes + tile * WIDTH
                for d in range(head_width):
                    query, to = at + d * lanes, place + position * size + d * WIDTH
                    store(load(like, qkv, query), row, d * WIDTH)
                    store(load(like, qkv, query + part), keys, to)
                    store(load(like, qkv, query + 2 * part), values, to)
                add_scores(row, keys, place, position + 1, scores)
                total = _weigh(scores, position + 1, factor, levels, table)
                mix(scores, values, place, position + 1, row)
                to = t * part + head * head_width * lanes + tile * WIDTH
                for d in range(head_width):
                    mixed = load(like, row, d * WIDTH) * spread(multiple)
                    store(nearest(mixed / total), out, to + d * lanes)


@unlocked
def squared(sums, scale, limit, y):
    """Write the squares of positive `sums` times `scale`, rounded and cut to `limit`, to `y` (float64)."""
    like = sums.dtype.type(0)
    for at in range(0, sums.size, WIDTH):
        x = greater(nearest(load(like, sums, at) * spread(scale)), spread(like))
        x = cast(_WIDE, smaller(x, spread(limit)))
        store(x * x, y, at)


@unlocked
def multiply_phi(x, table):
    """Multiply integers by their entries in a `table` of the normal distribution, in place."""
    reach = len(table) // 2
    flat = x.reshape(-1)
    for at in range(len(flat)):
        flat[at] *= table[int(min(max(flat[at], -reach), reach)) + reach]


@unlocked
def add_output(sums, scale, bias, limit, x):
    """Add `sums` (count, width, lanes) times `scale` plus `bias`, if any, rounded, to `x`, at most `limit`."""
    count, width, lanes = x.shape
    for row in range(count * width):
        for at in range(row * lanes, (row + 1) * lanes, WIDTH):
            change = load(_WIDE, sums, at) * spread(scale)
            if len(bias):
                change = change + spread(bias[row % width])
            total = load(_WIDE, x, at) + nearest(change)
            store(smaller(greater(total, spread(-limit)), spread(limit)), x, at)


@unlocked
def symbol_weights(sums, factor, table, out):
    """Look up the weights of symbols in `table`, by the distances of `sums` (count, symbols, lanes) to the largest."""
    count, symbols, lanes = sums.shape
    distances = np.empty((symbols, lanes))
    last = spread(np.float64(len(table) - 1))
    for t in range(count):
        for lane in range(0, lanes, WIDTH):
            first = t * symbols * lanes + lane
            largest = load(_WIDE, sums, first)
            for at in range(first, first + symbols * lanes, lanes):
                largest = greater(load(_WIDE, sums, at), largest)
            for symbol in range(symbols):
                distance = (largest - load(_WIDE, sums, first + symbol * lanes)) * spread(factor)
                store(smaller(distance, last), distances, symbol * lanes + lane)
        for group in range(0, symbols, WIDTH):
            for lane in range(lanes):
                for symbol in range(group, min(group + WIDTH, symbols)):
                    out[lane, t, symbol] = table[int(distances[symbol, lane])]


@unlocked
def _weigh(scores, end, factor, levels, table):
    """Make scores weights; returns their sum."""
    like = table.dtype.type(0)
    largest, total, rounded = load(like, scores, 0), spread(like), spread(like)
    last = spread(table.dtype.type(len(table) - 1))
    for at in range(0, end * WIDTH, WIDTH):
        largest = greater(load(like, scores, at), largest)
    for at in range(0, end * WIDTH, WIDTH):
        store(smaller((largest - load(like, scores, at)) * spread(factor), last), scores, at)
    for position in range(end):
        for lane in range(WIDTH):
            scores[position, lane] = table[int(scores[position, lane])]
    for at in range(0, end * WIDTH, WIDTH):
        total = total + load(like, scores, at)
    scale = spread(levels) / total
    for at in range(0, end * WIDTH, WIDTH):
        weight = nearest(load(like, scores, at) * scale)
        rounded = rounded + weight
        store(weight, scores, at)
    return rounded
