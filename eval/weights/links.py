"""Rows and columns of different tensors that belong to the same unit of the model.

A hidden unit is a row of `up` and a column of `down`; a channel of the residual stream is a column of every matrix that
reads it and a row of every matrix that writes it; a symbol is a row of `embed` and of `head`. What is known of one of
them is a context of the others: units that pruning has emptied are empty on both sides.
"""

import numpy as np

# Units of the rows and of the columns, by the end of a tensor's name; those in lower case belong to one block.
_UNITS = {
    "embed": ("SYMBOL", "CHANNEL"),
    "qkv": ("qkv", "CHANNEL"),
    "out": ("CHANNEL", "value"),
    "up": ("hidden", "CHANNEL"),
    "down": ("CHANNEL", "hidden"),
    "head": ("SYMBOL", "CHANNEL"),
}
UNKNOWN, LIVE, DEAD = 0, 1, 2
_LARGEST_LEVEL = 60


def units(name: str, num_dimensions: int) -> tuple[str, str]:
    """Units of the rows and of the columns of a tensor; "" where nothing else has them."""
    block, _, kind = name.removesuffix(".weight").rpartition(".")
    if num_dimensions != 2 or kind not in _UNITS:
        return "", ""
    rows, columns = (unit if unit.isupper() else f"{block}.{unit}" for unit in _UNITS[kind])
    return rows, columns


class Links:
    """What the tensors so far have shown of each unit."""

    def __init__(self, logs: np.ndarray):
        """`logs` are those of eval/weights/tables.py."""
        self._logs = logs
        self._levels: dict[str, np.ndarray] = {}
        self._states: dict[str, np.ndarray] = {}

    def of(self, unit: str, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Levels and states, int64 (count,), of the lines of a tensor: 0 and UNKNOWN where nothing is known.

        A level is by how many sixteenths of an octave the magnitudes are above the average of their tensors.
        """
        levels, states = np.zeros(count, dtype=np.int64), np.full(count, UNKNOWN)
        known = min(count, len(self._levels.get(unit, ())))
        if known:
            levels[:known], states[:known] = self._levels[unit][:known], self._states[unit][:known]
        return levels, states

    def learn(self, unit: str, matrix: np.ndarray, axis: int) -> None:
        """Remember the lines along `axis` of a tensor (rows, columns)."""
        if not unit:
            return
        sizes = np.abs(matrix)
        means = sizes.sum(axis=1 - axis) * 4096 // matrix.shape[1 - axis]
        levels = self._log(means) - self._log(sizes.sum() * 4096 // matrix.size)
        levels = np.clip(levels, -_LARGEST_LEVEL, _LARGEST_LEVEL)
        before = self._levels.get(unit, ())
        if len(before) == len(levels):
            levels = (levels + before) // 2
        self._remember(unit, levels, np.where(means > 0, LIVE, DEAD))

    def _remember(self, unit: str, levels: np.ndarray, states: np.ndarray) -> None:
        self._levels[unit], self._states[unit] = levels, states
        if unit.endswith(".qkv"):
            # Rows of queries, keys and values; `out` reads the values.
            third = len(levels) // 3
            self._remember(unit.removesuffix("qkv") + "value", levels[2 * third :], states[2 * third :])

    def _log(self, x: np.ndarray) -> np.ndarray:
        octaves = np.maximum(np.frexp(x)[1] - 12, 0)
        return self._logs[x >> octaves] + 16 * octaves
