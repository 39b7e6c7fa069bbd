"""Seconds of a training step on this machine, measured on steps of the configured model.

What would take too long is measured on less of it: fewer forward passes, each further one costing as much as the
second; two blocks, each further one costing as much as the second; and `MAX_WIDTH`, beyond which operations are
counted. `python -m launch.pace` is one process of a measurement in several.
"""

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from harness.backends.base import BackendConfig
from harness.config import RunConfig
from harness.distributed import Ranks, joined_ranks, leave
from harness.errors import RunFailure
from harness.hardware import compute_deterministically, matmul_flops, resolve_precision
from harness.learner import Learner
from harness.pace import seconds_of_a_step, stand_still
from launch.jobs import last_words
from launch.memory import count_parameters
from launch.workers import rank_environments, start_rank

MAX_WIDTH = 512
# About as long may a measured step be, and the timed steps of each of the four measurements there are at most.
SECONDS = 0.7
# Share of the rate of matrix products that steps have at least, to know beforehand how long one is.
USUAL_SHARE = 0.3
SECONDS_OF_PROCESSES = 60.0


@dataclass(frozen=True, slots=True)
class Extent:
    """How much of a step is computed."""

    passes: int
    """Forward passes of a rank."""
    sequences: int
    """Of each pass."""
    layers: int
    width: int


def measured_step_seconds(config: RunConfig, vocab_size: int, processes: int) -> float:
    """Seconds of a step in `processes` processes on this machine's CPU, with DDP between them.

    Raises RunFailure where they fail.
    """
    if processes == 1:
        compute_deterministically()
        return step_seconds(config, vocab_size, Ranks(0, 1, torch.device("cpu")))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # More processes than cores take turns.
    running = max(n for n in range(1, min(processes, cores) + 1) if config.train.batch_sequences % n == 0)
    return seconds_in_processes(config, vocab_size, running, "cpu")[1]


def seconds_in_processes(config: RunConfig, vocab_size: int, processes: int, device: str) -> tuple[float, float]:
    """Seconds of a step of the first process alone, and of `processes` together; `device` is as in the settings.

    Raises RunFailure where they fail.
    """
    paths = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    own = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"), "PYTHONPATH": paths}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    command = [sys.executable, "-m", "launch.pace"]
    with rank_environments(processes) as environments:
        ranks = [start_rank(command, environment | own, **pipes) for environment in environments]
        try:
            for process in ranks:
                process.stdin.write(pickle.dumps((config, vocab_size, device)))
                process.stdin.flush()
            outputs = [process.communicate(timeout=SECONDS_OF_PROCESSES)[0].decode() for process in ranks]
        except (subprocess.TimeoutExpired, BrokenPipeError):
            raise RunFailure(f"{processes} processes could not take a step in {SECONDS_OF_PROCESSES:g} s") from None
        finally:
            for process in ranks:
                process.kill()
                process.wait()
    if any(process.returncode for process in ranks):
        raise RunFailure(f"{processes} processes could not take a step: {last_words(outputs[0])[:200]}")
    alone, together = json.loads(outputs[0].splitlines()[-1])
    return alone, together


def step_seconds(config: RunConfig, vocab_size: int, ranks: Ranks) -> float:
    """Seconds of a step of these ranks, which call it together."""
    dtype = resolve_precision(config.train.precision, ranks.device)
    affordable = SECONDS * USUAL_SHARE * min(ranks.gather(matmul_flops(dtype, ranks.device)))
    sequences, share = config.train.micro_batch(ranks.world_size), config.train.batch_sequences // ranks.world_size
    whole = Extent(share // sequences, sequences, config.model.layers, config.model.width)

    def flops(extent: Extent) -> float:
        parameters = count_parameters(_part_of(config, extent, ranks.world_size), vocab_size)
        tokens = extent.passes * extent.sequences * config.model.context
        return parameters.flops_per_token * tokens + parameters.muon_flops / ranks.world_size

    def seconds(extent: Extent) -> float:
        learner = Learner(_part_of(config, extent, ranks.world_size), vocab_size, ranks, dtype)
        stand_still(learner.optimizer)
        try:
            return seconds_of_a_step(learner.dry_step, ranks, SECONDS)
        finally:
            learner.backend.close()

    part = next((extent for extent in _ever_less(whole) if flops(extent) <= affordable), _least(whole))
    if part == whole:
        return seconds(whole)

    def of_layers(passes: int) -> float:
        return _at(whole.layers, part.layers, lambda layers: seconds(replace(part, passes=passes, layers=layers)))

    beyond_width = flops(whole) / flops(replace(whole, width=part.width))
    return beyond_width * _at(share // part.sequences, part.passes, of_layers)


def _at(wanted: int, measured: int, seconds: Callable[[int], float]) -> float:
    """What `wanted` of something take where each further one costs as much as the second, if not all are measured."""
    if wanted == measured:
        return seconds(wanted)
    first, both = seconds(1), seconds(2)
    return first + (wanted - 1) * (both - first)


def _ever_less(whole: Extent) -> Iterator[Extent]:
    """All of a step, then less and less."""
    yield whole
    num_sequences = whole.passes * whole.sequences
    for sequences in range(whole.sequences, 0, -1):
        if whole.sequences % sequences == 0:
            yield replace(whole, passes=min(2, num_sequences // sequences), sequences=sequences)
    yield replace(_least(whole), width=whole.width)


def _least(whole: Extent) -> Extent:
    """The least that is measured."""
    passes = min(2, whole.passes * whole.sequences)
    return Extent(passes, 1, min(2, whole.layers), min(MAX_WIDTH, whole.width))


def _part_of(config: RunConfig, extent: Extent, world_size: int) -> RunConfig:
    """The configuration of so much of a step, on `world_size` ranks; heads keep about their size."""
    heads = config.model.heads if extent.width == config.model.width else 1
    model = replace(config.model, layers=extent.layers, width=extent.width, heads=heads)
    batch = extent.passes * extent.sequences * world_size
    train = replace(config.train, batch_sequences=batch, micro_batch_sequences=extent.sequences)
    return replace(config, model=model, train=train, backend=BackendConfig())


def main() -> None:
    """One process: print the seconds of the first one alone and of all together."""
    config, vocab_size, device = pickle.load(sys.stdin.buffer)
    compute_deterministically()
    with joined_ranks(SECONDS_OF_PROCESSES, device) as ranks:
        alone = step_seconds(config, vocab_size, Ranks(0, 1, ranks.device)) if ranks.is_first else 0.0
        ranks.barrier()
        together = step_seconds(config, vocab_size, ranks) if ranks.world_size > 1 else alone
        if ranks.is_first:
            print(json.dumps([alone, together]), flush=True)
    leave(0)


if __name__ == "__main__":
    main()
