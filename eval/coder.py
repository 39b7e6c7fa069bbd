"""Range coding over constriction: one stream per file, symbols with a table of probabilities each.

constriction turns probabilities into integer frequencies that sum to 2^24, none of them 0. It gets them as float64: in
float32 its rounding can leave the last symbol of a table without a frequency, and it panics on coding that symbol.
Alphabets larger than 256 symbols are coded as two digits, since the floor of one 24-bit table of 32,000 symbols costs
1 %.
"""

import math

import numpy as np
from constriction import stream as ac

from harness.errors import UsageError

PRECISION_BITS = 24
MAX_TABLE = 256
_FAMILY = ac.model.Categorical(perfect=False)
_SMALLEST = float(np.finfo(np.float32).smallest_subnormal)


class Encoder:
    """Appends symbols to one stream and adds up what they should cost."""

    def __init__(self):
        self._coder = ac.queue.RangeEncoder()
        self.quantised_bits = 0.0
        """-log2 of the integer frequencies of the symbols so far: what the stream should take."""
        self.ideal_bits = 0.0
        """-log2 of the float probabilities of the symbols so far; one that underflowed counts as 2^-149."""

    def encode(self, symbols: np.ndarray, probabilities: np.ndarray) -> None:
        """`symbols` (n,) with `probabilities` (n, alphabet); alphabets over 256 become two digits.

        Probabilities are float32, or any multiples of them that are integers, in float64: these code alike everywhere.
        """
        if not len(symbols):
            return
        chosen = probabilities[np.arange(len(symbols)), symbols].astype(np.float64)
        totals = probabilities.sum(axis=1, dtype=np.float64)
        self.ideal_bits -= float(np.log2(np.maximum(chosen, _SMALLEST) / totals).sum())
        if probabilities.shape[1] <= MAX_TABLE:
            self._encode_table(symbols, probabilities)
            return
        base = _digit_base(probabilities.shape[1])
        high, low = np.divmod(symbols, base)
        digits = _split(probabilities, base)
        self._encode_table(high, _high_table(digits))
        self._encode_table(low, _low_table(digits, high))

    def stream(self) -> bytes:
        """The finished stream, little-endian 32-bit words."""
        return self._coder.get_compressed().astype("<u4").tobytes()

    def _encode_table(self, symbols: np.ndarray, table: np.ndarray) -> None:
        table = np.ascontiguousarray(table, dtype=np.float64)
        self.quantised_bits += quantised_bits(symbols, table)
        self._coder.encode(np.ascontiguousarray(symbols, dtype=np.int32), _FAMILY, table)


class Decoder:
    """Reads symbols back from a stream with the same probabilities.

    Raises UsageError where the stream cannot have been coded with them; other streams give other symbols.
    """

    def __init__(self, stream: bytes):
        if len(stream) % 4:
            raise UsageError("data section: not a stream of 32-bit words; fetch the archive again")
        self._coder = ac.queue.RangeDecoder(np.frombuffer(stream, dtype="<u4").astype(np.uint32))

    def decode(self, probabilities: np.ndarray) -> np.ndarray:
        """Symbols (n,) int64 for `probabilities` (n, alphabet) of the type that they were coded with."""
        if not len(probabilities):
            return np.zeros(0, dtype=np.int64)
        if probabilities.shape[1] <= MAX_TABLE:
            return self._decode_table(probabilities)
        base = _digit_base(probabilities.shape[1])
        digits = _split(probabilities, base)
        high = self._decode_table(_high_table(digits))
        return high * base + self._decode_table(_low_table(digits, high))

    def _decode_table(self, table: np.ndarray) -> np.ndarray:
        try:
            symbols = self._coder.decode(_FAMILY, np.ascontiguousarray(table, dtype=np.float64))
        except (AssertionError, ValueError):  # constriction's for such a stream, and for probabilities that are NaN
            raise UsageError("data section: not coded with these weights; fetch the archive again") from None
        return symbols.astype(np.int64)


def quantised_bits(symbols: np.ndarray, table: np.ndarray) -> float:
    """-log2 of the frequencies that constriction gives `symbols` (n,) in `table` (n, alphabet), float64.

    Its fast rule: scaled cumulative probabilities rounded down, plus 1 for each symbol to the left.
    """
    alphabet = table.shape[1]
    cumulative = np.cumsum(table, axis=1)
    scale = (2**PRECISION_BITS - alphabet) / cumulative[:, -1]
    rows = np.arange(len(symbols))
    left_float = np.where(symbols > 0, cumulative[rows, symbols - 1], 0.0)
    left = (left_float * scale).astype(np.int64) + symbols
    right = (cumulative[rows, symbols] * scale).astype(np.int64) + symbols + 1
    right = np.where(symbols == alphabet - 1, 2**PRECISION_BITS, right)
    return float(-np.log2((right - left) / 2**PRECISION_BITS).sum())


def coding_tables(probabilities: np.ndarray) -> np.ndarray:
    """All integer frequencies that constriction would use for rows of `probabilities` (n, alphabet): int64 (n, m).

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
