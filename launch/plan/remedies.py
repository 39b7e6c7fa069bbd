"""Changes of a configuration with which a run fits into less memory."""

import copy
import math
from collections.abc import Iterator

from harness.config.run import RunConfig


def changed(config: RunConfig, **sections: dict) -> RunConfig:
    """Copy a configuration with other values in its sections."""
    result = copy.deepcopy(config)
    for section, values in sections.items():
        for key, value in values.items():
            setattr(getattr(result, section), key, value)
    return result


def remedies(config: RunConfig, ranks: int, is_bf16: bool) -> Iterator[tuple[list[str], RunConfig]]:
    """List changes that take less memory, as `key=value` words and configurations, those that cost least first.

    A smaller micro-batch before activation checkpointing, before a higher ZeRO stage, before bf16 weights, before the
    memory of the host.
    """
    backend, train = config.backend, config.train
    rank_sequences = train.batch_sequences // ranks
    largest = math.gcd(train.micro_batch_sequences or rank_sequences, rank_sequences)
    micro_batches = [n for n in range(largest, 0, -1) if largest % n == 0]
    ladder = [(backend.name, backend.zero_stage, backend.bf16_weights, backend.offload_optimizer)]
    ladder += [("deepspeed", stage, backend.bf16_weights, backend.offload_optimizer) for stage in (1, 2, 3)]
    ladder += [("deepspeed", stage, True, backend.offload_optimizer) for stage in (1, 2, 3) if is_bf16]
    ladder += [("deepspeed", stage, backend.bf16_weights or is_bf16, True) for stage in (2, 3)]
    for name, stage, bf16_weights, offload in ladder:
        if stage < backend.zero_stage:
            continue
        for checkpointing in sorted({train.activation_checkpointing, True}):
            for micro_batch in micro_batches:
                backend_values: dict[str, object] = {"name": name, "zero_stage": stage}
                backend_values |= {"bf16_weights": bf16_weights, "offload_optimizer": offload}
                train_values: dict[str, object] = {"activation_checkpointing": checkpointing}
                if micro_batch != (train.micro_batch_sequences or rank_sequences):
                    train_values["micro_batch_sequences"] = micro_batch
                candidate = changed(config, backend=backend_values, train=train_values)
                words = _words(config, train=train_values, backend=backend_values)
                if not candidate.problems():
                    yield words, candidate


def _words(config: RunConfig, **sections: dict) -> list[str]:
    """The values that differ from those of `config`, as overrides."""
    return [
        f"{section}.{key}={str(value).lower()}"
        for section, values in sections.items()
        for key, value in values.items()
        if getattr(getattr(config, section), key) != value
    ]
