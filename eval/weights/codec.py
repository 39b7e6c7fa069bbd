"""Sparse quantised weights <-> bytes.

Every tensor has a grid: weight = integer * step, step a float32. All integers are coded as one stream of binary
decisions by an adaptive model that no table has to be sent for (eval/weights/kernel.py): its contexts are the row and
the column, what is known of the same units in other tensors (eval/weights/links.py), and the neighbours. Rows and
columns of zeros alone take one flag each. It is integer arithmetic, so that streams are the same on every machine.
"""

from collections.abc import Mapping

import numpy as np

from eval.weights.links import Links, units
from eval.weights.tables import AT, CODE, LOW, RANGE, make_tables
from harness.errors import UsageError

LARGEST_MAGNITUDE = 1 << 20
# Plain bits that end the stream: one that was cut short, or is read with other shapes, ends otherwise.
_END_MARK = np.unpackbits(np.frombuffer(b"END", dtype=np.uint8))
_WEIGHTS_AT_A_TIME = 1 << 16

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
    """All tensors in the mapping's order: float32 steps, then one stream."""
    grid = np.array([steps[name] for name in integers], dtype="<f4").tobytes()
    coder = _Coder({name: tensor.shape for name, tensor in integers.items()}, None)
    for name, tensor in integers.items():
        coder.code(name, tensor)
    return grid + coder.finished_stream()


def decode_weights(payload: bytes, shapes: Shapes) -> tuple[dict[str, np.ndarray], dict[str, np.float32]]:
    """Integers and steps of tensors with the given shapes, in order.

    Raises UsageError where `payload` is cut short, goes on, or holds other shapes. Of changed bits only the checksum
    of the file can tell.
    """
    malformed = UsageError("weights section: malformed; fetch the archive again")
    grid_bytes = 4 * len(shapes)
    if len(payload) < grid_bytes:
        raise malformed
    steps = dict(zip(shapes, np.frombuffer(payload[:grid_bytes], dtype="<f4"), strict=True))
    if not all(np.isfinite(step) and step > 0 for step in steps.values()):
        raise malformed
    coder = _Coder(shapes, payload[grid_bytes:])
    integers = {}
    for name, shape in shapes.items():
        integers[name] = coder.code(name, np.zeros(shape, dtype=np.int64))
        if coder.is_beyond_end or np.abs(integers[name]).max(initial=0) > LARGEST_MAGNITUDE:
            raise malformed
    if not coder.is_finished():
        raise malformed
    return integers, steps


class _Coder:
    """Codes tensor after tensor into a stream, or from one."""

    def __init__(self, shapes: Shapes, stream: bytes | None):
        # Only those who code weights need the compiler, which takes a second to import.
        from eval.weights.arithmetic import code_bit
        from eval.weights.kernel import BYTES_PER_WEIGHT, code_flags, code_rows, new_model, start_tensor

        self._code_bit, self._code_flags, self._code_rows = code_bit, code_flags, code_rows
        self._start_tensor, self._bytes_per_weight = start_tensor, BYTES_PER_WEIGHT
        self._decoding = stream is not None
        self._stream = np.frombuffer(stream or b"", dtype=np.uint8).copy()
        tables = make_tables()
        self._links = Links(tables.logs)
        self._model = new_model(tables, max((shape[-1] for shape in shapes.values()), default=1))
        self._model.coder[CODE] = int.from_bytes(self._stream[:6].tobytes().ljust(6, b"\0"), "big")

    def code(self, name: str, tensor: np.ndarray) -> np.ndarray:
        """Write `tensor`, or read one of its shape; returns it."""
        matrix = tensor.reshape(-1, tensor.shape[-1]).astype(np.int64)
        row_unit, column_unit = units(name, tensor.ndim)
        column_levels, live_columns = self._live(matrix, column_unit, 1)
        row_levels, live_rows = self._live(matrix, row_unit, 0)
        live = np.ix_(live_rows, live_columns)
        matrix[live] = self._code_live(matrix[live], row_levels[live_rows], column_levels[live_columns])
        self._links.learn(column_unit, matrix, 1)
        self._links.learn(row_unit, matrix, 0)
        return matrix.reshape(tensor.shape)

    @property
    def is_beyond_end(self) -> bool:
        """Whether more was read than there is."""
        return int(self._model.coder[AT]) > len(self._stream)

    def finished_stream(self) -> bytes:
        """The stream with its end: the fewest bytes that name a number in the last interval."""
        self._code_end_mark()
        start, last = int(self._model.coder[AT]), self._last_bytes()
        stream = self._stream[:start].tobytes()
        if last >> 48:
            # A carry: the stream so far and the last bytes are one number.
            stream = (int.from_bytes(stream, "big") + 1).to_bytes(start, "big")
        return stream + (last & (1 << 48) - 1).to_bytes(6, "big").rstrip(b"\0")

    def is_finished(self) -> bool:
        """Whether the end mark follows, and the stream ends as a writer would have ended it."""
        if self._code_end_mark() != _END_MARK.tolist():
            return False
        start, last = int(self._model.coder[AT]), self._last_bytes()
        end = (last & (1 << 48) - 1).to_bytes(6, "big").rstrip(b"\0")
        is_last = int(self._model.coder[CODE]) == last - int(self._model.coder[LOW])
        return is_last and len(self._stream) == start + len(end)

    def _last_bytes(self) -> int:
        """The number in the last interval with the most zero bytes at its end, in 48 bits and a carry."""
        low, size = (int(self._model.coder[k]) for k in (LOW, RANGE))
        for zeros in range(48, -1, -8):
            number = -(-low >> zeros) << zeros
            if number < low + size:
                break
        return number

    def _live(self, matrix: np.ndarray, unit: str, axis: int) -> tuple[np.ndarray, np.ndarray]:
        """Levels of all lines along `axis`, and the numbers of those that hold anything but zeros."""
        levels, states = self._links.of(unit, matrix.shape[axis])
        if matrix.shape[1 - axis] == 1:
            # A flag would say what the only weight of the line says.
            return levels, np.arange(len(levels))
        flags = np.logical_not(matrix.any(axis=1 - axis)).astype(np.int64)
        self._make_room(len(flags))
        self._code_flags(self._model, flags, states, axis, self._stream, self._decoding)
        return levels, np.flatnonzero(flags == 0)

    def _code_live(self, matrix: np.ndarray, row_levels: np.ndarray, column_levels: np.ndarray) -> np.ndarray:
        rows, columns = matrix.shape
        self._start_tensor(self._model)
        rows_at_a_time = max(1, _WEIGHTS_AT_A_TIME // max(1, columns))
        for start in range(0, rows, rows_at_a_time):
            stop = min(rows, start + rows_at_a_time)
            self._make_room((stop - start) * columns)
            levels = row_levels, column_levels
            self._code_rows(self._model, matrix, start, stop, *levels, self._stream, self._decoding)
            if self._decoding and self.is_beyond_end:
                break
        return matrix

    def _code_end_mark(self) -> list[int]:
        self._make_room(len(_END_MARK))
        coder, half = self._model.coder, 1 << 15
        return [int(self._code_bit(coder, self._stream, half, bit, self._decoding)) for bit in _END_MARK]

    def _make_room(self, num_weights: int) -> None:
        """Of a writer's stream, for so many weights or flags."""
        if not self._decoding:
            needed = int(self._model.coder[AT]) + self._bytes_per_weight * (num_weights + 1)
            if len(self._stream) < needed:
                self._stream = np.concatenate([self._stream, np.zeros(needed, dtype=np.uint8)])
