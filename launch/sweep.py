"""`codelength sweep`: train and evaluate every run of a sweep file, and compare them in one table."""

import csv
import fcntl
import io
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from eval.container import write_atomically
from eval.markup import Block, to_markdown, to_rich
from eval.offline import REPORT_FILE
from eval.table import flat_record, load_reports
from harness.config import changed_keys, config_sha256
from harness.data import data_directory, prepare_data
from harness.errors import RunFailure, UsageError
from harness.rundir import CONFIG_FILE, is_done, load_run_config
from launch.grid import Run, Sweep, read_sweep
from launch.jobs import Job, JobQueue

_COLUMNS = {
    "online bits/byte": ("online_ideal_bits_per_byte", ".3f"),
    "parameters": ("parameters", ",.0f"),
    "non-zeros": ("nonzeros", ",.0f"),
    "model bytes": ("model_bytes", ",.0f"),
    "data bytes": ("data_bytes", ",.0f"),
    "total bytes": ("total_bytes", ",.0f"),
    "bits/byte": ("total_bits_per_byte", ".3f"),
}
"""Header, key of the flat record, and format."""
_NOTES = [
    "online: the ideal code of the training corpus, the area under the loss curve; not a file.",
    "other sizes: the file with weights and coded text; verified: a fresh process decoded it, compared by SHA-256.",
    "best: the smallest bits/byte of that file.",
]


def sweep(path: Path, overrides: list[str], at_a_time: int, processes: int, index: int | None) -> None:
    """Run what is not finished of the sweep, or of its run number `index` alone; then write and print the table.

    Raises UsageError before anything starts, and RunFailure with a line per failed run.
    """
    grid = read_sweep(path, overrides)
    runs = chosen_runs(grid, index)
    failures = finish_runs(grid, runs, min(at_a_time, len(runs)), processes)
    finished = [run for run in grid.runs if state_of(run) == "done"]
    if finished and (index is None or len(finished) == len(grid.runs)):
        _write_table(grid, finished)
    if failures:
        raise RunFailure("\n".join(failures))


def finish_runs(grid: Sweep, runs: list[Run], at_a_time: int, processes: int) -> list[str]:
    """Train and evaluate what is not finished of `runs`; returns a line per failed run.

    Raises UsageError before anything starts.
    """
    _check_processes(runs, processes)
    environments = slot_environments(at_a_time, processes, torch.cuda.device_count())
    todo = [run for run in runs if state_of(run) != "done"]
    if len(todo) < len(runs):
        print(f"{len(runs) - len(todo)} of {len(runs)} runs are finished already", flush=True)
    if todo:
        _prepare_data(todo)
    jobs = [_job(grid, run, processes, at_a_time) for run in todo]
    failures = JobQueue(jobs, environments).run()
    return [f"{run}: {line} (see {_log_path(grid, run)})" for run, line in failures.items()]


def describe(path: Path, overrides: list[str], index: int | None) -> None:
    """Print the runs with their settings and states, without running anything."""
    grid = read_sweep(path, overrides)
    runs = chosen_runs(grid, index)
    rows = [[str(grid.runs.index(run)), run.name, state_of(run), " ".join(run.settings)] for run in runs]
    block = Block(
        title=f"Sweep {grid.name}: {len(grid.runs)} runs in {grid.directory}",
        header=["index", "run", "state", "settings"],
        is_number=[True, False, False, False],
        rows=rows,
        emphasised_rows=[False] * len(rows),
        notes=[f"all runs: {grid.config_path} {' '.join(grid.common)}".rstrip()],
    )
    print(to_rich([block], None), end="")


def chosen_runs(grid: Sweep, index: int | None) -> list[Run]:
    """All runs, or run number `index`, counted from 0; raises UsageError where there is none."""
    if index is None:
        return list(grid.runs)
    if index >= len(grid.runs):
        raise UsageError(f"--index {index}: the runs of {grid.name} are 0 to {len(grid.runs) - 1}")
    return [grid.runs[index]]


