"""`codelength teacher`: the teacher-student experiment, a process for each method and loss."""

import json
import os
import sys
from argparse import Namespace
from dataclasses import asdict
from typing import TYPE_CHECKING

from harness.errors import RunFailure, UsageError
from launch.commands.options import AddCommand, natural, positive

if TYPE_CHECKING:
    from eval.teacher.experiment import TeacherConfig

# Settings that change no point: other methods, losses and numbers of targets only add some.
FREE_KEYS = ("name", "runs_dir", "methods", "losses", "targets")


def register(command: AddCommand) -> None:
    """Add the flags of this command."""
    text = "weights and targets of small networks as files: each sparsity rule against the published totals; goes on"
    sub = command("teacher", teacher_command, text)
    sub.add_argument("--at-a-time", type=positive, default=1, metavar="N", help="processes (default: 1)")
    sub.add_argument("--index", type=natural, metavar="I", help="only job I, counted from 0, as in a job array")
    sub.add_argument(
        "overrides", nargs="*", metavar="CONFIG key=value", help="a YAML file (default: no changes), then settings"
    )


def teacher_command(options: Namespace) -> None:
    """Run what is not finished of the experiment, then write and print the table."""
    from eval.teacher.experiment import TeacherConfig, all_jobs
    from harness.config.written import load_settings

    path, overrides = None, list(options.overrides)
    if overrides and "=" not in overrides[0]:
        path = overrides.pop(0)
    config = load_settings(TeacherConfig, path, overrides)
    jobs = all_jobs(config)
    if options.index is not None and options.index >= len(jobs):
        raise UsageError(f"--index {options.index}: the jobs of {config.name} are 0 to {len(jobs) - 1}")
    _open_directory(config)
    if options.index is not None:
        _work(config, *jobs[options.index])
        return
    failures = _run_jobs(config, path, overrides, options.at_a_time)
    _write_results(config)
    if failures:
        raise RunFailure("\n".join(f"{name}: {line}" for name, line in failures.items()))


def _open_directory(config: "TeacherConfig") -> None:
    """Make the directory, or check that what lies there belongs to the same experiment."""
    import torch

    from eval.teacher.experiment import TeacherConfig
    from harness.config.run import dump_config
    from harness.config.written import load_settings
    from harness.files import write_file, write_json
    from harness.machine.hardware import environment
    from harness.run.directory import CONFIG_FILE, ENVIRONMENT_FILE

    saved = config.directory / CONFIG_FILE
    if saved.exists():
        before, after = (_deciding(one) for one in (load_settings(TeacherConfig, saved, []), config))
        changes = [f"{key}: {before[key]} -> {after[key]}" for key in before if before[key] != after[key]]
        if changes:
            raise UsageError(
                f"{config.directory}: holds results of another configuration ({'; '.join(changes)}); set name=... for "
                "a new experiment"
            )
        return
    config.directory.mkdir(parents=True, exist_ok=True)
    write_json(config.directory / ENVIRONMENT_FILE, environment(1, torch.device("cpu")))
    write_file(saved, dump_config(config).encode())


def _deciding(config: "TeacherConfig") -> dict[str, str]:
    return {key: json.dumps(value) for key, value in asdict(config).items() if key not in FREE_KEYS}


def _work(config: "TeacherConfig", method: str, loss: str) -> None:
    """One job, in this process, with one thread."""
    import torch

    from eval.teacher.points import measure
    from harness.machine.hardware import compute_deterministically

    torch.set_num_threads(1)
    compute_deterministically()
    measure(config, method, loss)


def _run_jobs(config: "TeacherConfig", path: str | None, overrides: list[str], at_a_time: int) -> dict[str, str]:
    """Run what is not finished; returns the last error line of the jobs that failed, by name."""
    from eval.teacher.experiment import all_jobs
    from eval.teacher.points import is_measured
    from launch.jobs.queue import Job, JobQueue

    base = [sys.executable, "-m", "launch", "teacher", *([path] if path else []), *overrides]
    jobs = all_jobs(config)

    def job(index: int, method: str, loss: str) -> Job:
        command = [*base, "--index", str(index)]
        return Job(
            name=f"{method}_{loss}",
            log_path=config.directory / f"{method}_{loss}.log",
            next_command=lambda: None if is_measured(config, method, loss) else command,
        )

    todo = [job(i, *names) for i, names in enumerate(jobs) if not is_measured(config, *names)]
    if len(todo) < len(jobs):
        print(f"{len(jobs) - len(todo)} of {len(jobs)} jobs are finished already", flush=True)
    threads = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    return JobQueue(todo, [threads] * at_a_time).run()


def _write_results(config: "TeacherConfig") -> None:
    from eval.show.blocks import render
    from eval.teacher.figures import draw_totals
    from eval.teacher.points import read_points
    from eval.teacher.tables import blocks, point_records
    from harness.files import write_file

    points = read_points(config)
    if not points:
        return
    table, records = blocks(points, config.is_published), point_records(points)
    write_file(config.directory / "table.md", render(table, records, "md").encode())
    write_file(config.directory / "points.csv", render(table, records, "csv").encode())
    draw_totals(config.directory / "totals.png", points)
    print(render(table, records, "rich"), end="")
    print(f"table.md, points.csv, totals.png and archives are in {config.directory}; a file decodes with")
    print("  python -m eval.teacher.decode FILE.cl -o TARGETS")
