"""`codelength sweep`: train and evaluate every run of a sweep file, and compare them in one table."""

from pathlib import Path

from eval.length import KIND_NOTE
from eval.report.record import flat_record, load_reports, with_kind
from eval.show.blocks import Block, render
from eval.show.cells import KIND, Column, count, decimal, in_words, new_block
from harness.errors import RunFailure, UsageError
from harness.files import write_file
from launch.sweeps.compare import compare
from launch.sweeps.parts import write_parts
from launch.sweeps.states import check_finished, finish_runs, state_of
from launch.sweeps.sweep_file import Run, Sweep, read_sweep

_COLUMNS: list[Column] = [
    ("online bits/byte (ideal)", "online_ideal_bits_per_byte", decimal),
    ("parameters", "parameters", count),
    ("non-zeros", "nonzeros", count),
    ("model bytes", "model_bytes", count),
    ("data bytes", "data_bytes", count),
    ("total bytes", "total_bytes", count),
    ("bits/byte", "total_bits_per_byte", decimal),
    KIND,
    ("best", "best", in_words),
]
_NOTES = [
    "online: the ideal code of the training corpus, the area under the loss curve; not a file.",
    f"other sizes: the file with weights and coded text. {KIND_NOTE}",
    "best: the smallest bits/byte of that file.",
]


def run_sweep(path: Path, overrides: list[str], at_a_time: int, processes: int, index: int | None) -> None:
    """Run what is not finished of the sweep, or of its run number `index` alone; then write and print the table.

    Raises UsageError before anything starts, RunFailure with a line per failed run, and Paused with one per
    stopped run.
    """
    sweep = read_sweep(path, overrides)
    runs = chosen_runs(sweep, index)
    failures = finish_runs(sweep, runs, min(at_a_time, len(runs)), processes)
    finished = [run for run in sweep.runs if state_of(run) == "done"]
    if finished and (index is None or len(finished) == len(sweep.runs)):
        _write_table(sweep, finished)
        write_parts(sweep, finished)
    if sweep.comparison and index is None and not failures:
        failures = compare(sweep, min(at_a_time, len(runs)), processes)
    if failures:
        raise RunFailure("\n".join(failures))
    check_finished(runs)


def describe(path: Path, overrides: list[str], index: int | None) -> None:
    """Print the runs with their settings and states, without running anything."""
    sweep = read_sweep(path, overrides)
    runs = chosen_runs(sweep, index)
    rows = [[str(sweep.runs.index(run)), run.name, state_of(run), " ".join(run.settings)] for run in runs]
    block = Block(
        title=f"Sweep {sweep.name}: {len(sweep.runs)} runs in {sweep.directory}",
        header=["index", "run", "state", "settings"],
        is_number=[True, False, False, False],
        rows=rows,
        notes=[f"all runs: {sweep.config_path} {' '.join(sweep.common)}".rstrip()],
    )
    print(render([block], [], "rich"), end="")


def chosen_runs(sweep: Sweep, index: int | None) -> list[Run]:
    """Select all runs, or run number `index`, counted from 0; raises UsageError where there is none."""
    if index is None:
        return list(sweep.runs)
    if index >= len(sweep.runs):
        raise UsageError(f"--index {index}: the runs of {sweep.name} are 0 to {len(sweep.runs) - 1}")
    return [sweep.runs[index]]


def _write_table(sweep: Sweep, runs: list[Run]) -> None:
    records = [flat_record(load_reports([run.config.run_dir])[0]) for run in runs]
    rates = [record["total_bits_per_byte"] for record in records]
    best = min((rate for rate in rates if rate is not None), default=None)
    axes = {axis: f"axis_{axis}" for axis in sweep.axes}
    rows = [
        dict(zip(axes.values(), run.labels, strict=True)) | record | {"is_best": rate is not None and rate == best}
        for run, record, rate in zip(runs, records, rates, strict=True)
    ]
    shown = [
        with_kind(row) | {"best": "best" if row["is_best"] else "", "is_emphasised": row["is_best"]} for row in rows
    ]
    columns: list[Column] = [*((axis, key, in_words) for axis, key in axes.items()), *_COLUMNS]
    title = f"Sweep {sweep.name}: {len(runs)} of {len(sweep.runs)} runs"
    tables = [new_block(title, columns, shown, _NOTES)]
    write_file(sweep.directory / "table.md", render(tables, rows, "md").encode())
    write_file(sweep.directory / "table.csv", render(tables, rows, "csv").encode())
    print(render(tables, rows, "rich"), end="")
    print(f"table.md, table.csv, logs and run directories are in {sweep.directory}", flush=True)
