"""What a predictor steps: a model that reads tokens of many lanes and keeps keys and values of those before."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from eval.kernels.products import Room
from eval.kernels.vectors import WIDTH

if TYPE_CHECKING:
    from harness.model.transformer import ModelConfig


@dataclass(slots=True)
class Cache:
    """Keys and values seen so far by a fixed number of lanes, by layer, and the position of the next token."""

    layers: list[Any]
    position: int = 0
    before: np.ndarray | None = None
    """The tokens (lanes, n) before that position, the last one last, for models that smear their embeddings."""
    room: Room = field(default_factory=Room)


class SteppingModel(Protocol):
    """A model that predicts token by token: in floats or integers, compiled or on a device."""

    config: "ModelConfig"
    vocab_size: int
    begin: int
    """The input symbol before the first."""

    def new_cache(self, lanes: int, length: int) -> Cache:
        """An empty cache for `lanes` sequences of at most `length` tokens."""

    def step(self, tokens: np.ndarray, cache: Cache) -> np.ndarray:
        """Read `tokens` (lanes, count); returns probabilities (lanes, count, vocab_size), or multiples of them.

        `lanes` is what the cache was made for, a multiple of 16; `cache` advances by `count`.
        """


def smeared_symbols(tokens: np.ndarray, cache: Cache, begin: int, distance: int) -> np.ndarray:
    """Rows of tables of smeared embeddings for `tokens` (lanes, count): the symbols 1 to `distance` before each.

    Of shape (distance, lanes, count). Before the first symbol stands the row after that of `begin`, which is zero.
    """
    if cache.position == 0 or cache.before is None:
        cache.before = np.full((len(tokens), distance), begin + 1)
    known, count = np.concatenate([cache.before, tokens], axis=1), tokens.shape[1]
    cache.before = known[:, count:]
    symbols = [known[:, distance - d : distance - d + count] for d in range(1, distance + 1)]
    return np.array(symbols, dtype=np.int64).reshape(distance, *tokens.shape)


def tiles_of(lanes: int) -> int:
    """Count the vectors that hold so many lanes."""
    return -(-lanes // WIDTH)
