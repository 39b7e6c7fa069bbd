"""Products of a matrix with columns of activations, a column for each lane, for the stepping predictor.

Where at most half of the weights are not zero, only these are multiplied: one fused multiply-add each, in the order of
the inputs. There the bits of a lane depend on nothing but its own numbers, whatever the other lanes and the processor.
Other matrices go to torch, whose sums depend on the shape of the product: it is the same on both sides.
"""

import numpy as np
import torch

from eval.kernels.vectors import WIDTH, load, multiply_add, spread, store
from harness.machine.jit import unlocked

DENSE_FROM = 0.5
"""Share of nonzero weights from which torch's product is faster (tests/benchmarks/coding_speed.py)."""
_BLOCK = 4 * WIDTH


class Matrix:
    """A matrix (outputs, inputs) of float32 or float64."""

    def __init__(self, matrix: np.ndarray):
        self.dtype, self.num_outputs = matrix.dtype, len(matrix)
        counts = np.count_nonzero(matrix, axis=1)
        self._dense = None
        if counts.sum() > DENSE_FROM * matrix.size:
            self._dense = torch.from_numpy(np.ascontiguousarray(matrix))
        else:
            rows, columns = np.nonzero(matrix)
            self._starts = np.concatenate([[0], np.cumsum(counts)])
            self._columns, self._weights = columns, matrix[rows, columns]

    def add(self, x: np.ndarray, y: np.ndarray) -> None:
        """Add the products with `x` (count, inputs, lanes) to `y` (count, outputs, lanes), of the matrix's type."""
        if self._dense is None:
            _add_sparse(self._starts, self._columns, self._weights, x, y)
            return
        for inputs, outputs in zip(torch.from_numpy(x), torch.from_numpy(y), strict=True):
            outputs.addmm_(self._dense, inputs)

    def times(self, x: np.ndarray, room: "Room") -> np.ndarray:
        """Multiply into an array of `room`: (count, outputs, lanes)."""
        y = room.array("products", (len(x), self.num_outputs, x.shape[2]), self.dtype)
        y[:] = 0
        self.add(x, y)
        return y


class Room:
    """Arrays that a block of lanes reuses at each step: allocating them would take as long as some of the work."""

    def __init__(self) -> None:
        self._arrays: dict[tuple, np.ndarray] = {}

    def array(self, name: str, shape: tuple[int, ...], dtype: np.dtype | type) -> np.ndarray:
        """An array of anything; it holds what is written until the next one of this name and shape is asked for."""
        key = name, shape, dtype
        if key not in self._arrays:
            # Where torch would place it: its products may depend on that.
            kind = torch.float32 if dtype == np.float32 else torch.float64
            self._arrays[key] = torch.empty(shape, dtype=kind).numpy()
        return self._arrays[key]


@unlocked
def _add_sparse(starts, columns, weights, x, y):
    count, inputs, lanes = x.shape
    zero = x.dtype.type(0)
    outputs, wide = y.shape[1], lanes // _BLOCK * _BLOCK
    for t in range(count):
        x_at, y_at = t * inputs * lanes, t * outputs * lanes
        # Four sums at a time, so that the processor need not wait for one.
        for lane in range(0, wide, _BLOCK):
            for row in range(outputs):
                to = y_at + row * lanes + lane
                a, b = load(zero, y, to), load(zero, y, to + WIDTH)
                c, d = load(zero, y, to + 2 * WIDTH), load(zero, y, to + 3 * WIDTH)
                for k in range(starts[row], starts[row + 1]):
                    weight, at = spread(weights[k]), x_at + columns[k] * lanes + lane
                    a = multiply_add(weight, load(zero, x, at), a)
                    b = multiply_add(weight, load(zero, x, at + WIDTH), b)
                    c = multiply_add(weight, load(zero, x, at + 2 * WIDTH), c)
                    d = multiply_add(weight, load(zero, x, at + 3 * WIDTH), d)
                store(a, y, to)
                store(b, y, to + WIDTH)
                store(c, y, to + 2 * WIDTH)
                store(d, y, to + 3 * WIDTH)
        for lane in range(wide, lanes, WIDTH):
            for row in range(outputs):
                to = y_at + row * lanes + lane
                a = load(zero, y, to)
                for k in range(starts[row], starts[row + 1]):
                    a = multiply_add(spread(weights[k]), load(zero, x, x_at + columns[k] * lanes + lane), a)
                store(a, y, to)
