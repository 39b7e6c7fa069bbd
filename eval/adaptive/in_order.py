"""A text coded in its order: a frozen transformer predicts, and an adaptive mixture that learns along the way.

The text is cut into lanes, contiguous parts of equal length that are read side by side. All lanes predict a position
before any of them learns it, since a decoder has to; then all learn into one mixture, so that each knows what the
others have read. The transformer reads a lane in windows of its context, each from the begin symbol. A symbol is coded
as the bits of its number, as in an online code. An encoder reads windows whole, a decoder token by token, to the same
bits.
"""

import functools
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from eval.codec.range_coder import RangeDecoder, RangeEncoder, most_symbols
from eval.predict.predictor import Predictor
from harness.data.tokenizer import NUM_BYTE_VALUES
from harness.online.logistic_mixer import network_bytes
from harness.online.mixture import Mixture
from harness.online.ngram import ngram_bytes, num_inputs

EXPERTS = ["uniform", "ngram", "network"]
"""Who predicts beside the transformer."""
NGRAM_ORDER = 6
LANES = 4
"""Fewer are shorter, more are faster: 256,000 bytes of a demo take 59.0 kB with four, 59.3 with eight, 59.6 with 16."""
BITS = 8
OVERLAP = 4
"""Share of a window, one in so many, that repeats what the window before has coded: context of its first symbols."""
_PROBE_TOKENS = 64
_PER_LANE_BYTES = 32 * NUM_BYTE_VALUES + 4096


Progress = Callable[[int, int], None]
"""Called now and then with (bytes done, bytes in all)."""


def new_mixture(num_tokens: int, lanes: int) -> Mixture:
    """Make the mixture of one transformer and `EXPERTS` for a text of bytes."""
    return Mixture(1, EXPERTS, NGRAM_ORDER, NUM_BYTE_VALUES, num_tokens, lanes)


def mixture_bytes(num_tokens: int, lanes: int) -> int:
    """Compute the memory of the mixture."""
    contexts = num_inputs(NGRAM_ORDER)
    networks = network_bytes(contexts) + network_bytes(contexts + 2)
    return ngram_bytes(NGRAM_ORDER, num_tokens) + networks + lanes * _PER_LANE_BYTES


def most_bytes(stream_bytes: int) -> int:
    """Bound the bytes of text that a stream can hold: even a sure bit leaves the other one a frequency."""
    return most_symbols(stream_bytes, 2) // BITS


def mixture_sha256() -> str:
    """Digest the mixture's probabilities of a fixed text: it differs where this machine computes otherwise."""
    tokens = (np.arange(_PROBE_TOKENS) ** 2 // 5 % 7 * 31 % NUM_BYTE_VALUES).reshape(2, -1)
    tables = (1.0 + np.arange(tokens.size * NUM_BYTE_VALUES) % 251).astype(np.float32).reshape(1, *tokens.shape, -1)
    mixture = new_mixture(_PROBE_TOKENS, len(tokens))
    mixture.start(np.array([0, tokens.shape[1]]), 0, np.zeros(2, dtype=np.int64))
    probabilities = mixture.bit_probabilities(tables / tables.sum(axis=-1, keepdims=True), tokens, tokens >= 0)
    return hashlib.sha256(probabilities.astype("<f8").tobytes()).hexdigest()


def encode_in_order(text: bytes, predictor: Predictor, encoder: RangeEncoder, progress: Progress) -> None:
    """Append a text to the stream.

    Raises UsageError where the model overflows.
    """
    symbols, windows = np.frombuffer(text, dtype=np.uint8), _windows(len(text), predictor)
    mixture = new_mixture(len(text), predictor.lanes)
    for window in windows:
        tokens = np.where(window.known, symbols[window.places], 0).astype(np.int64)
        coded, tables = np.s_[:, window.first :], np.empty((*tokens.shape, NUM_BYTE_VALUES), dtype=np.float32)
        predictor.read(tokens, functools.partial(_keep, tables))
        tokens, mask = tokens[coded], window.known[coded]
        mixture.start(*window.start())
        ones = mixture.bit_probabilities(tables[None, *coded], tokens, mask)
        # As a decoder asks for them: position by position, bit by bit, lane by lane.
        order = np.broadcast_to(mask.T[:, None], (mask.shape[1], BITS, mask.shape[0]))
        chosen = ones.transpose(1, 2, 0)[order]
        encoder.encode(mixture.bits_of(tokens).transpose(1, 2, 0)[order], np.stack([1.0 - chosen, chosen], axis=1))
        progress(window.num_coded(), len(text))


def decode_in_order(raw_bytes: int, predictor: Predictor, decoder: RangeDecoder, progress: Progress) -> bytes:
    """Read the text of `raw_bytes` back, position after position of all lanes.

    Raises UsageError where the stream is not one of such a text, or does not end with it.
    """
    symbols, mixture = np.zeros(raw_bytes, dtype=np.uint8), new_mixture(raw_bytes, predictor.lanes)
    for window in _windows(raw_bytes, predictor):
        predictor.start()
        mixture.start(*window.start())
        previous = np.full(len(window.places), predictor.model.begin)
        for position, (places, active) in enumerate(zip(window.places.T, window.known.T, strict=True)):
            tables = predictor.step(previous)[None]
            if position >= window.first:
                bits = decoder.decode(mixture.start_symbols(tables, active))
                for _ in range(BITS - 1):
                    bits = decoder.decode(mixture.next_bits(bits))
                symbols[places[active]] = mixture.end_symbols(bits)
            previous = np.where(active, symbols[places], 0).astype(np.int64)
        progress(window.num_coded(), raw_bytes)
    decoder.check_end()
    return symbols.tobytes()


@dataclass(frozen=True, slots=True)
class _Window:
    """What the transformer reads at once of every lane."""

    places: np.ndarray
    """Of its tokens in the text, int64 (lanes, positions); inside of the text wherever they are."""
    known: np.ndarray
    """Which of them belong to a lane, bool (lanes, positions)."""
    first: int
    """Positions that earlier windows have coded: context of this one."""
    before: int
    """Tokens of each lane before those that this window codes."""

    def start(self) -> tuple[np.ndarray, int, np.ndarray]:
        """Where its coding begins, as `Mixture.start` takes it."""
        return self.places[:, self.first], self.first, np.zeros(len(self.places), dtype=np.int64)

    def num_coded(self) -> int:
        """Count the tokens that are coded after it, about."""
        return len(self.places) * self.before + int(self.known[:, self.first :].sum())


def _windows(num_tokens: int, predictor: Predictor) -> Iterator[_Window]:
    """The windows of a text, as long as the predictor reads."""
    lane_tokens = -(-num_tokens // predictor.lanes)
    # Rounded up, fewer lanes may do.
    starts = np.arange(0, num_tokens, lane_tokens or 1)[:, None]
    ends = np.minimum(starts + lane_tokens, num_tokens)
    at = 0
    while at < lane_tokens:
        first = min(at, predictor.length // OVERLAP)
        end = min(at - first + predictor.length, lane_tokens)
        places = starts + np.arange(at - first, end)
        yield _Window(np.minimum(places, num_tokens - 1), places < ends, first, at)
        at = end


def _keep(tables: np.ndarray, lanes: slice, positions: slice, rows: np.ndarray) -> None:
    """A `Handler` that keeps all probabilities."""
    tables[lanes, positions] = rows
