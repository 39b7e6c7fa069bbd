"""After a sweep over a text of several parts: what each part takes under each setting, and when it was read."""

import statistics

from eval.report.parts import part_records, plot_parts
from eval.show.blocks import render
from eval.show.cells import Column, Record, count, decimal, in_words, new_block
from harness.files import write_file
from launch.sweeps.sweep_file import Run, Sweep

SEED_AXIS = "seed"
_NOTES = [
    "Means over seeds, in bits/byte of the online code; ideal: sums over the ledger's tokens; not files. all: with the "
    "bytes that the order of the documents takes in a file.",
    "Held out: the final float32 weights, in sequences.",
]


def write_parts(sweep: Sweep, runs: list[Run]) -> None:
    """Write and print the table of parts, a row for each setting, and draw the first run of each.

    Nothing where no run's text has parts.
    """
    groups: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        if run.config.corpus.part_names:
            axes = zip(sweep.axes, run.labels, strict=True)
            groups.setdefault(tuple(label for axis, label in axes if axis != SEED_AXIS), []).append(run)
    if not groups:
        return
    rows = [_row(sweep, labels, own) for labels, own in groups.items()]
    names = list(dict.fromkeys(name for own in groups.values() for name in own[0].config.corpus.part_names))
    columns: list[Column] = [
        *((axis, f"axis_{axis}", in_words) for axis in _axes(sweep)),
        ("runs", "runs", count),
        *((name, f"{name}_bits_per_byte", decimal) for name in names),
        ("all", "bits_per_byte", decimal),
        ("±", "bits_per_byte_deviation", decimal),
        ("order, bytes", "order_bytes", count),
        *((f"{name} held out", f"{name}_heldout_bits_per_byte", decimal) for name in names),
    ]
    tables = [new_block(f"Sweep {sweep.name}: parts of the text", columns, rows, _NOTES)]
    write_file(sweep.directory / "parts.md", render(tables, rows, "md").encode())
    write_file(sweep.directory / "parts.csv", render(tables, rows, "csv").encode())
    for own in groups.values():
        plot_parts(own[0].config.run_dir, sweep.directory / f"parts-{own[0].name}.png")
    print(render(tables, rows, "rich"), end="")
    print(f"parts.md, parts.csv and parts-*.png are in {sweep.directory}", flush=True)


def _row(sweep: Sweep, labels: tuple[str, ...], runs: list[Run]) -> Record:
    """Means over runs that differ in their seeds alone."""
    by_part: dict[str, list[Record]] = {}
    for run in runs:
        for record in part_records(run.config.run_dir):
            by_part.setdefault(record["part"], []).append(record)
    whole = by_part.pop("all")
    rates = [record["online_bits_per_byte"] for record in whole]
    row: Record = {f"axis_{axis}": label for axis, label in zip(_axes(sweep), labels, strict=True)}
    row |= {
        "runs": len(runs),
        "bits_per_byte": statistics.mean(rates),
        "bits_per_byte_deviation": statistics.stdev(rates) if len(rates) > 1 else None,
        "order_bytes": _mean(whole, "order_bytes") or None,
        "heldout_bits_per_byte": _mean(whole, "heldout_bits_per_byte"),
    }
    for name, records in by_part.items():
        row[f"{name}_bits_per_byte"] = _mean(records, "online_bits_per_byte")
        row[f"{name}_heldout_bits_per_byte"] = _mean(records, "heldout_bits_per_byte")
    return row


def _mean(records: list[Record], key: str) -> float | None:
    values = [record[key] for record in records]
    return None if None in values else statistics.mean(values)


def _axes(sweep: Sweep) -> list[str]:
    return [axis for axis in sweep.axes if axis != SEED_AXIS]
