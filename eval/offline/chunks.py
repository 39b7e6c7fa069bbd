"""A text in chunks that share no context, coded side by side: a wave of them after another in one stream.

A wave begins with a flag for each of its chunks: those that the model would lengthen are stored, a byte as 8 bits, and
follow the flags. A stream holds the other chunks position by position, since a decoder can only predict all next
symbols at once. An encoder knows the symbols: it has each block of chunks read as a whole, and sorts what the coder
needs afterwards.
"""

import functools
from collections.abc import Callable
from threading import Lock

import numpy as np

from eval.codec.range_coder import Known, RangeDecoder, RangeEncoder
from eval.predict.predictor import Predictor
from harness.data.tokenizer import Tokenizer
from harness.units import BITS_PER_BYTE

Progress = Callable[[int, int], None]
"""Called now and then with (bytes done, bytes in all)."""


def encode_chunks(
    text: bytes,
    chunk_bytes: int,
    tokenizer: Tokenizer,
    predictor: Predictor,
    encoder: RangeEncoder,
    progress: Progress,
) -> None:
    """Append a text to the stream.

    Raises UsageError where the model overflows.
    """
    wave_bytes, flags = predictor.width * chunk_bytes, _Flags()
    for start in range(0, len(text), wave_bytes):
        wave = text[start : start + wave_bytes]
        chunks = [wave[at : at + chunk_bytes] for at in range(0, len(wave), chunk_bytes)]
        tokens, lengths = _tokens_of(chunks, tokenizer)
        share_done = functools.partial(_report, progress, start, len(wave), len(text))
        reading = _Reading(tokens, predictor.model.vocab_size, share_done)
        predictor.read(tokens, reading)
        active = lengths > np.arange(tokens.shape[1])[:, None]
        is_stored = reading.known.bits(active) > BITS_PER_BYTE * np.array([len(chunk) for chunk in chunks])
        for flag in is_stored:
            encoder.encode(np.array([flag], dtype=np.int64), flags.table())
            flags.learn(flag)
        for index in np.flatnonzero(is_stored):
            encoder.encode_bytes(chunks[index])
        encoder.encode_known(reading.known, active & ~is_stored)


def decode_chunks(
    raw_bytes: int,
    chunk_bytes: int,
    tokenizer: Tokenizer,
    predictor: Predictor,
    decoder: RangeDecoder,
    progress: Progress,
) -> bytes:
    """The text of `raw_bytes`, position after position of the chunks of a wave.

    Raises UsageError where the stream is not one of such a text, or does not end with it.
    """
    parts: list[bytes] = []
    wave_bytes, flags = predictor.width * chunk_bytes, _Flags()
    for start in range(0, raw_bytes, wave_bytes):
        size = min(wave_bytes, raw_bytes - start)
        missing = np.array([min(chunk_bytes, size - at) for at in range(0, size, chunk_bytes)])
        tokens = np.zeros((len(missing), predictor.length), dtype=np.int64)
        lengths = np.zeros(len(missing), dtype=np.int64)
        stored: dict[int, bytes] = {}
        for index in np.flatnonzero([flags.decode(decoder) for _ in missing]).tolist():
            stored[index] = decoder.decode_bytes(int(missing[index]))
            # An encoder's model has read these too, in the same place beside the others.
            known = tokenizer.encode(stored[index])
            tokens[index, : len(known)], missing[index] = known, 0
        predictor.start()
        previous = np.full(len(missing), predictor.model.begin)
        for position in range(predictor.length):
            active = missing > 0
            if not active.any():
                break
            probabilities = predictor.step(previous)
            # As long as no chunk has ended, which is nearly always, nothing need be picked out.
            tokens[active, position] = decoder.decode(probabilities if active.all() else probabilities[active])
            previous = tokens[:, position]
            lengths += active
            missing = missing - tokenizer.token_bytes[previous] * active
            progress(start + size - int(missing.clip(0).sum()), raw_bytes)
        parts.extend(
            stored[index] if index in stored else tokenizer.decode(row[: lengths[index]])
            for index, row in enumerate(tokens)
        )
    decoder.check_end()
    return b"".join(parts)


def _tokens_of(chunks: list[bytes], tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
    """Tokens (chunks, positions) int64, zeros behind the end of a chunk, and how many each chunk has."""
    coded = [tokenizer.encode(chunk) for chunk in chunks]
    lengths = np.array([len(chunk) for chunk in coded])
    tokens = np.zeros((len(coded), lengths.max()), dtype=np.int64)
    for row, chunk in zip(tokens, coded, strict=True):
        row[: len(chunk)] = chunk
    return tokens, lengths


def _report(progress: Progress, start: int, size: int, total: int, share: float) -> None:
    progress(start + int(share * size), total)


class _Flags:
    """Whether chunks are stored, by how often they were (Krichevsky and Trofimov): a dozen bits where none ever is."""

    def __init__(self) -> None:
        self._counts = np.array([[0.5, 0.5]])

    def table(self) -> np.ndarray:
        """Chances of the next flag (1, 2): multiples of them, the same on every machine."""
        return self._counts

    def learn(self, flag: bool) -> None:
        """Take note of a flag."""
        self._counts[0, int(flag)] += 1

    def decode(self, decoder: RangeDecoder) -> bool:
        """The next flag of a stream."""
        flag = bool(decoder.decode(self._counts)[0])
        self.learn(flag)
        return flag


class _Reading:
    """Keeps what an encoder needs of the predictions of a wave."""

    def __init__(self, tokens: np.ndarray, vocab_size: int, report: Callable[[float], None]):
        """`tokens` are (lanes, positions); `report` is told the share of them that has been read."""
        self.known = Known.empty(tokens.shape[1], len(tokens), vocab_size)
        self._tokens, self._report = tokens, report
        self._num_read, self._lock = 0, Lock()

    def __call__(self, lanes: slice, positions: slice, probabilities: np.ndarray) -> None:
        """A `Handler`."""
        symbols = self._tokens[lanes, positions]
        self.known.keep(lanes, positions, symbols, probabilities)
        with self._lock:
            self._num_read += symbols.size
            self._report(self._num_read / self._tokens.size)
