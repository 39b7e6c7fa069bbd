"""How many bits a weight is worth: model and text together, from the finest grid to the coarsest."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from eval.offline.evaluate import grid_search, text_to_code
from eval.offline.step_search import Search
from eval.report.run_figures import FIGURES_DIR
from eval.show.blocks import Block, render
from eval.show.cells import Column, Record, count, decimal, new_block
from eval.show.figures import (
    COLOURS,
    LEGEND,
    MEASURED_COLOUR,
    QUIET_COLOUR,
    new_figure,
    save_figure,
    si_prefix,
)
from harness.files import write_file
from harness.run.directory import load_run_config, open_run_data
from harness.units import bits_from_bytes

LOG2_FACTORS = np.arange(-6, 2.5, 0.5)
"""Powers of two on all steps: those between which the best grid is searched, half an octave apart."""
CSV_FILE, FIGURE_FILE = Path("offline") / "precision.csv", Path(FIGURES_DIR) / "precision.png"
_NOTES = [
    "bits/weight: of the coded weights, per weight of the run that is not zero; coarse grids round some more to zero.",
    "data, total: ideal lengths, projected from a sample of the text; model bytes are those of the coded section.",
    "bold: the smallest total. Steps are at most 1.5 times the root mean square of a tensor's non-zero weights.",
]


_CSV_COLUMNS = {
    "step_factor": "factor",
    "bits_per_weight": "bits_per_weight",
    "model_bytes": "model_bytes",
    "ideal_data_bytes": "data_bytes",
    "ideal_total_bytes": "total_bytes",
}
"""Header and key of a record."""


def sweep_precision(run_dir: Path, overrides: list[str], threads: int) -> str:
    """Write offline/precision.csv and figures/precision.png of a trained run; returns the table for a terminal.

    Raises UsageError for a run that cannot be evaluated, and RunFailure where a file cannot be written.
    """
    config = load_run_config(run_dir, overrides)
    data = open_run_data(run_dir, config)
    text = text_to_code(config.eval.split, data)
    records = precision_records(grid_search(run_dir, config, data, text, threads))
    rows = [{name: record[key] for name, key in _CSV_COLUMNS.items()} for record in records]
    tables = [_block(f"Bits a weight of {config.name}, for {len(text):,} bytes of {config.eval.split}", records)]
    (run_dir / CSV_FILE).parent.mkdir(exist_ok=True)
    write_file(run_dir / CSV_FILE, render(tables, rows, "csv").encode())
    draw_precision(run_dir / FIGURE_FILE, records)
    printed = render(tables, rows, "rich")
    return f"{printed}numbers are in {run_dir / CSV_FILE}, the figure is {run_dir / FIGURE_FILE}\n"


def precision_records(search: Search) -> list[Record]:
    """A record for each of LOG2_FACTORS, finest grid first; the one with the smallest total is emphasised."""
    nonzeros = max(1, sum(int(np.count_nonzero(tensor)) for tensor in search.weights.values()))
    points = [search.point(float(power)) for power in LOG2_FACTORS]
    best = min(points, key=lambda point: point.total_bytes)
    return [
        {
            **asdict(point),
            "bits_per_weight": bits_from_bytes(point.model_bytes) / nonzeros,
            "total_bytes": point.total_bytes,
            "is_emphasised": point is best,
        }
        for point in points
    ]


def draw_precision(path: Path, records: list[Record]) -> None:
    """Bytes of model, text and both against bits a weight; `path` is replaced in one step."""
    figure, axes = new_figure("Code length by the precision of the weights")
    best = next(record for record in records if record["is_emphasised"])
    bits = [record["bits_per_weight"] for record in records]
    scale, prefix = si_prefix(max(record["total_bytes"] for record in records))
    lines: tuple[tuple[str, str, dict[str, Any]], ...] = (
        ("total_bytes", "model and text", {"color": MEASURED_COLOUR, "lw": 2.2, "marker": "o", "ms": 4}),
        ("model_bytes", "model, coded", {"color": COLOURS[0], "lw": 1.6}),
        ("data_bytes", "text, projected from a sample", {"color": COLOURS[1], "lw": 1.6, "ls": (0, (5, 2))}),
    )
    for key, label, style in lines:
        axes.plot(bits, [record[key] / scale for record in records], label=label, **style)
    label = f"smallest: {best['total_bytes']:,.0f} bytes at {best['bits_per_weight']:.2f} bits a weight"
    style = {"ls": "", "marker": "o", "ms": 10, "mfc": "none", "mec": COLOURS[2], "mew": 2.2, "zorder": 4}
    axes.plot([best["bits_per_weight"]], [best["total_bytes"] / scale], label=label, **style)
    axes.axvline(best["bits_per_weight"], color=QUIET_COLOUR, lw=0.8, zorder=0)
    axes.set_xlim(left=0)
    # Room for the legend above the valley.
    axes.set_ylim(0, 1.3 * max(record["total_bytes"] for record in records) / scale)
    axes.set_xlabel("bits a weight that is not zero")
    axes.set_ylabel(f"bytes ({prefix}B)")
    axes.legend(loc="upper center", **LEGEND)
    save_figure(figure, path)


def _block(title: str, records: list[Record]) -> Block:
    columns: list[Column] = [
        ("steps, factor", "factor", decimal),
        ("bits/weight", "bits_per_weight", decimal),
        ("model bytes", "model_bytes", count),
        ("data bytes (projected)", "data_bytes", count),
        ("total bytes (projected)", "total_bytes", count),
    ]
    return new_block(title, columns, records, _NOTES)
