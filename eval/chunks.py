"""A text in chunks that share no context, coded side by side: a wave of them after another in one stream.

A stream holds the chunks of a wave position by position, since a decoder can only predict all next symbols at once. An
encoder knows the symbols: it has each block of chunks read as a whole, and sorts what the coder needs afterwards.
"""

import functools
from collections.abc import Callable
from threading import Lock

import numpy as np

from eval.coder import Decoder, Encoder, Known
from eval.predictor import Predictor
from harness.tokenizer import ByteTokenizer, SentencePieceTokenizer

Progress = Callable[[int, int], None]
"""Called now and then with (bytes done, bytes in all)."""


def encode_chunks(
    text: bytes,
    chunk_bytes: int,
    tokenizer: ByteTokenizer | SentencePieceTokenizer,
    predictor: Predictor,
    encoder: Encoder,
    progress: Progress,
) -> None:
    """Append a text to the stream."""
    wave_bytes = predictor.width * chunk_bytes
    for start in range(0, len(text), wave_bytes):
        wave = text[start : start + wave_bytes]
        chunks = [tokenizer.encode(wave[at : at + chunk_bytes]) for at in range(0, len(wave), chunk_bytes)]
        lengths = np.array([len(chunk) for chunk in chunks])
        tokens = np.zeros((len(chunks), lengths.max()), dtype=np.int64)
        for row, chunk in zip(tokens, chunks, strict=True):
            row[: len(chunk)] = chunk
        share_done = functools.partial(_report, progress, start, len(wave), len(text))
        reading = _Reading(tokens, predictor.model.vocab_size, share_done)
        predictor.read(tokens, reading)
        encoder.encode_known(reading.known, lengths > np.arange(tokens.shape[1])[:, None])


def _report(progress: Progress, start: int, size: int, total: int, share: float) -> None:
    progress(start + int(share * size), total)


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


def decode_chunks(
    raw_bytes: int,
    chunk_bytes: int,
    tokenizer: ByteTokenizer | SentencePieceTokenizer,
    predictor: Predictor,
    decoder: Decoder,
    progress: Progress,
) -> bytes:
    """The text of `raw_bytes`, position after position of the chunks of a wave."""
    parts: list[bytes] = []
    wave_bytes = predictor.width * chunk_bytes
    for start in range(0, raw_bytes, wave_bytes):
        size = min(wave_bytes, raw_bytes - start)
        missing = np.array([min(chunk_bytes, size - at) for at in range(0, size, chunk_bytes)])
        tokens = np.zeros((len(missing), predictor.length), dtype=np.int64)
        lengths = np.zeros(len(missing), dtype=np.int64)
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
        parts.extend(tokenizer.decode(row[:length]) for row, length in zip(tokens, lengths, strict=True))
    return b"".join(parts)
