"""How long a run trains, in which batches, and its learning rate at each step."""

import math
from dataclasses import dataclass, field
from typing import Protocol

from harness.bounds import bound_problems, bounded
from harness.data.order import FOLLOWING, ORDERS
from harness.errors import UsageError

ON_DAMAGE = ("stop", "restart")
PRECISIONS = ("auto", "bf16", "fp32")
MAX_REPLAYS = 1000
MAX_STAGES = 64
REPLAYS = ("uniform", "streams")


@dataclass(kw_only=True, slots=True)
class TrainConfig:
    """Length and batches of the main and fine-tuning phases."""

    epochs: float = bounded(1.0, least=1, words="must be at least 1, so that every token is coded once")
    """Passes over the corpus in the main phase; at least 1, since the online code needs every token once."""
    finetune_epochs: float = bounded(0.1, least=0)
    """Passes after pruning, without penalty and with zeros held at zero; 0 leaves them out. See `prune.rounds`."""
    batch_sequences: int = bounded(8, least=1)
    """Sequences per optimizer step, over all ranks and micro-batches."""
    micro_batch_sequences: int | None = None
    """Sequences per forward pass of one rank; default: all rows of the rank."""
    order: str = bounded("shuffled", choices=ORDERS)
    """`shuffled`, `interleaved`, `sequential` as in the text, or `streams`: each row of the batch reads a part of it.

    `interleaved`: the first sequences of all stretches of up to 32, permuted, then all the second ones, and so on.
    """
    replays: int = bounded(0, least=0, most=MAX_REPLAYS)
    """Steps on what was read before, after each step of the first epoch; they are never counted as code length."""
    replays_until: int = bounded(0, least=0)
    """Nothing is replayed once so many tokens were read; 0: replays go on to the end of the first epoch."""
    replay: str = bounded("uniform", choices=REPLAYS)
    """What replays read: `uniform`, any earlier rows; `streams`: readers that walk the past and may start again."""
    batch_schedule: list[list[int]] = field(default_factory=list)
    """Steps of the first epoch: `[[0, 128], [20000, 512]]` are 128 tokens each, and 512 after 20,000 tokens; else full.

    A step of less than a sequence reads a part of one, given what is before it. Tokens of a step divide
    `model.context` or are a multiple of it, never become fewer, and are at most those of a full batch.
    """
    shares: str = "natural"
    """Shares of the parts in the first epoch: `natural`, `uniform`, weights such as `[0.5, 0.3, 0.2]`, or `ado`.

    A list of weights each with the tokens read before it in front is a schedule: `[[0, 0.5, 0.5], [90000, 0.1, 0.9]]`.
    """
    last: list[str] = field(default_factory=list)
    """Parts that are held back and read after all others have ended."""
    untrained: list[str] = field(default_factory=list)
    """Parts that are coded and never learnt from."""
    policy: str | None = None
    """FILE of `codelength study` (`kind: policy`): how much each sequence counts in the updates of the main phase."""
    ado_start: int = bounded(100, least=40)
    """ado: steps before laws of the parts' losses are fitted for the first time."""
    ado_every: int = bounded(20, least=1)
    """ado: steps between two fits."""
    retrain_at: list[float] = field(default_factory=list)
    """Block code: nothing is learnt but at these fractions of the corpus, there anew from all that was read."""
    retrain_epochs: float = bounded(4.0, above=0, most=MAX_REPLAYS)
    """Passes of such a training."""
    precision: str = bounded("auto", choices=PRECISIONS)
    """`bf16` or `fp32` arithmetic of the forward pass; `auto` takes bf16 where the hardware is fast at it."""
    compile: bool = False
    """Compile each block with torch.compile: faster where a compiler is found, and other last bits than without."""
    activation_checkpointing: bool = False
    """Compute activations inside blocks again in the backward pass, instead of keeping them in memory."""
    checkpoint_minutes: float = bounded(10.0, above=0)
    """Time between checkpoints."""
    keep_checkpoints: int = bounded(2, least=1)
    """How many of the newest checkpoints are kept."""
    on_damage: str = bounded("stop", choices=ON_DAMAGE)
    """What happens where checkpoints exist and none is usable: `stop`, or `restart` from step 0."""
    log_every_steps: int = bounded(10, least=1)
    """Steps between progress lines and metrics; losses in between are summed, not skipped."""

    @property
    def is_mixed(self) -> bool:
        """Whether the first epoch reads parts in shares of their own."""
        return bool(self.last) or self.shares != "natural"

    @property
    def reads_parts(self) -> bool:
        """Whether it matters where parts of the text begin."""
        return self.is_mixed or bool(self.untrained)

    def problems(self) -> list[str]:
        """Every bad value, a line each."""
        problems, at = bound_problems(self, "train."), self.retrain_at
        micro = self.micro_batch_sequences
        if micro is not None and (micro < 1 or self.batch_sequences % micro):
            problems.append(
                f"train.micro_batch_sequences={micro}: must divide train.batch_sequences ({self.batch_sequences})"
            )
        if not all(0 < fraction < 1 for fraction in at) or sorted(set(at)) != at:
            problems.append(
                f"train.retrain_at={at}: must be fractions between 0 and 1, each larger than the one before"
            )
        if at and self.replays:
            problems.append(f"train.replays={self.replays}: nothing is learnt between the blocks of retrain_at; use 0")
        if at and self.epochs != 1:
            problems.append(f"train.epochs={self.epochs}: a block code reads the corpus once; use 1")
        if self.policy is not None and (self.retrain_at or self.replays or self.reads_parts):
            problems.append(f"train.policy={self.policy}: not with train.replays, train.retrain_at or parts; use null")
        if self.batch_schedule and (self.retrain_at or "streams" in (self.order, self.replay)):
            problems.append(
                "train.batch_schedule: not with train.retrain_at, train.order=streams or train.replay=streams"
            )
        return problems

    def sequence_problems(self, context: int, overlap: int) -> list[str]:
        """What is wrong for sequences of `context` tokens that are given `overlap` more."""
        problems = self.schedule_problems(context)
        if overlap > 0 and (self.order not in FOLLOWING or self.is_mixed):
            problems.append(
                f"model.overlap={overlap}: sequences that follow what was read are those of train.order="
                f"{' or '.join(FOLLOWING)}, without train.shares and train.last; use 0 or one of these orders"
            )
        return problems

    def schedule_problems(self, context: int) -> list[str]:
        """What is wrong with `batch_schedule` for sequences of `context` tokens."""
        schedule, full = self.batch_schedule, self.batch_sequences * context
        starts, sizes = [stage[:1] for stage in schedule], [stage[1:] for stage in schedule]
        is_order = starts == sorted(starts) and len({*map(tuple, starts)}) == len(starts) and sizes == sorted(sizes)
        if not schedule or (
            len(schedule) <= MAX_STAGES
            and {len(stage) for stage in schedule} == {2}
            and (starts[0] == [0] and is_order and sizes[0] >= [1])
            and not any(context % size if size < context else min(size, full) % context for (size,) in sizes)
        ):
            return []
        return [
            f"train.batch_schedule={schedule}: must be at most {MAX_STAGES} pairs [tokens read before, tokens of a "
            f"step], the first from 0 on, both ascending; a step must divide model.context={context} or be a multiple "
            "of it"
        ]

    def step_sizes(self, context: int) -> list[int]:
        """Tokens of a step in the first epoch, from the smallest to the largest, for sequences of `context` tokens."""
        full = self.batch_sequences * context
        return sorted({min(tokens, full) for _, tokens in self.batch_schedule}) or [full]

    def micro_batch(self, world_size: int) -> int:
        """Sequences per forward pass of one rank.

        Raises UsageError where the batch cannot be shared evenly among `world_size` ranks.
        """
        micro = self.micro_batch_sequences or self.batch_sequences // world_size
        if micro < 1 or self.batch_sequences % (micro * world_size):
            raise UsageError(
                f"train.batch_sequences={self.batch_sequences}: must be a multiple of "
                f"{max(micro, 1) * world_size} (micro-batch {max(micro, 1)} x {world_size} ranks)"
            )
        return micro


