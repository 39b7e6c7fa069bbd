"""Sparse quantised weights <-> bytes.

Every tensor has a grid: weight = integer * step, step a float32. Integers are coded row by row with one range coder:
a flag for zero, a sign, a magnitude. The probability of a non-zero combines how dense the columns and the row have
been (each row says its density class first); magnitudes have an adaptive table per tensor, of single values up to 15
and of eighths of an octave beyond, with plain bits below these. Counts are updated after
each row on both sides, so no table is sent, and positions cost what the flags cost. Probabilities come from counts by
additions, products and divisions of float64 alone: counts start at binary fractions, so their sums are exact in any
order, and the rest IEEE 754 fixes.
"""

import math
from collections.abc import Mapping

import numpy as np
from constriction import stream as ac

from harness.errors import UsageError

LARGEST_MAGNITUDE = 1 << 20
_NUM_MAGNITUDE_CLASSES = 144
# Plain bits that end the stream: one that was cut short, or is read with other shapes, ends otherwise.
_END_MARK = np.unpackbits(np.frombuffer(b"END", dtype=np.uint8)).astype(bool)
_TABLE = ac.model.Categorical(perfect=False)
_SIGN = ac.model.Uniform(2)
_PLAIN = ac.model.Uniform()

Shapes = Mapping[str, tuple[int, ...]]


def quantise(weights: Mapping[str, np.ndarray], steps: Mapping[str, np.float32]) -> dict[str, np.ndarray]:
    """Nearest integers (int64) of each tensor on its grid."""
    return {
        name: np.clip(np.rint(tensor / steps[name]), -LARGEST_MAGNITUDE, LARGEST_MAGNITUDE).astype(np.int64)
        for name, tensor in weights.items()
    }


def rebuild(integers: Mapping[str, np.ndarray], steps: Mapping[str, np.float32]) -> dict[str, np.ndarray]:
    """Float32 weights: one correctly rounded product each, the same on every machine."""
    return {name: q.astype(np.float32) * np.float32(steps[name]) for name, q in integers.items()}


def encode_weights(integers: Mapping[str, np.ndarray], steps: Mapping[str, np.float32]) -> bytes:
    """All tensors in the mapping's order: float32 steps, then one range-coder stream."""
    grid = np.array([steps[name] for name in integers], dtype="<f4").tobytes()
    coder = _Writer()
    for tensor in integers.values():
        _code_tensor(coder, tensor.reshape(-1, tensor.shape[-1]))
    coder.signs(_END_MARK)
    return grid + coder.stream()


def decode_weights(payload: bytes, shapes: Shapes) -> tuple[dict[str, np.ndarray], dict[str, np.float32]]:
    """Integers and steps of tensors with the given shapes, in order.

    Raises UsageError where `payload` is cut short, goes on, or holds other shapes. Of changed bits only the checksum
    of the file can tell.
    """
    malformed = UsageError("weights section: malformed; fetch the archive again")
    grid_bytes = 4 * len(shapes)
    if len(payload) < grid_bytes or len(payload) % 4:
        raise malformed
    steps = dict(zip(shapes, np.frombuffer(payload[:grid_bytes], dtype="<f4"), strict=True))
    if not all(np.isfinite(step) and step > 0 for step in steps.values()):
        raise malformed
    coder = _Reader(payload[grid_bytes:])
    integers = {}
    try:
        for name, shape in shapes.items():
            matrix = np.zeros((math.prod(shape[:-1]), shape[-1]), dtype=np.int64)
            _code_tensor(coder, matrix)
            integers[name] = matrix.reshape(shape)
        complete = np.array_equal(coder.signs(_END_MARK), _END_MARK) and coder.exhausted
    except AssertionError:  # constriction's, for a stream that no encoder makes
        complete = False
    if not complete:
        raise malformed
    return integers, steps


