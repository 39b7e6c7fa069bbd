"""What happens to symbols at either end of an online code: appended to a stream, read from one, or only hashed."""

import hashlib
from typing import Protocol

import numpy as np

from eval.codec.range_coder import MAX_TABLE, RangeDecoder, RangeEncoder
from harness.errors import UsageError

MAX_WAITING_BYTES = 1 << 25


class Coder(Protocol):
    """Codes symbols, position by position: a sender appends them, a receiver reads them."""

    knows_symbols: bool
    """Whether symbols are known before they are coded."""

    def code(self, symbols: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
        """Code `symbols` (n,) with `probabilities` (n, vocabulary); returns those that the text has there."""


class Sending:
    """Appends symbols to a stream.

    Symbols with tables of one width wait for others, since a call of the encoder takes longer than a few of them.
    Larger alphabets have two digits, and a call codes all first ones before the second ones: there each call is the
    decoder's.
    """

    knows_symbols = True

    def __init__(self) -> None:
        self.encoder = RangeEncoder()
        self._waiting: list[tuple[np.ndarray, np.ndarray]] = []
        self._waiting_bytes = 0

    def code(self, symbols: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
        """The symbols themselves."""
        if self._waiting and self._waiting[-1][1].shape[1] != probabilities.shape[1]:
            self._encode()
        self._waiting.append((symbols, probabilities))
        self._waiting_bytes += probabilities.nbytes
        if probabilities.shape[1] > MAX_TABLE or self._waiting_bytes > MAX_WAITING_BYTES:
            self._encode()
        return symbols

    def stream(self) -> bytes:
        """The finished stream."""
        self._encode()
        return self.encoder.stream()

    def _encode(self) -> None:
        if self._waiting:
            self.encoder.encode(*(np.concatenate(parts) for parts in zip(*self._waiting, strict=True)))
        self._waiting, self._waiting_bytes = [], 0


class Receiving:
    """Reads symbols from a stream.

    One that was coded with other probabilities must not stop this rank alone: it goes on with zeros, and says so.
    """

    knows_symbols = False

    def __init__(self, stream: bytes):
        self.decoder, self.has_failed = RangeDecoder(stream), False

    def code(self, symbols: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
        """Read the symbols from the stream."""
        try:
            return symbols if self.has_failed else self.decoder.decode(probabilities)
        except UsageError:
            self.has_failed = True
            return symbols

    def finish(self) -> None:
        """Check that the stream ends with the text: one that goes on, or ends before it, has failed too."""
        try:
            self.decoder.check_end()
        except UsageError:
            self.has_failed = True


class Digesting:
    """Digests the probabilities of symbols that nobody codes."""

    knows_symbols = True

    def __init__(self) -> None:
        self.digest = hashlib.blake2b(digest_size=16)

    def code(self, symbols: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
        """The symbols themselves."""
        self.digest.update(np.ascontiguousarray(probabilities, dtype="<f8").data)
        return symbols
