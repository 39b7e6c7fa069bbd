"""The runs of a sweep: what is finished of them, and finishing the rest, each in processes of its own."""

import json
import os
import sys
from dataclasses import asdict, replace
from pathlib import Path

import torch

from eval.offline.evaluate import REPORT_FILE
from harness.config.run import changed_keys, config_sha256
from harness.config.settings import setting
from harness.corpus.prepared import data_directory, prepare_data
from harness.errors import Paused, UsageError
from harness.machine.children import num_cores
from harness.machine.stop import PAUSE_SIGNAL, interruptible
from harness.run.directory import CONFIG_FILE, is_done, load_run_config
from launch.jobs.queue import Job, JobQueue
from launch.sweeps.sweep_file import Run, Sweep


def finish_runs(sweep: Sweep, runs: list[Run], at_a_time: int, processes: int) -> list[str]:
    """Train and evaluate what is not finished of `runs`; returns a line per failed run.

    Raises UsageError before anything starts.
    """
    _check_processes(runs, processes)
    on_cpu = all(run.config.backend.device == "cpu" for run in runs)
    environments = slot_environments(at_a_time, processes, 0 if on_cpu else torch.cuda.device_count())
    todo = [run for run in runs if state_of(run) != "done"]
    if len(todo) < len(runs):
        print(f"{len(runs) - len(todo)} of {len(runs)} runs are finished already", flush=True)
    if todo:
        _prepare_data(todo)
    jobs = [_job(sweep, run, processes, at_a_time) for run in todo]
    failures = JobQueue(jobs, environments).run()
    return [f"{run}: {line} (see {_log_path(sweep, run)})" for run, line in failures.items()]


def check_finished(runs: list[Run]) -> None:
    """Check that every run is finished; raises Paused with a line for each that was asked to stop."""
    lines = [f"{run.name}: stopped; the same command goes on" for run in runs if state_of(run) != "done"]
    if lines:
        raise Paused("\n".join(lines))


def state_of(run: Run) -> str:
    """Tell a run's state: `new`, `started`, `trained`, `done` (evaluated too), or `changed` (another configuration)."""
    run_dir = run.config.run_dir
    if not (run_dir / CONFIG_FILE).exists():
        return "new"
    try:
        saved = load_run_config(run_dir)
    except UsageError:
        return "started"
    if changed_keys(saved, run.config):
        return "changed"
    if not is_done(run_dir):
        return "started"
    try:
        report = json.loads((run_dir / REPORT_FILE).read_text(encoding="utf-8"))
        # The evaluation may be repeated with other settings; training may not. A file is more than was asked for
        # where ideal lengths were.
        wanted = [replace(run.config.eval, ideal=ideal) for ideal in {run.config.eval.ideal, False}]
        accepted = {config_sha256(replace(saved, eval=settings)) for settings in wanted}
        is_evaluated = report["config_sha256"] in accepted
    except (OSError, ValueError, KeyError, TypeError):
        is_evaluated = False
    return "done" if is_evaluated else "trained"


def slot_environments(at_a_time: int, processes: int, num_gpus: int) -> list[dict[str, str]]:
    """Make what each slot adds to the environment: one thread a process, and its own GPUs where there are GPUs.

    Raises UsageError where there are too few GPUs.
    """
    threads = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    if not num_gpus:
        return [threads] * at_a_time
    if num_gpus < at_a_time * processes:
        raise UsageError(
            f"--at-a-time {at_a_time} --processes {processes}: needs {at_a_time * processes} GPUs and there are "
            f"{num_gpus}, one a process; lower one of them, or set backend.device=cpu"
        )
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(num_gpus)))).split(",")
    parts = [gpus[slot * processes : (slot + 1) * processes] for slot in range(at_a_time)]
    return [threads | {"CUDA_VISIBLE_DEVICES": ",".join(part)} for part in parts]


def _check_processes(runs: list[Run], processes: int) -> None:
    problems = {}
    for run in runs:
        try:
            run.config.train.micro_batch(processes)
        except UsageError as error:
            problems[str(error)] = True
    if problems:
        raise UsageError("\n".join(problems))


def _prepare_data(runs: list[Run]) -> None:
    """Every distinct data set, one after the other; runs that start together only read."""
    for directory, config in {data_directory(run.config): run.config for run in runs}.items():
        if not directory.exists():
            print(f"data     {directory}", flush=True)
        # Tasks of a job array start together; one of them prepares and the others wait.
        with interruptible(PAUSE_SIGNAL):
            prepare_data(config)


def _job(sweep: Sweep, run: Run, processes: int, at_a_time: int) -> Job:
    codelength = [sys.executable, "-m", "launch"]
    train = [*codelength, "train", "--processes", str(processes), str(sweep.config_path), *run.overrides]
    settings = [setting(f"eval.{key}", value) for key, value in asdict(run.config.eval).items()]
    threads = max(1, num_cores() // at_a_time)
    evaluate = [*codelength, "eval", "--quiet", "--threads", str(threads), str(run.config.run_dir), *settings]

    def next_command() -> list[str] | None:
        return {"done": None, "trained": evaluate}.get(state_of(run), train)

    return Job(name=run.name, log_path=_log_path(sweep, run.name), next_command=next_command)


def _log_path(sweep: Sweep, run_name: str) -> Path:
    return sweep.directory / f"{run_name}.log"
