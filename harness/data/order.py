"""Which sequence is read at which step: a pure function of (fingerprint, seed, step).

It does not depend on the number of ranks, needs no memory, and so can be recomputed anywhere, a resumed run included.
"""

import hashlib
import math
from fractions import Fraction
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from harness.data.parts import Parts

    class Tokens(Protocol):
        """The tokens of a text, as in a `Shard`."""

        @property
        def tokens(self) -> np.ndarray:
            """Token ids (num_tokens,), of any integer type."""

        @property
        def num_tokens(self) -> int:
            """Number of tokens."""

        @property
        def fingerprint(self) -> str:
            """`Shard.fingerprint` of them, on which the order of a text depends."""

        @property
        def inputs(self) -> np.ndarray | None:
            """What labels are given, a row each; None in a text."""

        @property
        def parts(self) -> "Parts | None":
            """Where the parts of the text begin, if it has any."""


NUM_ROUNDS = 8
# Odd multipliers of the splitmix64 finaliser, which spreads every input bit over the whole word.
MULTIPLIERS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


ORDERS = ("shuffled", "interleaved", "sequential", "streams")
FOLLOWING = ("interleaved", "streams")
"""Orders whose sequences come, but for the first ones, after others that were read at earlier steps."""
# Sequences of a stretch of an interleaved text.
STRETCH = 32


