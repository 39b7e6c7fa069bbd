"""After a sweep: methods against data sets. The best are repeated, the very best written as files, and all is drawn."""

from eval.report.comparison import Entry, best_of, column_block, summary_block, winners
from eval.report.comparison_figures import heldout_figure, totals_figure
from eval.report.record import flat_record, load_reports
from eval.show.blocks import render
from harness.files import write_file
from launch.sweeps.states import check_finished, finish_runs
from launch.sweeps.sweep_file import Run, Sweep, repeated, with_file

Labelled = list[tuple[str, Run]]
"""Runs with the labels of their methods."""


def compare(sweep: Sweep, at_a_time: int, processes: int) -> list[str]:
    """Repeat the best runs with other seeds, code the best of all as files, then write tables and pictures.

    No run of the sweep must have failed. Returns a line per run that has failed since; raises Paused where one was
    stopped.
    """
    check_finished(list(sweep.runs))
    runs = [(sweep.method(run), run) for run in sweep.runs]
    repetitions = [
        (f"{label}, seed {seed}", repeated(sweep, run, seed))
        for label, run in (_run_of(sweep, runs, best) for best in winners(_entries(sweep, runs)))
        for seed in sweep.compared.seeds
    ]
    again = [run for _, run in repetitions]
    if failures := finish_runs(sweep, again, at_a_time, processes):
        return failures
    check_finished(again)
    runs += repetitions
    # A file's data are a little longer or shorter than the ideal ones, so that another run may be the best after it.
    while ideal := [best for best in _best_of_columns(sweep, runs) if best.record["is_ideal"]]:
        files = [with_file(sweep, _run_of(sweep, runs, best)[1]) for best in ideal]
        if failures := finish_runs(sweep, files, at_a_time, processes):
            return failures
        check_finished(files)
    _write(sweep, _entries(sweep, runs))
    return []


def _best_of_columns(sweep: Sweep, runs: Labelled) -> list[Entry]:
    return [best_of(entries) for entries in _by_column(_entries(sweep, runs)).values()]


def _run_of(sweep: Sweep, runs: Labelled, entry: Entry) -> tuple[str, Run]:
    return next((label, run) for label, run in runs if (label, sweep.column(run)) == (entry.label, entry.column))


def _entries(sweep: Sweep, runs: Labelled) -> list[Entry]:
    entries = []
    for label, run in runs:
        (report,) = load_reports([run.config.run_dir])
        entries.append(Entry(sweep.column(run), label, flat_record(report)))
    return entries


def _by_column(entries: list[Entry]) -> dict[str, list[Entry]]:
    columns: dict[str, list[Entry]] = {}
    for entry in entries:
        columns.setdefault(entry.column, []).append(entry)
    return columns


def _write(sweep: Sweep, entries: list[Entry]) -> None:
    columns = _by_column(entries)
    blocks = [summary_block(entries, sweep.compared.published)]
    blocks += [column_block(column, own) for column, own in columns.items()]
    write_file(sweep.directory / "comparison.md", render(blocks, [], "md").encode())
    for column, own in columns.items():
        totals_figure(sweep.directory / f"total-{column}.png", column, own)
    heldout_figure(sweep.directory / "heldout.png", entries)
    print(render(blocks, [], "rich"), end="")
    print(f"comparison.md, total-*.png and heldout.png are in {sweep.directory}", flush=True)
