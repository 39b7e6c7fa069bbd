"""`codelength study`: experiments on how learning goes: teacher and students, learnt policies, learnt orders."""

import json
import os
import sys
from argparse import Namespace
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import RunFailure, UsageError
from launch.commands.options import AddCommand, add_config, natural, positive

if TYPE_CHECKING:
    from eval.studies.kinds import Kind

# Longer than any step of a rank.
_TIMEOUT_SECONDS = 1800.0


def register(command: AddCommand) -> None:
    """Add the flags of this command."""
    sub = command(
        "study", study_command, "teacher and students, learnt policies or orders: see `kind` in CONFIG; goes on"
    )
    sub.add_argument("--at-a-time", type=positive, default=1, metavar="N", help="jobs at a time (default: 1)")
    sub.add_argument("--index", type=natural, metavar="I", help="only job I, counted from 0, as in a job array")
    sub.add_argument("--processes", type=positive, default=1, metavar="N", help="processes of a job of kind policy")
    add_config(sub)


def study_command(options: Namespace) -> int:
    """Run what is not finished of the study, then write and print the table; returns the exit status."""
    from eval.studies.kinds import KINDS
    from harness.config.written import chosen_value, load_settings

    name = chosen_value("kind", options.config, options.overrides)
    if name not in KINDS:
        raise UsageError(f"kind={name}: unknown kind of study; use one of {', '.join(KINDS)}")
    kind = KINDS[str(name)]
    config: Any = load_settings(kind.settings, options.config, options.overrides)
    jobs = kind.jobs(config)
    if options.index is not None and options.index >= len(jobs):
        raise UsageError(f"--index {options.index}: the jobs of {config.name} are 0 to {len(jobs) - 1}")
    if kind.most_processes and options.processes > kind.most_processes:
        raise UsageError(f"--processes {options.processes}: only for kind=policy; use --at-a-time")
    is_rank = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if not is_rank:
        lines = kind.check(config, options.processes)
        _open_directory(kind, config)
        if options.index is None:
            print("\n".join(lines), end="\n" * bool(lines), flush=True)
            return _all_jobs(kind, config, options)
        if options.processes > 1:
            from launch.jobs.torchrun import run_here

            return run_here(
                "launch",
                ["study", options.config, *options.overrides, *_one(options.index, options)],
                options.processes,
            )
    _work(kind, config, jobs[options.index])
    return 0


def _one(index: int, options: Namespace) -> list[str]:
    return ["--index", str(index), "--processes", str(options.processes)]


def _open_directory(kind: "Kind", config: Any) -> None:
    """Make the directory, or check that what lies there belongs to the same study."""
    from harness.config.run import dump_config
    from harness.config.written import chosen_value, load_settings
    from harness.files import write_file, write_json
    from harness.machine.hardware import environment
    from harness.machine.ranks import choose_device
    from harness.run.directory import CONFIG_FILE, ENVIRONMENT_FILE

    # A device that is not there is refused before anything is written.
    device = choose_device(getattr(config, "device", "cpu"), "device")
    directory: Path = config.directory
    saved = directory / CONFIG_FILE
    if saved.exists():
        before = chosen_value("kind", str(saved), [])
        if before != config.kind:
            raise UsageError(f"{directory}: holds results of kind={before}; set name=... for a new study")
        old, new = (_deciding(kind, one) for one in (load_settings(kind.settings, saved, []), config))
        changes = [f"{key}: {old[key]} -> {new[key]}" for key in old if old[key] != new[key]]
        if changes:
            raise UsageError(
                f"{directory}: holds results of another configuration ({'; '.join(changes)}); set name=... for a new "
                "study"
            )
        return
    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / ENVIRONMENT_FILE, environment(1, device))
    write_file(saved, dump_config(config).encode())


def _deciding(kind: "Kind", config: Any) -> dict[str, str]:
    return {key: json.dumps(value) for key, value in asdict(config).items() if key not in kind.free_keys}


def _work(kind: "Kind", config: Any, job: tuple) -> None:
    """One job, in this process, with one thread, or one rank of it."""
    import torch

    from harness.machine.hardware import compute_deterministically
    from harness.machine.ranks import joined_ranks

    torch.set_num_threads(1)
    compute_deterministically()
    with joined_ranks(_TIMEOUT_SECONDS, getattr(config, "device", "cpu")) as ranks:
        kind.measure(config, ranks, *job)


def _all_jobs(kind: "Kind", config: Any, options: Namespace) -> int:
    """Run what is not finished, each job in a process of its own, and write the results."""
    from launch.jobs.queue import Job, JobQueue

    base = [sys.executable, "-m", "launch", "study", options.config, *options.overrides]
    jobs = kind.jobs(config)

    def job(index: int, values: tuple) -> Job:
        name, command = "_".join(map(str, values)), [*base, *_one(index, options)]
        return Job(
            name=name,
            log_path=config.directory / f"{name}.log",
            next_command=lambda: None if kind.is_measured(config, *values) else command,
        )

    todo = [job(index, values) for index, values in enumerate(jobs) if not kind.is_measured(config, *values)]
    if len(todo) < len(jobs):
        print(f"{len(jobs) - len(todo)} of {len(jobs)} jobs are finished already", flush=True)
    threads = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    failures = JobQueue(todo, [threads] * options.at_a_time).run()
    print(kind.write_results(config) or "", end="")
    if failures:
        raise RunFailure("\n".join(f"{name}: {line}" for name, line in failures.items()))
    return 0
