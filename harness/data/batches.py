"""What each rank reads at each step."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np

from harness.data.order import Sequences
from harness.data.schedule import TrainConfig
from harness.data.steps import Reading, StepOrder
from harness.machine.ranks import Ranks

if TYPE_CHECKING:
    from harness.data.ado import AdaptiveMixture
    from harness.data.order import Tokens
    from harness.policy.weights import Policy

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """One forward pass of one rank; rows without tokens are padding."""

    sequences: np.ndarray
    """Sequence ids (n,), int64; 0 on padding rows."""
    tokens: np.ndarray
    """Token ids (n, length), int64: what the sequences are given, then from their begin on; 0 where there is none."""
    mask: np.ndarray
    """Whether there is a token to learn from (n, length), bool."""
    first: int = 0
    """Where the mask begins: tokens before it are given, and were learnt from at other steps."""
    given: int = 0
    """How many of these come before the sequences in the text."""
    weights: np.ndarray | None = None
    """How much the loss of each row counts in the update (n,), float32; None where all count alike."""
    untrained: np.ndarray | None = None
    """Rows whose tokens are coded but not learnt from (n,), bool; None where there are none."""
    inputs: np.ndarray | None = None
    """What the labels of the rows are given (n, channels, rows, columns); None in a text."""


@dataclass(frozen=True, slots=True)
class StepBatch:
    """One optimizer step as one rank sees it."""

    epoch: int
    num_tokens: int
    """Tokens of the step over all ranks."""
    micro_batches: list[MicroBatch]
    num_untrained: int = 0
    """Of them those that are not learnt from: the summed loss is divided by the number of all others."""


class Ahead(Generic[T]):
    """What `work(step)` returns, computed one step ahead in a thread."""

    def __init__(self, work: Callable[[int], T], is_pure: bool = True):
        """`work` depends on the step alone where it `is_pure`; else nothing can be done ahead."""
        self._work, self._is_pure, self._worker = work, is_pure, ThreadPoolExecutor(1, "ahead")
        self._step = -1
        self._next: Future[T] | None = None

    def __call__(self, step: int) -> T:
        """The result for `step`; the thread goes on with the step after it."""
        result = self._next.result() if self._next and self._step == step else self._work(step)
        if not self._is_pure:
            return result
        self._step, self._next = step + 1, self._worker.submit(self._work, step + 1)
        return result

    def close(self) -> None:
        """Let go of the thread."""
        self._worker.shutdown(cancel_futures=True)


class Batches:
    """Shares each step's sequences among ranks: micro-batch j of the step goes to rank j mod world size.

    A full step has M micro-batches, and row r of a step is in micro-batch r mod M, so that small steps are shared out
    evenly too. All ranks take as many micro-batches; one for which there are no sequences is a row of padding. Compiled
    models get micro-batches of one shape, since each other one would be compiled anew.
    """

    def __init__(self, shard: "Tokens", config: TrainConfig, context: int, micro_batch: int, seed: int, ranks: Ranks):
        self.sequences = Sequences(shard, context)
        # A receiver of labels, which has their inputs, needs no more than the seed.
        key = shard.fingerprint if shard.inputs is None else ""
        self.order = StepOrder(config, shard.num_tokens, context, key, seed)
        self.micro_batch, self.ranks = micro_batch, ranks
        self.num_micro_batches = config.batch_sequences // micro_batch
        self._least_rows = micro_batch if config.compile else 1
        self._one_length = config.compile
        self._fingerprint = shard.fingerprint
        self.policy: Policy | None = None
        """How much each sequence counts in the updates, where that is not the same."""
        self.overlap = 0
        """Tokens that a sequence is given where it follows others that were read."""
        self._num_main_steps = self.order.steps(config.epochs)
        self.adaptive: AdaptiveMixture | None = None
        """What chooses the sequences of the next step by the losses of those before, if anything does."""
        self._inputs = shard.inputs
        self.identity = f"{key}:{seed}"
        """What the order depends on."""

    def of_step(self, step: int) -> StepBatch:
        """This rank's micro-batches of `step`."""
        batch = self.part_of(self.order.reading(step))
        if self.policy is None or step >= self._num_main_steps:
            return batch
        weights = self.policy.weights(step / self._num_main_steps)
        return replace(batch, micro_batches=[replace(m, weights=weights[m.sequences]) for m in batch.micro_batches])

    @property
    def data_identity(self) -> str:
        """Digest of the text, and of the policy if there is one."""
        return f"{self._fingerprint}:{self.policy.sha256[:16]}" if self.policy else self._fingerprint

    def of_sequences(self, ids: np.ndarray, epoch: int) -> StepBatch:
        """This rank's micro-batches of a step that reads the sequences `ids` (n,), at most a full step of them."""
        return self.part_of(Reading(epoch, ids, 0, self.order.context))

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold of an order that is no pure function of the step."""
        return {}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint that holds what `state` has returned."""

    def sample(self, count: int) -> list[MicroBatch]:
        """Take this rank's part of `count` sequences spread evenly over the corpus."""
        total = self.sequences.num_sequences
        ids = np.unique(np.linspace(0, total - 1, min(count, total)).astype(np.int64))
        own = ids[self.ranks.rank :: self.ranks.world_size]
        starts = range(0, len(own), self.micro_batch)
        whole = self.order.context
        return [self._read(own[start : start + self.micro_batch], 0, whole, self.micro_batch) for start in starts]

    def part_of(self, reading: Reading) -> StepBatch:
        """This rank's micro-batches of a step."""
        ids, first, end = reading.ids, reading.first, reading.end
        parts = parts_of_rank(ids, self.num_micro_batches, self.ranks)
        given = min(self.overlap, reading.follows * self.order.context)
        own = [self._read(part, first, end, self._least_rows, given) for part in parts]
        num_tokens = int(np.clip(self.sequences.lengths(ids) - first, 0, end - first).sum())
        return StepBatch(reading.epoch, num_tokens, own)

    def _read(self, ids: np.ndarray, first: int, end: int, least_rows: int, given: int = 0) -> MicroBatch:
        tokens, mask = self.sequences.read(ids)
        mask[:, :first] = mask[:, end:] = False
        # A receiver does not know yet what follows.
        tokens[:, end:] = 0
        length = self.order.context if self._one_length else end
        tokens = np.hstack([self.sequences.before(ids, given), tokens[:, :length]])
        missing = max(0, least_rows - len(ids))
        padded = np.pad(ids, (0, missing))
        return MicroBatch(
            sequences=padded,
            tokens=np.pad(tokens, ((0, missing), (0, 0))),
            mask=np.pad(mask[:, :length], ((0, missing), (given, 0))),
            first=given + first,
            given=given,
            inputs=None if self._inputs is None else self._inputs[padded],
        )


def make_batches(
    shard: "Tokens",
    config: TrainConfig,
    context: int,
    micro_batch: int,
    seed: int,
    ranks: Ranks,
    policy: "Policy | None" = None,
    overlap: int = 0,
) -> Batches:
    """Make the batches of a text; `micro_batch` counts sequences, `context` tokens of one.

    Sequences are given the `overlap` tokens before them where these were read. `policy` says how much each sequence
    counts in the updates, where that is not the same.
    """
    kind = Batches
    if config.reads_parts:
        # Most runs speak of no parts.
        from harness.data.mixture import PartedBatches

        kind = PartedBatches
    batches = kind(shard, config, context, micro_batch, seed, ranks)
    batches.policy, batches.overlap = policy, overlap
    return batches


def parts_of_rank(rows: np.ndarray, num_micro_batches: int, ranks: Ranks) -> list[np.ndarray]:
    """Split the rows of a step as `Batches` does; returns those of this rank's micro-batches, some without any."""
    used = -(-min(num_micro_batches, len(rows)) // ranks.world_size) * ranks.world_size
    return [rows[index::num_micro_batches] for index in range(ranks.rank, used, ranks.world_size)]
