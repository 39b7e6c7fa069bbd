"""`codelength sweep`: train and evaluate every run of a sweep file, and compare them in one table."""

from pathlib import Path
from typing import Any

from eval.report.run_tables import flat_record, load_reports
from eval.show.blocks import Block, to_csv, to_markdown, to_rich
from eval.show.cells import checked, verdict
from harness.errors import RunFailure, UsageError
from harness.files import write_file
from launch.sweeps.compare import compare
from launch.sweeps.states import check_finished, finish_runs, state_of
from launch.sweeps.sweep_file import Run, Sweep, read_sweep

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
    "other sizes: the file with weights and coded text; verified: a fresh process decoded it, compared by SHA-256, or "
    "ideal: there is no file, the text counts as the sum of its ideal code lengths.",
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
        emphasised_rows=[False] * len(rows),
        notes=[f"all runs: {sweep.config_path} {' '.join(sweep.common)}".rstrip()],
    )
    print(to_rich([block], None), end="")


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
    is_best = [rate is not None and rate == min(r for r in rates if r is not None) for rate in rates]
    block = Block(
        title=f"Sweep {sweep.name}: {len(runs)} of {len(sweep.runs)} runs",
        header=[*sweep.axes, *_COLUMNS, "verified", "best"],
        is_number=[False] * len(sweep.axes) + [True] * len(_COLUMNS) + [False] * 2,
        rows=[_cells(run, record, best) for run, record, best in zip(runs, records, is_best, strict=True)],
        emphasised_rows=is_best,
        notes=_NOTES,
    )
    write_file(sweep.directory / "table.md", to_markdown([block]).encode())
    rows = [
        {f"axis_{axis}": label for axis, label in zip(sweep.axes, run.labels, strict=True)} | record | {"is_best": best}
        for run, record, best in zip(runs, records, is_best, strict=True)
    ]
    write_file(sweep.directory / "table.csv", to_csv(rows).encode())
    print(to_rich([block], None), end="")
    print(f"table.md, table.csv, logs and run directories are in {sweep.directory}", flush=True)


def _cells(run: Run, record: dict[str, Any], best: bool) -> list[str]:
    values = [(record[key], form) for key, form in _COLUMNS.values()]
    cells = ["" if value is None else format(value, form) for value, form in values]
    return [*run.labels, *cells, verdict(checked(record)), "best" if best else ""]
