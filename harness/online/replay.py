"""What is learnt between two new batches: replays of what was read, or nothing until a training from the beginning.

Rows are replayed in their own row of the batch, so that a rank needs only what it has read itself, and the lessons do
not depend on the number of ranks.
"""

import hashlib
import math
from collections.abc import Iterator

import numpy as np

from harness.data.batches import Batches, StepBatch
from harness.data.order import SequenceOrder
from harness.data.schedule import Moment, TrainConfig

_WORD = 64


class ReplaySchedule:
    """The steps that follow each step of the first epoch; a pure function of what the order depends on."""

    def __init__(self, config: TrainConfig, batches: Batches):
        self.config, self.batches = config, batches
        steps = batches.order.steps_per_epoch
        self.retrain_steps = [max(1, math.ceil(fraction * steps)) for fraction in config.retrain_at]
        self._walked, self._places = 0, np.zeros((config.replays, config.batch_sequences), dtype=np.int64)

    def replays(self, step: int) -> list[StepBatch]:
        """Choose the replays after `step`: each row reads again one of its whole sequences, drawn uniformly."""
        order = self.batches.order
        if not order.replays_after(step):
            return []
        # The last step may be short.
        rows = max(order.rows_of(step), order.rows_of(max(0, step - 1)))
        read = np.array([order.sequences_of(row, step) for row in range(rows)])
        if self.config.replay == "streams":
            # All its readers go on together: only by full steps.
            read[:] = read.min()
        read = read[read > 0]
        if not len(read):
            return []
        past = self._walk(int(read[0]) - 1) if self.config.replay == "streams" else self._draw(step, read)
        return [self._read(indices) for indices in past]

    def training(self, step: int) -> Iterator[tuple[StepBatch, Moment]] | None:
        """List the steps of a training on all that was read up to `step`; None where none is due after it."""
        if step + 1 not in self.retrain_steps:
            return None
        num_steps = max(1, round(self.config.retrain_epochs * (step + 1)))
        order = SequenceOrder(step + 1, 1, self.batches.identity, seed=step)
        full = self.batches.order.full_tokens
        moments = (Moment(i / num_steps, (i + 1) / num_steps, (i + 1) * full) for i in range(num_steps))
        past = (self.batches.order.reading(int(order.batch(i)[0])).ids for i in range(num_steps))
        return zip((self.batches.of_sequences(ids, epoch=1) for ids in past), moments, strict=True)

    def _read(self, indices: np.ndarray) -> StepBatch:
        ids = [self.batches.order.sequence_of(row, int(index)) for row, index in enumerate(indices)]
        return self.batches.of_sequences(np.array(ids), epoch=1)

    def _draw(self, step: int, read: np.ndarray) -> np.ndarray:
        """Which sequence of each row (replays, rows), of the numbers `read`; uniform and independent."""
        return (self._words(step)[:, : len(read)] % read.astype(np.uint64)).astype(np.int64)

    def _walk(self, newest: int) -> np.ndarray:
        """Earlier steps (replays, rows) where readers are: one at t starts again with probability 1 / (t + 1).

        Each place is then uniform over 0..t (Bornschein, Li and Hutter 2022, replay streams).
        """
        if newest + 1 < self._walked:
            self._walked, self._places = 0, np.zeros_like(self._places)
        for t in range(self._walked, newest + 1):
            starts_again = self._words(t) < np.uint64((2**_WORD - 1) // (t + 1))
            self._places = np.where(starts_again | (t == 0), 0, self._places + 1)
        self._walked = newest + 1
        return self._places

    def _words(self, step: int) -> np.ndarray:
        """Random words (replays, rows), uint64."""
        digest = hashlib.sha256(f"{self.batches.identity}:replay:{step}".encode()).digest()
        # The raw words of a bit generator are the same in every numpy; its distributions are not promised to be.
        generator = np.random.Philox(key=int.from_bytes(digest[:16], "little"))
        return generator.random_raw(self._places.size).reshape(self._places.shape)
