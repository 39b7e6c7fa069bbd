"""The numbers that follow from a configuration, printed before the first step."""

from collections.abc import Sequence
from typing import Any

import torch

from harness.config.run import RunConfig
from harness.corpus.prepared import Data
from harness.data.schedule import Phase
from harness.data.steps import StepOrder
from harness.machine.ranks import Ranks
from harness.online.combiner import mixture_bytes

LEDGER_BYTES_PER_TOKEN = 5
FLOAT_BYTES = 4


def derived_numbers(
    config: RunConfig,
    data: Data,
    phases: list[Phase],
    groups: list[list[dict[str, Any]]],
    ranks: Ranks,
    micro_batch: int,
    dtype: torch.dtype,
) -> list[str]:
    """Describe a run in numbers; `groups` are the parameter groups of each model, `micro_batch` counts sequences."""
    shard, batch = data.train, config.train.batch_sequences
    steps, tokens = ", ".join(f"{p.name} {p.num_steps:,}" for p in phases), batch * config.model.context
    backend = config.backend.name + (f" ZeRO-{config.backend.zero_stage}" if config.backend.name == "deepspeed" else "")
    num_parameters = _count(groups[0])
    counts = [(_count(model_groups), _count(model_groups, "muon")) for model_groups in groups]
    saved_bytes = checkpoint_bytes(config, counts, _count(groups[0], "regularised"))
    saved_bytes += ranks.world_size * mixture_bytes(config.online, shard.num_tokens)
    return [
        f"corpus      {config.corpus.kind}: {shard.raw_bytes:,} bytes = {shard.num_tokens:,} tokens "
        f"({config.tokenizer.kind}); held out {data.heldout.raw_bytes:,} bytes",
        f"model       {config.model.architecture}: {num_parameters:,} parameters",
        f"steps       {steps} of {tokens:,} tokens{_schedule_words(config)} = {ranks.world_size} rank(s)"
        f" x {batch // micro_batch // ranks.world_size} micro-batch(es) x {micro_batch} x {config.model.context}",
        *mixture_lines(config, shard.num_tokens),
        *_online_lines(config),
        f"arithmetic  {str(dtype).removeprefix('torch.')} products, float32 loss, {ranks.device.type}, {backend}",
        f"sizes       ledger about {LEDGER_BYTES_PER_TOKEN * shard.num_tokens / 1e6:,.1f} MB, checkpoint about "
        f"{saved_bytes / 1e6:,.1f} MB",
    ]


def checkpoint_bytes(config: RunConfig, counts: Sequence[tuple[int, int]], regularised: int) -> int:
    """Compute the bytes of a checkpoint without mixtures, from numbers of weights: all, Muon's, regularised ones.

    Weights, moments (Muon has one, Adam two), and the most that rule or pruning keep of the run's own model, which
    comes first; what an online code keeps beside these.
    """
    masks = 0 if config.prune.kind == "none" else 3 if config.prune.grid else 1
    weights = sum(3 * total - muon for total, muon in counts) + regularised * max(masks, config.rule.tensors_kept)
    return FLOAT_BYTES * (weights + kept_weights(config, [total for total, _ in counts]))


def kept_weights(config: RunConfig, totals: Sequence[int]) -> int:
    """Count the numbers that an online code keeps beside the trained weights: running means and earlier states."""
    return bool(config.online.ema) * sum(totals) + (config.online.checkpoints - 1) * totals[0]


def _count(groups: list[dict[str, Any]], key: str | None = None) -> int:
    """Parameters of all groups, or of those of which `key` holds."""
    return sum(p.numel() for group in groups if key is None or group[key] for p in group["params"])


def _schedule_words(config: RunConfig) -> str:
    """The smaller steps of the first epoch."""
    if not config.train.batch_schedule:
        return ""
    return f" (at first {', '.join(f'{tokens:,}' for _, tokens in config.train.batch_schedule)})"


def mixture_lines(config: RunConfig, num_tokens: int) -> list[str]:
    """In which shares the parts of a text are read, and which of them are held back or not learnt from."""
    train = config.train
    if not train.reads_parts:
        return []
    words = f"{train.shares} shares of {len(config.corpus.part_names)} parts"
    if train.shares == "ado":
        order = StepOrder(train, num_tokens, config.model.context, "", config.seed)
        words = f"ado shares of {len(config.corpus.part_names)} parts from step {train.ado_start:,} on"
        if order.steps_per_epoch <= train.ado_start:
            words += f": an epoch has only {order.steps_per_epoch:,}, so natural shares are kept"
    for key, names in (("last", train.last), ("untrained", train.untrained)):
        words += f"; {key}: {', '.join(names)}" if names else ""
    return [f"mixture     {words}"]


def _online_lines(config: RunConfig) -> list[str]:
    """Who predicts in the online code and what follows each new batch, where that is not the plain training."""
    online, train, parts = config.online, config.train, []
    if online.models or online.experts:
        parts.append(f"switch between {', '.join(['model', *online.models, *online.experts])}")
    if online.ema:
        parts.append(f"running means ({online.ema:g})")
    if online.calibrate:
        parts.append("temperature")
    if online.checkpoints > 1:
        parts.append(f"best of {online.checkpoints} states")
    if train.replays:
        until = f" in the first {train.replays_until:,} tokens" if train.replays_until else ""
        parts.append(f"{train.replays} replays a step{until} ({train.replay})")
    if train.retrain_at:
        parts.append(f"retrained at {', '.join(f'{fraction:g}' for fraction in train.retrain_at)}")
    return [f"online      {'; '.join(parts)}"] if parts else []
