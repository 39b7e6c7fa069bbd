"""In which shares the parts of a text are read: each sequence of the first epoch once, without chance."""

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.data.batches import Batches, StepBatch
from harness.data.order import SequenceOrder
from harness.data.parts import Parts, stages
from harness.data.schedule import TrainConfig
from harness.data.steps import Reading
from harness.machine.ranks import Ranks

if TYPE_CHECKING:
    from harness.data.order import Tokens


class Mixture:
    """Which sequence stands at each position of the first epoch, where parts are read in given shares.

    The next sequence is of the part that is furthest behind its share (the method of largest remainders); of equal ones
    of the first. Inside a part they come in an order of its own. A part that has ended leaves its share to the others,
    and those of `train.last` wait for all others to end. The last sequence of the text, which may be short, comes last.
    """

    def __init__(self, parts: Parts, config: TrainConfig, num_tokens: int, context: int, identity: str, seed: int):
        """`num_tokens` are those of the text, `context` of a sequence; all orders depend on `identity` and `seed`."""
        bounds = parts.bounds(num_tokens, context)
        self._num_sequences, self._context, self._first = int(bounds[-1]), context, bounds[:-1]
        self.sizes = np.diff(bounds)
        """Sequences of each part (parts,), without the last one of the text."""
        self.sizes[self.sizes.nonzero()[0][-1]] -= 1
        self.natural = self.sizes / max(1, self.sizes.sum())
        """Shares of the parts in the text (parts,)."""
        self._is_held_back = np.isin(np.arange(len(self.sizes)), parts.indices(config.last))
        self._orders = [
            SequenceOrder(max(1, size), 1, f"{identity}:part {part}", seed, config.order)
            for part, size in enumerate(self.sizes.tolist())
        ]
        self._stages = stages(config.shares, self.natural)
        self._read = np.zeros_like(self.sizes)
        self._behind = np.zeros(len(self.sizes))
        """By how many sequences each part is behind its share."""
        self._ids = np.full(self._num_sequences, self._num_sequences - 1)
        self.planned = 0
        """Positions that are known."""

    def read_at(self, position: int, count: int, epoch: int = 0) -> np.ndarray:
        """Ids of the `count` sequences that the first epoch reads after `position` others, int64 of shape (count,)."""
        while self.planned < position + count:
            self._plan(position + count - self.planned)
        return self._ids[position : position + count]

    def shares(self) -> np.ndarray:
        """Shares of the parts at the next position (parts,), whether they have ended or not."""
        return next(shares for first, shares in reversed(self._stages) if first <= self.planned * self._context)

    def _plan(self, count: int) -> None:
        """Choose the sequences of the next `count` positions, or of fewer where the shares change before."""
        changes = [-(-first // self._context) - self.planned for first, _ in self._stages]
        count = min([count, *(change for change in changes if change > 0)])
        mixed = min(count, int((self.sizes - self._read).sum()))
        self._take(self._picks(mixed, self.shares()))
        self.planned += count - mixed

    def _picks(self, count: int, shares: np.ndarray) -> np.ndarray:
        """Choose the parts of the next `count` positions, int64 of shape (count,)."""
        left, picks = self.sizes - self._read, np.empty(count, dtype=np.int64)
        step = _of_open(shares, left, self._is_held_back)
        for index in range(count):
            self._behind += step
            part = int(np.argmax(np.where(left * step > 0, self._behind, -math.inf)))
            self._behind[part] -= 1
            left[part] -= 1
            picks[index] = part
            if not left[part]:
                step = _of_open(shares, left, self._is_held_back)
        return picks

    def _take(self, picks: np.ndarray) -> None:
        """Give the next positions to the parts `picks` (count,), each its next sequences."""
        own = self._ids[self.planned : self.planned + len(picks)]
        for part in np.unique(picks).tolist():
            places = np.flatnonzero(picks == part)
            own[places] = self._first[part] + self._orders[part].read_at(int(self._read[part]), len(places))
            self._read[part] += len(places)
        self.planned += len(picks)


def _of_open(shares: np.ndarray, left: np.ndarray, is_held_back: np.ndarray) -> np.ndarray:
    """Shares of the parts that may be read while `left` sequences (parts,) of them are left; zeros where none may."""
    is_open = (left > 0) & ~is_held_back
    open_shares = np.where(is_open if is_open.any() else left > 0, shares, 0.0)
    return open_shares / max(open_shares.sum(), np.finfo(float).tiny)


class PartedBatches(Batches):
    """Batches of a text whose parts are read in shares of their own, or some of them not learnt from."""

    def __init__(self, shard: "Tokens", config: TrainConfig, context: int, micro_batch: int, seed: int, ranks: Ranks):
        super().__init__(shard, config, context, micro_batch, seed, ranks)
        assert shard.parts is not None
        self.parts, self._untrained = shard.parts, shard.parts.indices(config.untrained)
        if not config.is_mixed:
            return
        text = (shard.parts, config, shard.num_tokens, context, shard.fingerprint, seed)
        if config.shares == "ado":
            from harness.data.ado import AdaptiveMixture

            self.order.first_epoch = self.adaptive = AdaptiveMixture(*text, ranks)
        else:
            self.order.first_epoch = Mixture(*text)

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold of an order that is no pure function of the step."""
        return {"order": self.adaptive.state()} if self.adaptive else {}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint that holds what `state` has returned."""
        if self.adaptive:
            self.adaptive.load(state["order"])

    def part_of(self, reading: Reading) -> StepBatch:
        """This rank's micro-batches of a step, with the rows that it does not learn from."""
        batch = super().part_of(reading)
        if not self._untrained:
            return batch
        tokens = np.clip(self.sequences.lengths(reading.ids) - reading.first, 0, reading.end - reading.first)
        own = [replace(part, untrained=self._is_untrained(part.sequences)) for part in batch.micro_batches]
        return replace(batch, micro_batches=own, num_untrained=int(tokens[self._is_untrained(reading.ids)].sum()))

    def _is_untrained(self, ids: np.ndarray) -> np.ndarray:
        return np.isin(self.parts.of_sequences(ids, self.order.context), self._untrained)
