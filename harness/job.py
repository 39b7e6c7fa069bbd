"""A job: this process among the ranks that train, send or receive together."""

from collections.abc import Iterator
from contextlib import contextmanager

from harness.config.run import RunConfig
from harness.errors import RunFailure
from harness.machine.hardware import compute_deterministically, is_out_of_memory
from harness.machine.ranks import Ranks, joined_ranks


@contextmanager
def joined_job(config: RunConfig) -> Iterator[Ranks]:
    """Join the ranks of this job for the length of the context, and compute deterministically.

    Raises RunFailure where contact or memory is lost.
    """
    compute_deterministically()
    with joined_ranks(config.backend.timeout_seconds, config.backend.device) as ranks:
        try:
            yield ranks
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            raise RunFailure(
                f"rank {ranks.rank}: out of memory with micro-batches of {config.train.micro_batch(ranks.world_size)} "
                "sequences; lower train.micro_batch_sequences, set train.activation_checkpointing=true or take a "
                "higher backend.zero_stage (`codelength plan` tells what fits)"
            ) from None
