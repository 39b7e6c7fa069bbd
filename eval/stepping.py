"""What a predictor steps: a model that reads one token a lane and keeps keys and values of those before."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(slots=True)
class Cache:
    """Keys and values seen so far by a fixed number of lanes, by layer, and the position of the next token."""

    keys: list[Tensor]
    values: list[Tensor]
    position: int = 0


class SteppingModel(Protocol):
    """`eval.float_model.FloatModel` or `eval.portable.PortableModel`."""

    vocab_size: int
    begin: int
    """The input symbol before the first."""

    def new_cache(self, lanes: int, length: int) -> Cache:
        """An empty cache for `lanes` sequences of at most `length` tokens."""

    def step(self, tokens: Tensor, cache: Cache) -> Tensor:
        """Probabilities (lanes, vocab_size), or multiples of them, after `tokens` (lanes,); advances `cache`."""
