"""Seconds of a training step on this machine, measured on steps of the configured model.

A step that would take too long is measured on less of it: fewer sequences, two blocks, and a width of at most
`MAX_WIDTH`. Both of its halves, the passes through the model and the update of the weights, are then longer by their
own operations. `python -m launch.plan.pace` is one process of a measurement in several.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from harness.backends.base import BackendConfig
from harness.config.run import RunConfig, config_from, settings_of
from harness.errors import RunFailure
from harness.learner import Learner
from harness.machine.children import num_cores
from harness.machine.hardware import compute_deterministically, matmul_flops, resolve_precision
from harness.machine.ranks import Ranks, joined_ranks, leave
from harness.run.pace import freeze_learning_rates, seconds_of_a_step
from launch.jobs.queue import last_words
from launch.jobs.torchrun import rank_environments, start_rank
from launch.plan.memory import count_parameters

MAX_WIDTH = 512
# About as long may a measured step be, and all steps after the first.
SECONDS = 1.0
# Share of the rate of matrix products that steps have at least, to know beforehand how long one is.
USUAL_FRACTION = 0.3
SECONDS_OF_PROCESSES = 60.0


@dataclass(frozen=True, slots=True)
class Extent:
    """The part of a step that is timed."""

    passes: int
    """Through the model on each rank, forward and backward."""
    sequences: int
    """Of each pass."""
    layers: int
    width: int


def measured_step_seconds(config: RunConfig, vocab_size: int, processes: int) -> float:
    """Measure the seconds of a step in `processes` processes on this machine's CPU, with DDP between them.

    Raises RunFailure where they fail.
    """
    if processes == 1:
        compute_deterministically()
        return step_seconds(config, vocab_size, Ranks(0, 1, torch.device("cpu")))
    cores = num_cores()
    # More processes than cores take turns.
    running = max(n for n in range(1, min(processes, cores) + 1) if config.train.batch_sequences % n == 0)
    return seconds_in_processes(config, vocab_size, running, "cpu")[1]


def seconds_in_processes(config: RunConfig, vocab_size: int, processes: int, device: str) -> tuple[float, float]:
    """Measure the seconds of a step of one process alone, and of `processes` together; `device` is as in the settings.

    Raises RunFailure where they fail.
    """
    paths = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    settings = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"), "PYTHONPATH": paths}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    command = [sys.executable, "-m", "launch.plan.pace"]
    # PyTorch's compiler, which DDP imports, makes a folder for what is compiled.
    with tempfile.TemporaryDirectory() as temporary, rank_environments(processes) as environments:
        settings["TMPDIR"] = temporary
        ranks = [start_rank(command, environment | settings, **pipes) for environment in environments]
        try:
            for process in ranks:
                assert process.stdin is not None
                process.stdin.write(json.dumps([settings_of(config), vocab_size, device]).encode() + b"\n")
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
    """Measure the seconds of a step of these ranks, which call it together."""
    dtype = resolve_precision(config.train.precision, ranks.device)
    affordable = SECONDS * USUAL_FRACTION * min(ranks.gather(matmul_flops(dtype, ranks.device)))
    sequences = config.train.micro_batch(ranks.world_size)
    rank_sequences = config.train.batch_sequences // ranks.world_size
    whole = Extent(rank_sequences // sequences, sequences, config.model.layers, config.model.width)

    def work(extent: Extent) -> tuple[float, float]:
        """Operations of passes and of update on a rank; AdamW's few count where Muon has none."""
        parameters = count_parameters(_part_of(config, extent, ranks.world_size), vocab_size)
        tokens = extent.passes * extent.sequences * config.model.context
        return parameters.flops_per_token * tokens, parameters.muon_flops / ranks.world_size or parameters.total

    part = next((extent for extent in _shrinking(whole) if sum(work(extent)) <= affordable), _least(whole))
    learner = Learner(_part_of(config, part, ranks.world_size), vocab_size, ranks, dtype)
    try:
        measured = _halves_of_a_step(learner, ranks)
    finally:
        learner.backend.close()
    return sum(seconds * all_ / own for seconds, all_, own in zip(measured, work(whole), work(part), strict=True))


def _halves_of_a_step(learner: Learner, ranks: Ranks) -> tuple[float, float]:
    """Seconds of the passes through a model and of the update of its weights."""
    freeze_learning_rates(learner.optimizer)
    updates_at: list[float] = []
    learner.optimizer.parts[0].register_step_pre_hook(lambda *_: updates_at.append(time.perf_counter()))
    halves: list[tuple[float, float]] = []

    def step() -> None:
        start = time.perf_counter()
        learner.dry_step()
        if ranks.device.type == "cuda":
            torch.cuda.synchronize(ranks.device)
        halves.append((updates_at[-1] - start, time.perf_counter() - updates_at[-1]))

    seconds_of_a_step(step, ranks, SECONDS)
    # The first one warms up.
    passes, update = zip(*(halves[1:] or halves), strict=True)
    return statistics.median(passes), statistics.median(update)


def _shrinking(whole: Extent) -> Iterator[Extent]:
    """All of a step, then less and less."""
    yield whole
    for sequences in range(whole.sequences, 0, -1):
        if whole.sequences % sequences == 0:
            yield replace(whole, passes=1, sequences=sequences)
    yield replace(_least(whole), width=whole.width)


def _least(whole: Extent) -> Extent:
    """The least that is measured."""
    return Extent(1, 1, min(2, whole.layers), min(MAX_WIDTH, whole.width))


def _part_of(config: RunConfig, extent: Extent, world_size: int) -> RunConfig:
    """The configuration of so much of a step, on `world_size` ranks; heads keep about their size."""
    heads = config.model.heads if extent.width == config.model.width else 1
    model = replace(config.model, layers=extent.layers, width=extent.width, heads=heads)
    batch = extent.passes * extent.sequences * world_size
    train = replace(config.train, batch_sequences=batch, micro_batch_sequences=extent.sequences)
    return replace(config, model=model, train=train, backend=BackendConfig())


def main() -> None:
    """Time steps in one of the processes; the first prints the seconds of itself alone and of all together."""
    settings, vocab_size, device = json.loads(sys.stdin.readline())
    config = config_from(settings)
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
