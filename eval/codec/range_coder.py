"""Range coding over constriction: one stream per file, symbols with a table of probabilities each.

constriction turns probabilities into integer frequencies that sum to 2^24, none of them 0. It gets them as float64: in
float32 its rounding can leave the last symbol of a table without a frequency, and it panics on coding that symbol.
Alphabets larger than 256 symbols are coded as two digits, since the floor of one 24-bit table of 32,000 symbols costs
1 %.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from constriction import stream as ac

from harness.errors import UsageError
from harness.machine.jit import unlocked
from harness.units import BITS_PER_BYTE

PRECISION_BITS = 24
WORD_BYTES = 4
MAX_TABLE = 256
_FAMILY = ac.model.Categorical(perfect=False)
_BYTES = ac.model.Uniform(256)
# What a stream keeps back while it is written: two words of its state.
_STATE_BITS = 64
_SMALLEST = float(np.finfo(np.float32).smallest_subnormal)


@dataclass(frozen=True, slots=True)
class Known:
    """Intervals of symbols that are known beforehand: 16 bytes a symbol in place of a table of probabilities."""

    probabilities: np.ndarray
    """Probabilities of the symbols, float64 (positions, lanes)."""
    intervals: np.ndarray
    """First frequency and end of each digit, int32 (positions, digits, lanes, 2)."""

    @classmethod
    def empty(cls, positions: int, lanes: int, alphabet: int) -> "Known":
        """Make room for so many symbols."""
        digits = 1 if alphabet <= MAX_TABLE else 2
        return cls(np.ones((positions, lanes)), np.zeros((positions, digits, lanes, 2), dtype=np.int32))

    def keep(self, lanes: slice, positions: slice, symbols: np.ndarray, probabilities: np.ndarray) -> None:
        """Keep the intervals of `symbols` (lanes, positions) under `probabilities` (lanes, positions, alphabet)."""
        shape, alphabet = symbols.shape, probabilities.shape[2]
        symbols, table = symbols.reshape(-1), probabilities.reshape(-1, alphabet)
        self.probabilities[positions, lanes] = _probabilities(symbols, table).reshape(shape).T
        digits = [_intervals(*digit) for digit in _digits(symbols, table)]
        self.intervals[positions, :, lanes] = np.stack(digits).reshape(-1, *shape, 2).transpose(2, 0, 1, 3)

    def bits(self, active: np.ndarray) -> np.ndarray:
        """Sum the code length of the `active` symbols (positions, lanes) of each lane: bits, float64 (lanes,).

        Raises UsageError where the model overflows.
        """
        if not np.isfinite(self.probabilities).all():
            raise UsageError("the model's probabilities are no numbers; its weights are too large")
        bits = np.zeros(active.shape[1])
        for interval, lanes in zip(self.intervals, active, strict=True):
            bits[lanes] -= np.log2(np.diff(interval[:, lanes])[..., 0] / 2**PRECISION_BITS).sum(axis=0)
        return bits


class RangeEncoder:
    """Appends symbols to one stream and adds up what they should cost."""

    def __init__(self) -> None:
        self._coder = ac.queue.RangeEncoder()
        self.quantised_bits = 0.0
        """-log2 of the integer frequencies of the symbols so far: what the stream should take."""
        self.ideal_bits = 0.0
        """-log2 of the float probabilities of the symbols so far; one that underflowed counts as 2^-149."""

    def encode(self, symbols: np.ndarray, probabilities: np.ndarray) -> None:
        """Append `symbols` (n,) with `probabilities` (n, alphabet); alphabets over 256 become two digits.

        Probabilities are float32, or any multiples of them that are integers, in float64: these code alike everywhere.
        """
        if not len(symbols):
            return
        self.ideal_bits -= float(np.log2(_probabilities(symbols, probabilities)).sum())
        for digit, table in _digits(symbols, probabilities):
            self.quantised_bits += quantised_bits(digit, table)
            self._coder.encode(np.ascontiguousarray(digit, dtype=np.int32), _FAMILY, table)

    def encode_known(self, known: Known, active: np.ndarray) -> None:
        """Append the `active` symbols (positions, lanes) of `known`, as `encode` would position by position."""
        for position, lanes in enumerate(active):
            self.ideal_bits -= float(np.log2(known.probabilities[position, lanes]).sum())
            for interval in known.intervals[position]:
                self.quantised_bits += _interval_bits(interval[lanes])
        digits = np.broadcast_to(active[:, None], known.intervals.shape[:3])
        left, right = known.intervals[digits].astype(np.float64).T
        # The symbol itself, those before it and those after it: probabilities of which constriction makes the interval
        # again, since they add up to the 2^24 - 3 that it scales them to. Alphabets have at least 3 symbols here.
        total = 2**PRECISION_BITS
        symbols = np.where(left == 0, 0, np.where(right == total, 2, 1))
        before = np.choose(symbols, [right - 1, left - 1, left - 2])
        middle = np.where(symbols == 1, right - left - 1, 0)
        table = np.stack([before, middle, total - 3 - before - middle], axis=1)
        self._coder.encode(symbols.astype(np.int32), _FAMILY, table)

    def encode_bytes(self, content: bytes) -> None:
        """Append bytes as they are, 8 bits each."""
        self.ideal_bits += BITS_PER_BYTE * len(content)
        self.quantised_bits += BITS_PER_BYTE * len(content)
        self._coder.encode(np.frombuffer(content, dtype=np.uint8).astype(np.int32), _BYTES)

    def stream(self) -> bytes:
        """Finish the stream: little-endian 32-bit words."""
        return _finished(self._coder)


class RangeDecoder:
    """Reads symbols back from a stream with the same probabilities.

    What is read is coded again, so that a reader knows to the bit where the stream must end. Raises UsageError where
    it has ended already, or cannot have been coded with these probabilities; other streams give other symbols.
    """

    def __init__(self, stream: bytes):
        if len(stream) % WORD_BYTES:
            raise UsageError("data section: not a stream of 32-bit words; fetch the archive again")
        self._stream = stream
        self._coder = ac.queue.RangeDecoder(np.frombuffer(stream, dtype="<u4").astype(np.uint32))
        self._again = ac.queue.RangeEncoder()

    def decode(self, probabilities: np.ndarray) -> np.ndarray:
        """Read symbols (n,) int64, given `probabilities` (n, alphabet) of the type that they were coded with."""
        if not len(probabilities):
            return np.zeros(0, dtype=np.int64)
        if probabilities.shape[1] <= MAX_TABLE:
            return self._decode_table(probabilities)
        base = _digit_base(probabilities.shape[1])
        digits = _split(probabilities, base)
        high = self._decode_table(_high_table(digits))
        return high * base + self._decode_table(_low_table(digits, high))

    def decode_bytes(self, count: int) -> bytes:
        """Read `count` bytes that `RangeEncoder.encode_bytes` has appended."""
        self._check_length(BITS_PER_BYTE * count)
        return self._decode(_BYTES, count=count).astype(np.uint8).tobytes()

    def check_end(self) -> None:
        """Raises UsageError unless the stream is the one that the symbols read so far make."""
        if _finished(self._again) != self._stream:
            raise UsageError("data section: does not end where its text ends; fetch the archive again")

    def _decode_table(self, table: np.ndarray) -> np.ndarray:
        return self._decode(_FAMILY, _as_table(table)).astype(np.int64)

    def _decode(self, model: ac.model.Model, *tables: np.ndarray, count: int = 0) -> np.ndarray:
        """A symbol for each row of a table, or `count` of a model that needs none."""
        try:
            symbols = self._coder.decode(model, *(tables or (count,)))
            self._again.encode(symbols, model, *tables)
        except (AssertionError, ValueError):  # constriction's for such a stream, and for probabilities that are NaN
            raise UsageError("data section: not coded with these weights; fetch the archive again") from None
        self._check_length(0)
        return symbols

    def _check_length(self, more_bits: int) -> None:
        """Raises UsageError where so many bits cannot follow those that were read."""
        # The end of a stream takes one word or two.
        if self._again.num_bits() + more_bits > BITS_PER_BYTE * len(self._stream) + _STATE_BITS:
            raise UsageError("data section: ends before its text; fetch the archive again")


def most_symbols(stream_bytes: int, alphabet: int) -> int:
    """Bound the symbols that a stream can hold: even a sure one leaves each other symbol a frequency."""
    base = _digit_base(alphabet)
    others = [alphabet - 1] if alphabet <= MAX_TABLE else [-(-alphabet // base) - 1, base - 1]
    bits_per_symbol = -sum(math.log2(1 - other / 2**PRECISION_BITS) for other in others)
    return int((BITS_PER_BYTE * stream_bytes + _STATE_BITS) / bits_per_symbol) if stream_bytes else 0


def _finished(coder: ac.queue.RangeEncoder) -> bytes:
    return coder.get_compressed().astype("<u4").tobytes()


def quantised_bits(symbols: np.ndarray, table: np.ndarray) -> float:
    """Compute -log2 of the frequencies that constriction gives `symbols` (n,) in `table` (n, alphabet), float64."""
    return _interval_bits(_intervals(symbols, table))


def _interval_bits(intervals: np.ndarray) -> float:
    return float(-np.log2((intervals[:, 1] - intervals[:, 0]) / 2**PRECISION_BITS).sum())


def _intervals(symbols: np.ndarray, table: np.ndarray) -> np.ndarray:
    """First frequency of each symbol and of the one behind it: int64 (n, 2)."""
    intervals = np.empty((len(symbols), 2), dtype=np.int64)
    _fill_intervals(symbols.astype(np.int64), table, intervals)
    return intervals


@unlocked
def _fill_intervals(symbols: np.ndarray, table: np.ndarray, intervals: np.ndarray) -> None:
    """Constriction's fast rule: scaled cumulative probabilities rounded down, plus 1 for each symbol to the left."""
    alphabet = table.shape[1]
    for row in range(len(symbols)):
        symbol, total = symbols[row], 0.0
        for k in range(symbol):
            total += table[row, k]
        left = total
        total += table[row, symbol]
        right = total
        for k in range(symbol + 1, alphabet):
            total += table[row, k]
        scale = ((1 << PRECISION_BITS) - alphabet) / total
        intervals[row, 0] = int(left * scale) + symbol if symbol > 0 else 0
        is_last = symbol == alphabet - 1
        intervals[row, 1] = 1 << PRECISION_BITS if is_last else int(right * scale) + symbol + 1