class SequenceOrder:
    """Every sequence once in every epoch, in steps of `sequences_per_step`.

    `shuffled`: a new permutation in every epoch; `interleaved`: the first sequences of all stretches of up to `STRETCH`
    sequences, permuted, then all the second ones, and so on, as an interleaver reads its columns; `sequential`: as in
    the text; `streams`: row i of the steps reads the i-th of as many equal parts of the text from its beginning to its
    end. The last step of an epoch may be short; nothing is dropped and nothing is read twice.
    """

    def __init__(
        self, num_sequences: int, sequences_per_step: int, fingerprint: str, seed: int, kind: str = "shuffled"
    ) -> None:
        if num_sequences < 1 or sequences_per_step < 1 or kind not in ORDERS:
            raise ValueError(f"{num_sequences=}, {sequences_per_step=}: both must be at least 1, and {kind=} known")
        self._kind = kind
        self._num_sequences = num_sequences
        self._sequences_per_step = sequences_per_step
        self._identity = f"{fingerprint}:{seed}"
        self.steps_per_epoch = -(-num_sequences // sequences_per_step)
        # Short texts have shorter ones: a step that ends a column and begins the next is given nothing.
        self._stretches = max(num_sequences // STRETCH, min(num_sequences, 8 * sequences_per_step))

    def steps(self, epochs: float) -> int:
        """Number of steps in `epochs`, rounded up."""
        # The decimal that was written counts: as binary floats 1.1 * 10 is above 11.
        return math.ceil(Fraction(str(epochs)) * self.steps_per_epoch)

    def epoch_of(self, step: int) -> int:
        """Epoch to which `step` belongs, both counted from 0."""
        return step // self.steps_per_epoch

    def batch(self, step: int) -> np.ndarray:
        """Ids of the sequences read at `step`, int64 of shape (sequences_per_step,) or shorter at an epoch's end."""
        if step < 0:
            raise ValueError(f"{step=}: must not be negative")
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        start = step_in_epoch * self._sequences_per_step
        stop = min(start + self._sequences_per_step, self._num_sequences)
        if self._kind == "streams":
            length, longer = divmod(self._num_sequences, self._sequences_per_step)
            row = np.arange(stop - start, dtype=np.int64)
            return row * length + np.minimum(row, longer) + step_in_epoch
        return self.read_at(start, stop - start, epoch)

    def read_at(self, position: int, count: int, epoch: int = 0) -> np.ndarray:
        """Ids of the `count` sequences that an epoch reads after `position` others, int64 of shape (count,).

        In `streams`, whose order depends on the steps, those of a step.
        """
        if self._kind == "streams":
            return self.batch(position // self._sequences_per_step)[:count]
        if self._kind == "sequential":
            return np.arange(position, position + count, dtype=np.int64)
        keys = [_round_key(f"{self._identity}:{epoch}:{number}") for number in range(NUM_ROUNDS)]
        positions = np.arange(position, position + count, dtype=np.uint64)
        if self._kind == "interleaved":
            return self._interleaved(positions, keys)
        return _permute(positions, self._num_sequences, keys).astype(np.int64)

    def follows(self, position: int, count: int) -> int:
        """How many sequences right before each of those of `read_at` the epoch has read at earlier steps."""
        if self._kind == "streams":
            return position // self._sequences_per_step
        if self._kind == "interleaved":
            column, last = (place // self._stretches for place in (position, position + count - 1))
            return column if column == last else 0
        return 0

    def _interleaved(self, positions: np.ndarray, keys: list[np.uint64]) -> np.ndarray:
        """Ids of the sequences at `positions` (n,), uint64: the longer stretches have a last column of their own."""
        length, longer = divmod(self._num_sequences, self._stretches)
        column, place = np.divmod(positions, np.uint64(self._stretches))
        stretch = np.empty_like(place)
        for chosen, size in ((column < length, self._stretches), (column >= length, longer)):
            stretch[chosen] = _permute(place[chosen], max(1, size), keys)
        stretch = stretch.astype(np.int64)
        return stretch * length + np.minimum(stretch, longer) + column.astype(np.int64)


class Sequences:
    """The tokens of a shard as sequences of `length` tokens; the last may be shorter."""

    def __init__(self, shard: "Tokens", length: int) -> None:
        if length < 1:
            raise ValueError(f"{length=}: must be at least 1")
        self._tokens = shard.tokens
        self._length = length
        self.num_sequences = -(-shard.num_tokens // length)

    def lengths(self, ids: np.ndarray) -> np.ndarray:
        """Number of tokens of each of the sequences `ids`, int64 of shape (n,)."""
        return np.minimum(self._length, len(self._tokens) - np.asarray(ids, dtype=np.int64) * self._length)

    def before(self, ids: np.ndarray, count: int) -> np.ndarray:
        """The `count` tokens before each of the sequences `ids`, none of which is the first, int64 of (n, count)."""
        places = np.asarray(ids, dtype=np.int64)[:, None] * self._length + np.arange(-count, 0, dtype=np.int64)
        return self._tokens[places].astype(np.int64)

    def read(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Tokens (int64) and mask of real tokens (bool) of sequences `ids`, both of shape (n, length).

        Places beyond the end of the text hold token 0 and are False in the mask.
        """
        ids = np.asarray(ids, dtype=np.int64)
        if ids.size and not 0 <= ids.min() <= ids.max() < self.num_sequences:
            raise IndexError(f"sequence ids must be from 0 to {self.num_sequences - 1}")
        positions = ids[:, None] * self._length + np.arange(self._length, dtype=np.int64)
        mask = positions < len(self._tokens)
        tokens = self._tokens[np.minimum(positions, len(self._tokens) - 1)].astype(np.int64)
        return np.where(mask, tokens, 0), mask


def _round_key(text: str) -> np.uint64:
    return np.uint64(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little"))


def _permute(values: np.ndarray, size: int, keys: list[np.uint64]) -> np.ndarray:
    """Images of `values` (uint64, all below `size`) under the permutation of range(size) that `keys` select.

    A Feistel network permutes the next power of four; walking on from an image that is too large until one fits
    (less than four rounds on average) leaves a permutation of range(size).
    """
    half_bits = max(1, (max(size - 1, 1).bit_length() + 1) // 2)
    images = _feistel(values, half_bits, keys)
    while (outside := images >= np.uint64(size)).any():
        images[outside] = _feistel(images[outside], half_bits, keys)
    return images


def _feistel(values: np.ndarray, half_bits: int, keys: list[np.uint64]) -> np.ndarray:
    # Integers that wrap at 64 bits are the same on every machine and in every numpy.
    shift, mask = np.uint64(half_bits), np.uint64((1 << half_bits) - 1)
    left, right = values >> shift, values & mask
    for key in keys:
        left, right = right, left ^ (_mix(right ^ key) & mask)
    return (left << shift) | right


def _mix(words: np.ndarray) -> np.ndarray:
    words = (words ^ (words >> np.uint64(30))) * MULTIPLIERS[0]
    words = (words ^ (words >> np.uint64(27))) * MULTIPLIERS[1]
    return words ^ (words >> np.uint64(31))
