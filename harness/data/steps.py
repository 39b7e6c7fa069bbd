"""What each step reads: some whole sequences, or a part of one; a pure function of the step."""

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from harness.data.order import SequenceOrder
from harness.data.schedule import Moment, Phase, TrainConfig

if TYPE_CHECKING:
    from typing import Protocol

    class Positions(Protocol):
        """Which sequence stands at which position of the first epoch."""

        def read_at(self, position: int, count: int, epoch: int = 0) -> np.ndarray:
            """Ids of `count` sequences from a position on, int64 of shape (count,)."""


@dataclass(frozen=True, slots=True)
class Reading:
    """The same places of some sequences."""

    epoch: int
    ids: np.ndarray
    """Sequence ids (n,), int64."""
    first: int
    """First place that is learnt from; those before it are given."""
    end: int
    """Place after the last one; a sequence may end before it."""
    follows: int = 0
    """How many sequences right before each of them were read at earlier steps."""


class StepOrder:
    """Every token once in every epoch, in steps that `train.batch_sequences` and `train.batch_schedule` size.

    The schedule counts in the first epoch; all later ones take full batches.
    """

    def __init__(self, config: TrainConfig, num_tokens: int, context: int, fingerprint: str, seed: int):
        """`num_tokens` are those of the text, `context` of a sequence."""
        self.context, self.full_tokens = context, config.batch_sequences * context
        self._num_sequences, self._last_tokens = -(-num_tokens // context), (num_tokens - 1) % context + 1
        self._sequences = SequenceOrder(self._num_sequences, config.batch_sequences, fingerprint, seed, config.order)
        self.first_epoch: Positions = self._sequences
        """What stands where in the first epoch; a mixture of parts, whose last sequence comes last, takes its place."""
        if config.is_mixed:
            self.first_epoch = SequenceOrder(self._num_sequences, 1, fingerprint, seed, "sequential")
        self._usual = sorted({*config.step_sizes(context), self.full_tokens})
        self._starts = self._starts_of(config.batch_schedule or [[0, self.full_tokens]])
        """Tokens before each step of the first epoch and at its end, each sequence counted as a whole one."""
        self.steps_per_epoch = len(self._starts) - 1
        """Steps of the first epoch."""
        until = config.replays_until or self._starts[-1]
        self._replays = (self._starts[:-1] < until) * config.replays

    def replays_after(self, step: int) -> int | None:
        """How many replays follow `step`; None behind the first epoch."""
        return self._replays[step] if step < self.steps_per_epoch else None

    def updates(self, num_steps: int) -> dict[int, int]:
        """Count the updates of the weights in a run of `num_steps` steps, by tokens of a step.

        An odd one at the end of the epoch counts as one of the next larger size.
        """
        sizes = np.minimum(np.searchsorted(self._usual, np.diff(self._starts)), len(self._usual) - 1)
        counts = np.bincount(sizes, 1 + self._replays, len(self._usual))
        counts[-1] += num_steps - self.steps_per_epoch
        return {tokens: int(count) for tokens, count in zip(self._usual, counts, strict=True) if count}

    def steps(self, epochs: float, later: bool = False) -> int:
        """Number of steps in `epochs`, rounded up, from the beginning on or `later`, where all batches are full."""
        first = 0 if later else self.steps_per_epoch - self._sequences.steps_per_epoch
        return first + self._sequences.steps(epochs)

    def epoch_of(self, step: int) -> int:
        """Epoch to which `step` belongs, both counted from 0."""
        return self._sequences.epoch_of(self._later(step)) if step >= self.steps_per_epoch else 0

    def reading(self, step: int) -> Reading:
        """What `step` reads."""
        if step >= self.steps_per_epoch:
            return Reading(self.epoch_of(step), self._sequences.batch(self._later(step)), 0, self.context)
        (position, first), tokens = divmod(int(self._starts[step]), self.context), self._tokens_of(step)
        rows = max(1, tokens // self.context)
        follows = self._sequences.follows(position, rows) if self.first_epoch is self._sequences else 0
        ids = self.first_epoch.read_at(position, rows)
        return Reading(0, ids, first, min(first + tokens, self.context), follows)

    def moment(self, step: int, phase: Phase) -> Moment:
        """Where `step` stands in a phase, and how large it is."""
        start, before, after, end = map(self._before, (phase.first_step, step, step + 1, phase.end_step))
        done, batch = (after - start) / (end - start), (after - before) / self.full_tokens
        return Moment((before - start) / (end - start), done, after - start, batch, phase.name == "finetune")

    def tokens_left(self, step: int, num_steps: int) -> int:
        """Tokens that the steps from `step` on read in a run of `num_steps` steps."""
        return self._before(num_steps) - self._before(step)

    def rows_of(self, step: int) -> int:
        """Sequences, or one that is cut, of a step of the first epoch."""
        return max(1, self._tokens_of(step) // self.context)

    def sequences_of(self, row: int, step: int) -> int:
        """Whole sequences that a row has read when `step`, in the first epoch, is done."""
        return int(np.searchsorted(self._steps_of(row), step, side="right"))

    def sequence_of(self, row: int, index: int) -> int:
        """The sequence that a row reads after `index` others."""
        return int(self._ids_of(int(self._steps_of(row)[index]))[row])

    @functools.lru_cache(maxsize=1 << 14)  # noqa: B019 - an order lives as long as its run
    def _ids_of(self, step: int) -> np.ndarray:
        """Sequences of a step, kept since replays ask for the same steps again and again."""
        return self.reading(step).ids

    @functools.cache  # noqa: B019 - an order lives as long as its run
    def _steps_of(self, row: int) -> np.ndarray:
        """Steps of the first epoch at which a row comes to the end of a sequence."""
        ends = self._starts[1:]
        return np.flatnonzero((ends % self.context == 0) & (np.diff(self._starts) > row * self.context))

    def _tokens_of(self, step: int) -> int:
        return int(self._starts[step + 1] - self._starts[step])

    def _before(self, step: int) -> int:
        if step < self.steps_per_epoch:
            return int(self._starts[step])
        epoch, in_epoch = divmod(self._later(step), self._sequences.steps_per_epoch)
        return epoch * int(self._starts[-1]) + in_epoch * self.full_tokens

    def _later(self, step: int) -> int:
        """A step after the first epoch as one of an order of full batches."""
        return step - self.steps_per_epoch + self._sequences.steps_per_epoch

    def _starts_of(self, schedule: list[list[int]]) -> np.ndarray:
        start, end, parts = 0, self._num_sequences * self.context, []
        for (_, wanted), following in zip(schedule, [*schedule[1:], [end]], strict=True):
            tokens = min(wanted, self.full_tokens)
            # Sizes change between whole steps, and between whole sequences.
            unit = max(tokens, self.context)
            steps = -(-(min(following[0], end) - start) // unit) * (unit // tokens)
            parts.append(self._of_tokens(start + tokens * np.arange(max(0, steps))))
            start += max(0, steps) * tokens
        return np.append(np.concatenate(parts), end)

    def _of_tokens(self, starts: np.ndarray) -> np.ndarray:
        """Those of `starts`, in whole sequences, at which there is still a token: the last sequence may be short."""
        positions, places = np.divmod(starts, self.context)
        if not places.any():
            return starts
        first = positions[0]
        ids = self.first_epoch.read_at(int(first), int(positions[-1] - first) + 1)
        return starts[(places < self._last_tokens) | (ids[positions - first] != self._num_sequences - 1)]