def _probabilities(symbols: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    chosen = probabilities[np.arange(len(symbols)), symbols].astype(np.float64)
    return np.maximum(chosen, _SMALLEST) / probabilities.sum(axis=1, dtype=np.float64)


def _digits(symbols: np.ndarray, probabilities: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The digits (n,) of symbols, each with its table (n, m), float64."""
    if probabilities.shape[1] <= MAX_TABLE:
        yield symbols, _as_table(probabilities)
        return
    base = _digit_base(probabilities.shape[1])
    high, low = np.divmod(symbols, base)
    digits = _split(probabilities, base)
    yield high, _as_table(_high_table(digits))
    yield low, _as_table(_low_table(digits, high))


def _as_table(probabilities: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(probabilities, dtype=np.float64)


def coding_tables(probabilities: np.ndarray) -> np.ndarray:
    """Compute the integer frequencies that constriction uses for rows of `probabilities` (n, alphabet): int64 (n, m).

    Those of alphabets over 256 are the frequencies of the first digit, then of the second after each first one.
    """
    rows, alphabet = probabilities.shape
    if alphabet <= MAX_TABLE:
        return _frequencies(probabilities)
    digits = _split(probabilities, _digit_base(alphabet))
    highs = range(digits.shape[1])
    lows = [_frequencies(_low_table(digits, np.full(rows, high))) for high in highs]
    return np.concatenate([_frequencies(_high_table(digits)), *lows], axis=1)


def _frequencies(table: np.ndarray) -> np.ndarray:
    alphabet = table.shape[1]
    cumulative = np.cumsum(table, axis=1, dtype=np.float64)
    scale = (2**PRECISION_BITS - alphabet) / cumulative[:, -1:]
    left = (np.pad(cumulative[:, :-1], ((0, 0), (1, 0))) * scale).astype(np.int64) + np.arange(alphabet)
    return np.diff(left, axis=1, append=2**PRECISION_BITS)


def _digit_base(alphabet: int) -> int:
    return math.isqrt(alphabet - 1) + 1


def _split(probabilities: np.ndarray, base: int) -> np.ndarray:
    """Shape (n, high digits, base); symbols past the alphabet get probability 0."""
    rows, alphabet = probabilities.shape
    missing = -alphabet % base
    return np.pad(probabilities, ((0, 0), (0, missing))).reshape(rows, -1, base)


def _high_table(digits: np.ndarray) -> np.ndarray:
    return digits.sum(axis=2)


def _low_table(digits: np.ndarray, high: np.ndarray) -> np.ndarray:
    table = digits[np.arange(len(digits)), high]
    # A group whose probabilities all underflow to 0 has no distribution left: any fixed one will do.
    return np.where(table.sum(axis=1, keepdims=True) > 0, table, np.float32(1))