class _Writer:
    """Codes the values it is given."""

    def __init__(self):
        self._coder = ac.queue.RangeEncoder()

    def symbol(self, value: int, probabilities: np.ndarray) -> int:
        """One symbol of a table."""
        self._coder.encode(np.array([value], dtype=np.int32), _TABLE, probabilities[None])
        return value

    def flags(self, values: np.ndarray, probability: np.ndarray) -> np.ndarray:
        """Booleans (n,), each with its own probability of being true."""
        self._coder.encode(values.astype(np.int32), _TABLE, np.stack([1.0 - probability, probability], axis=1))
        return values

    def signs(self, negative: np.ndarray) -> np.ndarray:
        """Booleans (n,), one bit each."""
        self._coder.encode(negative.astype(np.int32), _SIGN)
        return negative

    def magnitudes(self, values: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
        """Positive integers (n,): a class each from one table, then plain bits."""
        classes, num_bits = _magnitude_classes(values)
        self._coder.encode(classes.astype(np.int32), ac.model.Categorical(probabilities, perfect=False))
        sizes = 1 << num_bits[num_bits > 0]
        if len(sizes):
            self._coder.encode((values[num_bits > 0] % sizes).astype(np.int32), _PLAIN, sizes.astype(np.int32))
        return values

    def stream(self) -> bytes:
        """The finished stream, little-endian 32-bit words."""
        return self._coder.get_compressed().astype("<u4").tobytes()


class _Reader:
    """Returns what the stream holds; of the values it is given only the number counts."""

    def __init__(self, stream: bytes):
        self._coder = ac.queue.RangeDecoder(np.frombuffer(stream, dtype="<u4").astype(np.uint32))

    def symbol(self, value: int, probabilities: np.ndarray) -> int:
        """Inverse of the writer's."""
        return int(self._coder.decode(_TABLE, probabilities[None])[0])

    def flags(self, values: np.ndarray, probability: np.ndarray) -> np.ndarray:
        """Inverse of the writer's."""
        return self._coder.decode(_TABLE, np.stack([1.0 - probability, probability], axis=1)).astype(bool)

    def signs(self, negative: np.ndarray) -> np.ndarray:
        """Inverse of the writer's."""
        return self._coder.decode(_SIGN, len(negative)).astype(bool)

    def magnitudes(self, values: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
        """Inverse of the writer's."""
        model = ac.model.Categorical(probabilities, perfect=False)
        classes = self._coder.decode(model, len(values)).astype(np.int64)
        num_bits = np.maximum((classes + 1) // 8 - 1, 0)
        magnitudes = (classes + 1 - 8 * num_bits) << num_bits
        sizes = 1 << num_bits[num_bits > 0]
        if len(sizes):
            magnitudes[num_bits > 0] += self._coder.decode(_PLAIN, sizes.astype(np.int32))
        return magnitudes

    @property
    def exhausted(self) -> bool:
        """Whether nothing follows what was read."""
        return self._coder.maybe_exhausted()


def _code_tensor(coder: _Writer | _Reader, matrix: np.ndarray) -> None:
    """Code `matrix` (rows, columns) row by row; a reader starts from zeros and fills it."""
    rows, columns = matrix.shape
    edges = _density_edges(columns)
    class_counts = np.full(len(edges) + 1, 0.5)
    # Expected density of each class before a row of it was seen, as one row's worth of counts.
    class_nonzeros = np.concatenate([[0.5], edges]) + 0.5
    class_elements = np.full(len(edges) + 1, columns + 1.0)
    column_nonzeros = np.full(columns, 0.375)
    magnitude_counts = np.ldexp(1.0, -np.minimum(np.arange(_NUM_MAGNITUDE_CLASSES), 8))
    for index in range(rows):
        values = matrix[index]
        row_class = int(np.searchsorted(edges, np.count_nonzero(values), side="right"))
        row_class = coder.symbol(row_class, class_counts / class_counts.sum())
        class_counts[row_class] += 1
        if row_class == 0:
            continue
        row_odds = class_nonzeros[row_class] / (class_elements[row_class] - class_nonzeros[row_class])
        column_odds = column_nonzeros / (index + 0.75 - column_nonzeros)
        density = (column_nonzeros.sum() + 0.5) / (columns * (index + 0.75) + 1.0)
        odds = row_odds * column_odds * ((1.0 - density) / density)
        flags = coder.flags(values != 0, np.clip(odds / (1.0 + odds), 1e-4, 1.0 - 1e-4))
        nonzero = values[flags]
        negative = coder.signs(nonzero < 0)
        magnitudes = coder.magnitudes(np.abs(nonzero), magnitude_counts / magnitude_counts.sum())
        matrix[index, flags] = np.where(negative, -magnitudes, magnitudes)
        class_nonzeros[row_class] += len(nonzero)
        class_elements[row_class] += columns
        column_nonzeros += flags
        magnitude_counts += np.bincount(_magnitude_classes(magnitudes)[0], minlength=_NUM_MAGNITUDE_CLASSES)


def _density_edges(columns: int) -> np.ndarray:
    """Numbers of non-zeros at which the density classes after "empty row" begin: about half-octaves up to `columns`."""
    powers = [1 << k for k in range(columns.bit_length())]
    return np.array(sorted({edge for p in powers for edge in (p, p + p // 2) if edge <= columns}))


def _magnitude_classes(magnitudes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Class of each positive integer, and how many plain bits tell it from the others of its class."""
    num_bits = np.maximum(np.frexp(magnitudes)[1] - 4, 0)
    return (magnitudes >> num_bits) + 8 * num_bits - 1, num_bits
