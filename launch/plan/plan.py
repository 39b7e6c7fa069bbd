"""What a run needs in memory, time and disk space, before anyone pays for GPUs, and what to change if it cannot."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from harness.config.run import RunConfig
from harness.corpus.prepared import data_directory, open_data
from harness.data.schedule import plan_phases
from harness.data.steps import StepOrder
from harness.data.tokenizer import NUM_BYTE_VALUES
from harness.errors import UsageError
from harness.machine.hardware import resolve_precision
from harness.online.combiner import mixture_bytes
from harness.run.preflight import LEDGER_BYTES_PER_TOKEN, checkpoint_bytes
from launch.plan.duration import RECOMPUTING, Rate, bounding_seconds, main_passes
from launch.plan.gpus import DEVICES, Device, find_device
from launch.plan.memory import FLOAT, Memory, count_parameters, moments, online_memory_bytes
from launch.plan.pace import measured_step_seconds
from launch.plan.remedies import changed, remedies

WIKI_MINI_BYTES = 5_963_324
SHOWN_MFU, DEFAULT_MFU = (0.3, 0.4, 0.5), 0.4
ASSUMED_BYTES_PER_TOKEN = 3.5
# A backward pass costs two forward passes.
FORWARD_FRACTION = 1 / 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """The question about a configuration: which devices, how many, and what is known beforehand."""

    gpus: int
    """Ranks; processes on a CPU."""
    gpu: str | None = None
    """A name of `DEVICES`, or cpu; None is what this machine has and the configuration asks for."""
    mfu: float | None = None
    """Model FLOP/s utilisation, the fraction of a GPU's peak that useful operations reach; by default `DEFAULT_MFU`."""
    train_bytes: int | None = None
    """Size of the training split, where it cannot be known."""
    tokens: int | None = None
    """The same in tokens."""
    gpu_hours: float | None = None
    """A budget, or what a known run took: the plan says which MFU that is."""


@dataclass(frozen=True, slots=True)
class Corpus:
    """Size of the training split."""

    raw_bytes: int
    tokens: int
    source: str
    """Where the size comes from."""


