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
from harness.data.schedule import Phase, TrainConfig

_WORD = 64


class ReplaySchedule:
    """The steps that follow each step of the first epoch; a pure function of what the order depends on."""

    def __init__(self, config: TrainConfig, batches: Batches):
        self.config, self.batches = config, batches
        steps = batches.order.steps_per_epoch
        self.retrain_steps = [max(1, math.ceil(fraction * steps)) for fraction in config.retrain_at]
        self._walked, self._places = 0, np.zeros((config.replays, config.batch_sequences), dtype=np.int64)

    def replays(self, step: int) -> list[StepBatch]:
        """Choose the replays after `step`: each row reads again what it read at a full step drawn uniformly."""
        newest = step
        if len(self.batches.order.batch(step)) < self.config.batch_sequences:
            newest -= 1
        if not self.config.replays or newest < 0:
            return []
        past = self._walk(newest) if self.config.replay == "streams" else self._draw(step, newest)
        return [self._read(row_steps) for row_steps in past]

    def training(self, step: int) -> Iterator[tuple[StepBatch, Phase]] | None:
        """List the steps of a training on all that was read up to `step`; None where none is due after it."""
        if step + 1 not in self.retrain_steps:
            return None
        num_steps = max(1, round(self.config.retrain_epochs * (step + 1)))
        order = SequenceOrder(step + 1, 1, self.batches.identity, seed=step)
        phase = Phase("main", 0, num_steps)
        past = (self.batches.order.batch(int(order.batch(i)[0])) for i in range(num_steps))
        return ((self.batches.of_sequences(ids, epoch=1), phase) for ids in past)

    def _read(self, row_steps: np.ndarray) -> StepBatch:
        ids = [self.batches.order.batch(int(past))[row] for row, past in enumerate(row_steps)]
        return self.batches.of_sequences(np.array(ids), epoch=1)

    def _draw(self, step: int, newest: int) -> np.ndarray:
        """Earlier steps (replays, rows), uniform and independent."""
        return (self._words(step) % np.uint64(newest + 1)).astype(np.int64)

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
