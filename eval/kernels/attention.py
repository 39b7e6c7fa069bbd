"""The two sums of attention over a cache, for 16 lanes and one head, and what both stepping models share with them.

A cache has shape (tiles, heads, length, head width, 16): what a tile of 16 lanes keeps of a head lies together, in the
order in which it is read. Activations have shape (count, features, lanes), `count` positions of each lane at a time.
"""

from eval.kernels.vectors import WIDTH, fetch, load, multiply_add, spread, store
from harness.machine.jit import unlocked

# A cache is larger than a processor's own, and is read once a step: what comes 16 kB later is asked for in time.
_AHEAD = 8192


@unlocked
def embed(table, tokens, x):
    """Write the rows of `table` (symbols, width) of `tokens` (lanes, count) to `x` (count, width, lanes)."""
    count, width, lanes = x.shape
    for t in range(count):
        for lane in range(lanes):
            symbol = tokens[lane, t]
            for f in range(width):
                x[t, f, lane] = table[symbol, f]


@unlocked
def add_scores(query, keys, place, end, scores):
    """Write the products of a query (head width, 16) with the keys before `end` to `scores` (length, 16).

    `place` is where the head's keys begin in the cache.
    """
    like, head_width = query.dtype.type(0), len(query)
    zero, size = spread(like), head_width * WIDTH
    whole = end // 4 * 4
    for position in range(0, whole, 4):
        at = place + position * size
        a, b, c, d = zero, zero, zero, zero
        for i in range(0, size, WIDTH):
            x = load(like, query, i)
            fetch(keys, at + _AHEAD + i)
            fetch(keys, at + _AHEAD + size + i)
            fetch(keys, at + _AHEAD + 2 * size + i)
            fetch(keys, at + _AHEAD + 3 * size + i)
            a = multiply_add(x, load(like, keys, at + i), a)
            b = multiply_add(x, load(like, keys, at + size + i), b)
            c = multiply_add(x, load(like, keys, at + 2 * size + i), c)
            d = multiply_add(x, load(like, keys, at + 3 * size + i), d)
        to = position * WIDTH
        store(a, scores, to)
        store(b, scores, to + WIDTH)
        store(c, scores, to + 2 * WIDTH)
        store(d, scores, to + 3 * WIDTH)
    for position in range(whole, end):
        a = zero
        for i in range(0, size, WIDTH):
            a = multiply_add(load(like, query, i), load(like, keys, place + position * size + i), a)
        store(a, scores, position * WIDTH)


@unlocked
def mix(weights, values, place, end, mixed):
    """Write the sums of the values before `end` times `weights` (length, 16) to `mixed` (head width, 16)."""
    like, size = mixed.dtype.type(0), len(mixed) * WIDTH
    zero, whole = spread(like), end // 4 * 4
    for i in range(0, size, WIDTH):
        store(zero, mixed, i)
    for position in range(0, whole, 4):
        of = position * WIDTH
        a, b = load(like, weights, of), load(like, weights, of + WIDTH)
        c, d = load(like, weights, of + 2 * WIDTH), load(like, weights, of + 3 * WIDTH)
        at = place + position * size
        for i in range(0, size, WIDTH):
            fetch(values, at + _AHEAD + i)
            fetch(values, at + _AHEAD + size + i)
            fetch(values, at + _AHEAD + 2 * size + i)
            fetch(values, at + _AHEAD + 3 * size + i)
            total = multiply_add(a, load(like, values, at + i), load(like, mixed, i))
            total = multiply_add(b, load(like, values, at + size + i), total)
            total = multiply_add(c, load(like, values, at + 2 * size + i), total)
            store(multiply_add(d, load(like, values, at + 3 * size + i), total), mixed, i)
    for position in range(whole, end):
        a, at = load(like, weights, position * WIDTH), place + position * size
        for i in range(0, size, WIDTH):
            store(multiply_add(a, load(like, values, at + i), load(like, mixed, i)), mixed, i)


@unlocked
def transposed(x, y):
    """Transpose `x` (count, symbols, lanes) to `y` (lanes, count, symbols)."""
    count, symbols, lanes = x.shape
    for t in range(count):
        for first in range(0, symbols, WIDTH):
            for lane in range(lanes):
                for symbol in range(first, min(first + WIDTH, symbols)):
                    y[lane, t, symbol] = x[t, symbol, lane]