@dataclass(frozen=True, slots=True)
class Phase:
    """A stretch of optimizer steps with its own learning-rate schedule."""

    name: str
    first_step: int
    num_steps: int
    prunings: int = 0
    """How many prunings come before it."""

    @property
    def end_step(self) -> int:
        """The step after the last one."""
        return self.first_step + self.num_steps


@dataclass(frozen=True, slots=True)
class Moment:
    """Where a step stands in a phase of training; learning rates and the strength of a rule follow from it."""

    begun: float
    """Fraction of the phase's tokens that come before the step."""
    done: float
    """The same when the step is done."""
    tokens: int
    """Tokens of the phase that have been read then."""
    batch: float = 1.0
    """Tokens of a step of this size over those of a full batch."""
    is_finetuning: bool = False


class Steps(Protocol):
    """How many steps an order of a text has."""

    def steps(self, epochs: float, later: bool = False) -> int:
        """Steps in `epochs`, from the beginning on, or `later`, where all batches are full."""


def plan_phases(config: TrainConfig, order: Steps, prunings: int) -> list[Phase]:
    """The main phase and, after each pruning, an equal stretch of fine-tuning.

    Each stretch has its own decay, so that every pruning is judged on weights that have settled, and what it damages is
    mended at learning rates that can. Raises UsageError where there are fewer steps of fine-tuning than prunings.
    """
    phases = [Phase("main", 0, order.steps(config.epochs))]
    num_steps = order.steps(config.finetune_epochs, later=True) if prunings else 0
    if 0 < num_steps < prunings:
        raise UsageError(
            f"prune.rounds={prunings}: fine-tuning has {num_steps} steps to share out among as many stretches; "
            "use fewer rounds or more train.finetune_epochs"
        )
    for index in range(prunings if num_steps else 0):
        count = num_steps // prunings + (index < num_steps % prunings)
        phases.append(Phase("finetune", phases[-1].end_step, count, prunings=index + 1))
    return phases


def learning_rate_factor(moment: Moment, warmup_tokens: int, shape: str, final_fraction: float) -> float:
    """Factor on the peak learning rate of a step: linear warm-up, then linear or cosine decay."""
    warmup = min(1.0, moment.tokens / warmup_tokens) if warmup_tokens else 1.0
    decay = 1.0 - moment.begun if shape == "linear" else 0.5 * (1.0 + math.cos(math.pi * moment.begun))
    return warmup * (final_fraction + (1.0 - final_fraction) * decay)