def state_of(run: Run) -> str:
    """`new`, `started`, `trained`, `done` (evaluated too), or `changed`: its directory holds another configuration."""
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
        # The evaluation may be repeated with other settings; training may not.
        saved.eval = run.config.eval
        is_evaluated = report["config_sha256"] == config_sha256(saved)
    except (OSError, ValueError, KeyError, TypeError):
        is_evaluated = False
    return "done" if is_evaluated else "trained"


def slot_environments(at_a_time: int, processes: int, num_gpus: int) -> list[dict[str, str]]:
    """What each slot adds to the environment: one thread a process, and GPUs of its own where there are GPUs.

    Raises UsageError where there are too few GPUs.
    """
    threads = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    if not num_gpus:
        return [threads] * at_a_time
    if num_gpus < at_a_time * processes:
        raise UsageError(
            f"--at-a-time {at_a_time} --processes {processes}: needs {at_a_time * processes} GPUs and there are "
            f"{num_gpus}; lower one of them"
        )
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(num_gpus)))).split(",")
    shares = [gpus[slot * processes : (slot + 1) * processes] for slot in range(at_a_time)]
    return [threads | {"CUDA_VISIBLE_DEVICES": ",".join(share)} for share in shares]


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
        directory.parent.mkdir(parents=True, exist_ok=True)
        # Tasks of a job array start together; one of them prepares and the others wait.
        with (directory.parent / ".prepare.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not directory.exists():
                print(f"data     {directory}", flush=True)
            prepare_data(config)


def _job(grid: Sweep, run: Run, processes: int, at_a_time: int) -> Job:
    codelength = [sys.executable, "-m", "launch"]
    train = [*codelength, "train", "--processes", str(processes), str(grid.config_path), *run.overrides]
    settings = [f"eval.{key}={json.dumps(value)}" for key, value in asdict(run.config.eval).items()]
    threads = max(1, len(os.sched_getaffinity(0)) // at_a_time)
    evaluate = [*codelength, "eval", "--quiet", "--threads", str(threads), str(run.config.run_dir), *settings]

    def next_command() -> list[str] | None:
        return {"done": None, "trained": evaluate}.get(state_of(run), train)

    return Job(name=run.name, log_path=_log_path(grid, run.name), next_command=next_command)


def _log_path(grid: Sweep, run_name: str) -> Path:
    return grid.directory / f"{run_name}.log"


def _write_table(grid: Sweep, runs: list[Run]) -> None:
    records = [flat_record(load_reports([run.config.run_dir])[0]) for run in runs]
    rates = [record["total_bits_per_byte"] for record in records]
    is_best = [rate is not None and rate == min(r for r in rates if r is not None) for rate in rates]
    block = Block(
        title=f"Sweep {grid.name}: {len(runs)} of {len(grid.runs)} runs",
        header=[*grid.axes, *_COLUMNS, "verified", "best"],
        is_number=[False] * len(grid.axes) + [True] * len(_COLUMNS) + [False] * 2,
        rows=[_cells(run, record, best) for run, record, best in zip(runs, records, is_best, strict=True)],
        emphasised_rows=is_best,
        notes=_NOTES,
    )
    write_atomically(grid.directory / "table.md", to_markdown([block]).encode())
    rows = [
        {f"axis_{axis}": label for axis, label in zip(grid.axes, run.labels, strict=True)} | record | {"is_best": best}
        for run, record, best in zip(runs, records, is_best, strict=True)
    ]
    write_atomically(grid.directory / "table.csv", _csv(rows).encode())
    print(to_rich([block], None), end="")
    print(f"table.md, table.csv, logs and run directories are in {grid.directory}", flush=True)


def _cells(run: Run, record: dict[str, Any], best: bool) -> list[str]:
    values = [(record[key], form) for key, form in _COLUMNS.values()]
    cells = ["" if value is None else format(value, form) for value, form in values]
    return [*run.labels, *cells, "yes" if record["verified"] else "NO", "best" if best else ""]


def _csv(rows: list[dict[str, Any]]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()