class Plan:
    """The plan of a configuration on a number of devices: memory, time and disk."""

    def __init__(self, config: RunConfig, question: Question):
        """Raises UsageError where the question has no answer: see `find_device`, `TrainConfig.micro_batch`."""
        if config.model.is_classifier:
            remedy = "plan estimates transformers; use codelength train with dry_run=true"
            raise UsageError(f"model.architecture={config.model.architecture}: {remedy}")
        self.config, self.question = config, question
        self.device = find_device(question.gpu, question.gpus, config.backend.device)
        if not self.device.is_gpu and (question.mfu or question.gpu_hours):
            raise UsageError("--mfu, --gpu-hours: shares of a GPU's peak; the rate of a CPU is measured")
        self.micro_batch = config.train.micro_batch(question.gpus)
        self.is_bf16 = uses_bf16(config, self.device)
        self.vocab_size = NUM_BYTE_VALUES if config.tokenizer.kind == "bytes" else config.tokenizer.vocab_size
        self.corpus = corpus_size(config, question)
        self.parameters, *self.others = (
            count_parameters(replace(config, model=model), self.vocab_size) for model in config.expert_models()
        )
        train = config.train
        order = StepOrder(train, self.corpus.tokens, config.model.context, "", config.seed)
        self.phases = plan_phases(train, order, config.prune.prunings)
        self.step_tokens = train.batch_sequences * config.model.context
        epochs = {"main": main_passes(train, self.corpus.tokens), "finetune": train.finetune_epochs}
        names = dict.fromkeys(phase.name for phase in self.phases)
        self.phase_steps = {name: sum(p.num_steps for p in self.phases if p.name == name) for name in names}
        self.phase_tokens = {name: round(epochs[name] * self.corpus.tokens) for name in names}
        updates = order.updates(self.phases[-1].end_step)
        self.small_updates = {tokens: count for tokens, count in updates.items() if tokens < self.step_tokens}
        """Updates of the weights from less than a full batch, by its tokens."""
        small_tokens = sum(tokens * number for tokens, number in self.small_updates.items())
        full_tokens = max(0, sum(self.phase_tokens.values()) - small_tokens)
        self.updates = sum(self.small_updates.values()) + full_tokens / self.step_tokens
        flops = self.parameters.flops_per_token
        self.total_flops = flops * sum(self.phase_tokens.values()) + self._coding_flops(flops)
        self.mixture_bytes = mixture_bytes(config.online, self.corpus.tokens)

    def memory(self, config: RunConfig, device: Device, ranks: int) -> list[Memory]:
        """Compute the memory of a rank's moments with a configuration of the same model, the largest first."""
        fixed, is_bf16 = device.fixed_bytes(config.backend.name), uses_bf16(config, device)
        fixed += online_memory_bytes(config, [self.parameters, *self.others], self.vocab_size, ranks)
        fixed += 0 if device.is_gpu else self.mixture_bytes
        memories = moments(config, self.parameters, self.vocab_size, ranks, is_bf16, fixed, device.is_gpu)
        return sorted(memories, key=lambda memory: -memory.total)

    def _coding_flops(self, flops: float) -> float:
        """Those of the online code beside the training of the run's own transformer, whose FLOPs a token are `flops`.

        The other transformers are trained on the same tokens; all of them, and the states of a self-switch, predict
        every token once more, where the losses of training are not the code.
        """
        config, tokens = self.config, self.corpus.tokens
        others = sum(other.flops_per_token for other in self.others)
        is_plain = config.online.trains_plainly and not config.train.retrain_at
        predicting = 0.0 if is_plain else (config.online.checkpoints * flops + others) * FORWARD_FRACTION
        # Further epochs are the run's own transformer's alone.
        passes = main_passes(config.train, tokens) - (0 if config.train.retrain_at else config.train.epochs - 1)
        return (passes * others + predicting) * tokens

    def memory_rows(self) -> Iterator[tuple[str, bool, Memory, Memory]]:
        """List DDP and each ZeRO stage: name, whether it is the configured one, memory in training and at most."""
        current = self.config.backend
        for name, stage in (("ddp", 0), *(("deepspeed", stage) for stage in range(4))):
            backend = {"name": name, "zero_stage": stage}
            backend |= {} if stage else {"bf16_weights": False, "offload_optimizer": False}
            config = changed(self.config, backend=backend)
            label = "ddp" if name == "ddp" else f"ZeRO-{stage}"
            memories = self.memory(config, self.device, self.question.gpus)
            training = next(memory for memory in memories if memory.moment == "training")
            yield label, (name, stage) == (current.name, current.zero_stage), training, memories[0]

    def peaks(self) -> dict[str, float]:
        """FLOP/s of a GPU by arithmetic; none of a CPU, where steps are measured."""
        peaks = {"fp32": self.device.fp32_flops, "bf16": self.device.bf16_flops}
        return {name: flops for name, flops in peaks.items() if flops}

    @property
    def arithmetic(self) -> str:
        """The configured precision of matrix products."""
        return "bf16" if self.is_bf16 else "fp32"

    @property
    def mfu(self) -> float:
        """The assumed MFU."""
        return self.question.mfu or DEFAULT_MFU

    def operations(self) -> float:
        """FLOPs of the whole run: those of the models, those computed again, and Muon's."""
        recomputing = RECOMPUTING if self.config.train.activation_checkpointing else 1.0
        return self.total_flops * recomputing + self.parameters.muon_flops * self.updates

    @cached_property
    def bounds(self) -> dict[str, float]:
        """Seconds of an update of the weights by what may bound it besides operations, on GPUs."""
        return bounding_seconds(self.config, self.parameters, self.device, self.question.gpus, self.is_bf16)

    @cached_property
    def rates(self) -> list[Rate]:
        """Durations: on GPUs at each arithmetic and some MFU, on a CPU as measured here and now."""
        if not self.device.is_gpu:
            # Other models of the online code count by their operations.
            others = self.total_flops / (self.parameters.flops_per_token * sum(self.phase_tokens.values()))
            return [self._rate(self.arithmetic, None, None, {"measured": self._measured_seconds() * others})]
        each = self.operations() / (self.question.gpus * self.updates)
        return [
            self._rate(name, flops, mfu, {"operations": each / (flops * mfu), **self.bounds})
            for name, flops in self.peaks().items()
            for mfu in sorted({*SHOWN_MFU, self.mfu})
        ]

    def _measured_seconds(self) -> float:
        """Seconds of an update of the weights on a CPU, as measured; a mean where a schedule makes some smaller."""
        processes, context = self.question.gpus, self.config.model.context
        full = measured_step_seconds(self.config, self.vocab_size, processes)
        seconds = full * (self.updates - sum(self.small_updates.values()))
        for tokens, number in self.small_updates.items():
            # A part of a sequence is computed with what is before it.
            length = context if tokens >= context else (context + tokens) // 2
            train: dict[str, object] = {
                "batch_sequences": max(1, tokens // context),
                "micro_batch_sequences": None,
                "batch_schedule": [],
            }
            config = changed(self.config, train=train, model={"context": length})
            # Ranks for which there is no row wait.
            at_once = min(processes, config.train.batch_sequences)
            seconds += number * measured_step_seconds(config, self.vocab_size, at_once)
        return seconds / self.updates

    def _rate(self, arithmetic: str, flops: float | None, mfu: float | None, update_seconds: dict[str, float]) -> Rate:
        """What follows from the seconds of an update of the weights by what bounds it."""
        bound_by = max(update_seconds, key=update_seconds.__getitem__)
        seconds = update_seconds[bound_by] * self.updates
        return Rate(
            arithmetic=arithmetic,
            peak_flops=flops,
            mfu=mfu,
            hours=seconds / 3600,
            gpu_hours=seconds / 3600 * self.question.gpus,
            # A step has several updates where it replays.
            step_seconds=seconds / self.phases[-1].end_step,
            tokens_per_second=sum(self.phase_tokens.values()) / seconds,
            bound_by=bound_by,
        )

    def implied_mfu(self) -> dict[str, float]:
        """Compute, by arithmetic, the fraction of the peak at which the run takes `gpu_hours`."""
        seconds = 3600 * (self.question.gpu_hours or math.inf)
        return {name: self.total_flops / (flops * seconds) for name, flops in self.peaks().items()}

    def disk_bytes(self) -> dict[str, float]:
        """Compute what a run leaves on the disk, in bytes."""
        parameters, config = self.parameters, self.config
        counts = [(each.total, each.muon) for each in (parameters, *self.others)]
        checkpoint = checkpoint_bytes(config, counts, parameters.regularised)
        checkpoint += self.question.gpus * self.mixture_bytes
        return {
            "ledger": LEDGER_BYTES_PER_TOKEN * self.corpus.tokens,
            "checkpoint": checkpoint,
            # One more while it is written.
            "checkpoints": checkpoint * (config.train.keep_checkpoints + 1),
            "weights": FLOAT * parameters.total,
            "training shard": self.corpus.tokens * (1 if self.vocab_size <= NUM_BYTE_VALUES else 2),
        }

    def refusal(self) -> str:
        """Say why the run does not fit and the smallest change with which it does, or nothing."""
        limit, gpus = self.device.memory_bytes, self.question.gpus
        peak = self.memory(self.config, self.device, gpus)[0]
        if peak.total <= limit:
            return ""
        text = (
            f"{gpus} x {self.device.name}: a rank needs {peak.total / 1e9:,.2f} GB of {limit / 1e9:,.2f} GB "
            f"({peak.moment}; {peak.allocated / 1e9:,.2f} GB of tensors)"
        )
        words = self._remedy(self.device, gpus)
        if words is not None:
            return f"{text}; it fits with {' '.join(words)}"
        return f"{text}, and no setting makes it fit; {self._larger()}"

    def _larger(self) -> str:
        """More devices, or larger ones, that would do."""
        options, ranks, batch = [], 2 * self.question.gpus, self.config.train.batch_sequences
        if self.device.is_gpu:
            options += [(f"--gpu {d.name}", d, self.question.gpus) for d in DEVICES.values()]
            options = [option for option in options if option[1].memory_bytes > self.device.memory_bytes]
            while ranks <= batch and batch % ranks == 0:
                options.append((f"--gpus {ranks}", self.device, ranks))
                ranks *= 2
        for flag, device, count in options:
            words = self._remedy(device, count)
            if words is not None:
                return f"use {' '.join([flag, *words])}"
        return "lower model.width, model.layers or model.context"

    def _remedy(self, device: Device, ranks: int) -> list[str] | None:
        """The smallest change that fits, as overrides."""
        for words, config in remedies(self.config, ranks, uses_bf16(self.config, device)):
            if self.memory(config, device, ranks)[0].total <= device.memory_bytes:
                return words
        return None


def uses_bf16(config: RunConfig, device: Device) -> bool:
    """Whether products are bf16 on `device`.

    Raises UsageError where bf16 is wanted of a GPU that has none.
    """
    wanted = config.train.precision
    if not device.is_gpu:
        return resolve_precision(wanted, torch.device("cpu")) == torch.bfloat16
    if device.bf16_flops is None and wanted == "bf16":
        raise UsageError(f"train.precision=bf16: a {device.name} has no bf16 products; use fp32 or auto")
    return device.bf16_flops is not None and wanted != "fp32"


def corpus_size(config: RunConfig, question: Question) -> Corpus:
    """Find the size of the training split: from the command line, else prepared data, else the configuration.

    Raises UsageError where none of them knows.
    """
    if question.tokens and question.train_bytes is None and config.tokenizer.kind == "bytes":
        return Corpus(question.tokens, question.tokens, "--tokens")
    if question.train_bytes is None and question.tokens is None and data_directory(config).exists():
        shard = open_data(config).train
        return Corpus(shard.raw_bytes, shard.num_tokens, "prepared data")
    corpus = config.corpus
    raw_bytes, source = question.train_bytes, "--train-bytes"
    if raw_bytes is None:
        whole = WIKI_MINI_BYTES - corpus.heldout_bytes if corpus.kind == "wiki-mini" else None
        raw_bytes, source = (
            (corpus.subset_bytes, "corpus.subset_bytes") if corpus.subset_bytes else (whole, "wiki-mini")
        )
    if question.tokens:
        return Corpus(raw_bytes or round(question.tokens * ASSUMED_BYTES_PER_TOKEN), question.tokens, "--tokens")
    if raw_bytes is None:
        raise UsageError(
            f"corpus.kind={corpus.kind}: its size is not known before it is prepared; run `codelength data`, set "
            "corpus.subset_bytes or give --train-bytes N"
        )
    if config.tokenizer.kind == "bytes":
        return Corpus(raw_bytes, raw_bytes, source)
    tokens = round(raw_bytes / ASSUMED_BYTES_PER_TOKEN)
    return Corpus(raw_bytes, tokens, f"{source}, assuming {ASSUMED_BYTES_PER_TOKEN} bytes/token (--tokens N knows)")
