"""The kinds of studies behind one command: settings, jobs and results of each."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.studies.config import OrderConfig, PolicyConfig
from eval.teacher.experiment import TeacherConfig, all_jobs
from harness.machine.ranks import Ranks


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """What the command does with a study of a kind; a job is a tuple of values."""

    settings: type
    """Dataclass of its configuration."""
    free_keys: tuple[str, ...]
    """Settings that change no point: others only add some."""
    jobs: Callable[[Any], list[tuple]]
    is_measured: Callable[..., bool]
    """Configuration and a job's values -> whether it is finished."""
    measure: Callable[..., None]
    """Configuration, ranks and a job's values: does it, or goes on with it."""
    write_results: Callable[[Any], str | None]
    """Write table, CSV and figures; returns the table for a terminal, None where nothing is finished."""
    check: Callable[[Any, int], list[str]]
    """Configuration and number of processes -> lines to say before anything starts; raises UsageError."""
    most_processes: int | None = None
    """None: any number."""


def _write_teacher(config: TeacherConfig) -> str | None:
    from eval.teacher.figures import draw_totals
    from eval.teacher.points import read_points
    from eval.teacher.tables import blocks, point_records

    return _written(
        config.directory,
        read_points(config),
        (lambda points: blocks(points, config.is_published), point_records),
        lambda points: draw_totals(config.directory / "totals.png", points),
        "; a file decodes with\n  python -m eval.teacher.decode FILE.cl -o T",
    )


def _measure_teacher(config: TeacherConfig, ranks: Ranks, method: str, loss: str) -> None:
    from eval.teacher.points import measure

    measure(config, method, loss)


def _teacher_is_measured(config: TeacherConfig, method: str, loss: str) -> bool:
    from eval.teacher.points import is_measured

    return is_measured(config, method, loss)


def _measure_policy(config: PolicyConfig, ranks: Ranks, *job: int) -> None:
    from eval.studies.policy import measure_policy

    measure_policy(config, ranks, *job)


def _policy_is_measured(config: PolicyConfig, *job: int) -> bool:
    from eval.studies.policy import point_path

    return point_path(config, *job).exists()


def _check_policy(config: PolicyConfig, processes: int) -> list[str]:
    from eval.studies.sets import memory_lines

    return memory_lines(config, processes)


def _write_policy(config: PolicyConfig) -> str | None:
    from eval.studies.figures import draw_policies
    from eval.studies.policy import read_points
    from eval.studies.tables import policy_blocks, policy_records

    return _written(
        config.directory,
        read_points(config),
        (policy_blocks, policy_records),
        lambda points: draw_policies(config.directory, points),
        ", policies for train.policy=FILE in policies/",
    )


def _measure_order(config: OrderConfig, ranks: Ranks, labels: str, seed: int) -> None:
    from eval.studies.order import measure_order

    measure_order(config, ranks, labels, seed)


def _order_is_measured(config: OrderConfig, labels: str, seed: int) -> bool:
    from eval.studies.order import point_path

    return point_path(config, labels, seed).exists()


def _write_order(config: OrderConfig) -> str | None:
    from eval.studies.figures import draw_orders
    from eval.studies.order import read_points
    from eval.studies.tables import order_blocks, order_records

    return _written(
        config.directory,
        read_points(config),
        (order_blocks, order_records),
        lambda points: draw_orders(config.directory / "orders.png", points),
    )


def _written(
    directory: Path, points: list, shown: tuple[Callable, Callable], draw: Callable[[list], None], remark: str = ""
) -> str | None:
    """Write what people and programs read of `points`; returns the table for a terminal, None without any point.

    `shown` makes blocks of a table and records of points.
    """
    from eval.show.blocks import render
    from harness.files import write_file

    if not points:
        return None
    table, records = (make(points) for make in shown)
    write_file(directory / "table.md", render(table, records, "md").encode())
    write_file(directory / "points.csv", render(table, records, "csv").encode())
    draw(points)
    return f"{render(table, records, 'rich')}table.md, points.csv and figures are in {directory}{remark}\n"


KINDS = {
    "teacher": Kind(
        settings=TeacherConfig,
        free_keys=("name", "runs_dir", "methods", "losses", "targets"),
        jobs=all_jobs,
        is_measured=_teacher_is_measured,
        measure=_measure_teacher,
        write_results=_write_teacher,
        check=lambda config, processes: [],
        most_processes=1,
    ),
    "policy": Kind(
        settings=PolicyConfig,
        free_keys=("name", "runs_dir", "examples", "steps", "seeds", "max_memory_bytes"),
        jobs=PolicyConfig.jobs,
        is_measured=_policy_is_measured,
        measure=_measure_policy,
        write_results=_write_policy,
        check=_check_policy,
    ),
    "order": Kind(
        settings=OrderConfig,
        free_keys=("name", "runs_dir", "seeds"),
        jobs=OrderConfig.jobs,
        is_measured=_order_is_measured,
        measure=_measure_order,
        write_results=_write_order,
        check=lambda config, processes: [],
        most_processes=1,
    ),
}
