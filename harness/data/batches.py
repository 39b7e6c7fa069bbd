"""What each rank reads at each step."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

import numpy as np

from harness.data.order import SequenceOrder, Sequences
from harness.data.schedule import TrainConfig
from harness.machine.ranks import Ranks

if TYPE_CHECKING:
    from harness.data.order import Tokens

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """One forward pass of one rank, always of the same shape; rows without tokens are padding."""

    sequences: np.ndarray
    """Sequence ids (n,), int64; 0 on padding rows."""
    tokens: np.ndarray
    """Token ids (n, length), int64; 0 where there is none."""
    mask: np.ndarray
    """Whether there is a token (n, length), bool."""


@dataclass(frozen=True, slots=True)
class StepBatch:
    """One optimizer step as one rank sees it."""

    epoch: int
    num_tokens: int
    """Tokens of the step over all ranks: what the summed loss is divided by."""
    micro_batches: list[MicroBatch]


class Ahead(Generic[T]):
    """What `work(step)` returns, computed one step ahead in a thread."""

    def __init__(self, work: Callable[[int], T]):
        """`work` depends on the step alone."""
        self._work, self._worker = work, ThreadPoolExecutor(1, "ahead")
        self._step = -1
        self._next: Future[T] | None = None

    def __call__(self, step: int) -> T:
        """The result for `step`; the thread goes on with the step after it."""
        result = self._next.result() if self._next and self._step == step else self._work(step)
        self._step, self._next = step + 1, self._worker.submit(self._work, step + 1)
        return result

    def close(self) -> None:
        """Let go of the thread."""
        self._worker.shutdown(cancel_futures=True)


class Batches:
    """Shares each step's sequences among ranks: micro-batch j of the step goes to rank j mod world size."""

    def __init__(self, shard: "Tokens", config: TrainConfig, context: int, micro_batch: int, seed: int, ranks: Ranks):
        self.sequences = Sequences(shard, context)
        num_sequences, self.batch_sequences = self.sequences.num_sequences, config.batch_sequences
        self.order = SequenceOrder(num_sequences, self.batch_sequences, shard.fingerprint, seed, config.order)
        self.micro_batch, self.ranks = micro_batch, ranks
        self.identity = f"{shard.fingerprint}:{seed}"
        """What the order depends on."""

    def of_step(self, step: int) -> StepBatch:
        """This rank's micro-batches of `step`."""
        return self.of_sequences(self.order.batch(step), self.order.epoch_of(step))

    def of_sequences(self, ids: np.ndarray, epoch: int) -> StepBatch:
        """This rank's micro-batches of a step that reads the sequences `ids` (n,), at most a full step of them."""
        starts = range(0, self.batch_sequences, self.micro_batch)
        own = [ids[start : start + self.micro_batch] for start in starts[self.ranks.rank :: self.ranks.world_size]]
        num_tokens = int(self.sequences.lengths(ids).sum())
        return StepBatch(epoch, num_tokens, [self._read_padded(part) for part in own])

    def sample(self, count: int) -> list[MicroBatch]:
        """This rank's share of `count` sequences spread evenly over the corpus."""
        total = self.sequences.num_sequences
        ids = np.unique(np.linspace(0, total - 1, min(count, total)).astype(np.int64))
        own = ids[self.ranks.rank :: self.ranks.world_size]
        starts = range(0, len(own), self.micro_batch)
        return [self._read_padded(own[start : start + self.micro_batch]) for start in starts]

    def _read_padded(self, ids: np.ndarray) -> MicroBatch:
        tokens, mask = self.sequences.read(ids)
        missing = self.micro_batch - len(ids)
        return MicroBatch(
            sequences=np.pad(ids, (0, missing)),
            tokens=np.pad(tokens, ((0, missing), (0, 0))),
            mask=np.pad(mask, ((0, missing), (0, 0))),
        )
