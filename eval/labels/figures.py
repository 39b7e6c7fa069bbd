"""Pictures of codes of labels: their lengths over the labels that were read, and over the size of a subspace."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from eval.labels.evaluate import LabelCode
from eval.show.figures import COLOURS, LEGEND, MEASURED_COLOUR, QUIET_COLOUR, new_figure, new_panels, save_figure
from harness.run.directory import load_run_config, open_run_data
from harness.run.ledger import read_rows
from harness.units import bits_from_nats

CURVES_FILE, SUBSPACES_FILE = "labels-curves.png", "labels-subspaces.png"
_FIRST_BLOCK = 8
_PANEL_INCHES = 3.2


@dataclass(frozen=True, slots=True)
class LabelCurve:
    """The prequential code of a run, label by label."""

    name: str
    bits: np.ndarray
    """Code length of each label (n,), float64, in the order in which they were read."""
    uniform_bits: float
    """log2 of the number of classes."""


def read_curve(run_dir: Path) -> LabelCurve:
    """Read the code of the labels of a run off its ledger; raises UsageError where it is missing or damaged."""
    data = open_run_data(run_dir, load_run_config(run_dir))
    rows = pa.concat_tables(read_rows(run_dir, ["step", "epoch", "nats_sum", "code_nats_sum"]))
    columns = {name: rows[name].to_numpy().astype(np.float64) for name in rows.column_names}
    first = columns["epoch"] == 0
    step, trained, coded = (columns[name][first] for name in ("step", "nats_sum", "code_nats_sum"))
    nats = np.where(np.isnan(coded), trained, coded)[np.argsort(step, kind="stable")]
    return LabelCurve(run_dir.name, bits_from_nats(nats), math.log2(data.tokenizer.vocab_size))


def draw_label_curves(path: Path, curves: list[LabelCurve]) -> None:
    """Draw bits a label by blocks that double, what is saved so far, and how often a label was given more than half."""
    figure, panels = new_panels("Labels given inputs, by the number of labels read", 4, 1, 4 * _PANEL_INCHES)
    by_block, saved, ratio, right = panels[:, 0]
    for index, curve in enumerate(curves):
        colour, count = COLOURS[index % len(COLOURS)], len(curve.bits)
        ends = _block_ends(count)
        sums = np.diff(np.concatenate([[0.0], np.cumsum(curve.bits)])[[0, *ends]])
        sizes = np.diff([0, *ends])
        style = {"color": colour, "lw": 1.4, "label": curve.name}
        by_block.plot(ends, sums / sizes, marker="o", ms=3, **style)
        read, so_far = np.arange(1, count + 1), np.cumsum(curve.bits)
        saved.plot(read, (so_far - curve.uniform_bits * read) / 1000, **style)
        ratio.plot(read, so_far / (curve.uniform_bits * read), **style)
        # Of two labels at most one has more than half: a label that has it is the most likely one.
        shares = np.diff(np.concatenate([[0], np.cumsum(curve.bits < 1)])[[0, *ends]]) / sizes
        right.plot(ends, shares, marker="o", ms=3, **style)
    by_block.axhline(curves[0].uniform_bits, color=QUIET_COLOUR, lw=0.8, label="uniform")
    words = ("bits a label, by block", "code less uniform (kbit)", "code / uniform", "given more than 1/2, by block")
    for axes, text in zip(panels[:, 0], words, strict=True):
        axes.set_xscale("log")
        axes.set_xlim(1, 1.1 * max(len(curve.bits) for curve in curves))
        axes.set_ylabel(text)
    ratio.set_yscale("log")
    right.set_xlabel("labels read")
    saved.legend(*by_block.get_legend_handles_labels(), loc="lower left", **LEGEND)
    save_figure(figure, path)


def draw_subspaces(path: Path, codes: list[LabelCode]) -> None:
    """Draw the parts of the files of subspaces over their size; of others nothing."""
    coded = sorted((c for c in codes if c.subspace and c.length.kind == "decoded"), key=lambda code: code.subspace)
    figure, axes = new_figure("Labels by a model in a random subspace, as files that decode")
    sizes = [code.subspace for code in coded]
    parts = {
        "file": ([code.length.total_bits for code in coded], MEASURED_COLOUR),
        "coordinates": ([8 * code.length.model_bytes for code in coded], COLOURS[0]),
        "labels": ([8 * code.length.data_bytes for code in coded], COLOURS[1]),
    }
    for name, (bits, colour) in parts.items():
        axes.plot(sizes, np.array(bits) / 1000, marker="o", ms=4, lw=1.4, color=colour, label=name)
    axes.set_xscale("log")
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.set_xlabel("coordinates")
    axes.set_ylabel("kbit")
    axes.legend(loc="upper center", **LEGEND)
    save_figure(figure, path)


def draw(folder: Path, runs: list[Path], codes: list[LabelCode]) -> list[Path]:
    """Draw the codes of runs into a folder; returns the pictures, that of subspaces where there are some."""
    pictures = [folder / CURVES_FILE]
    draw_label_curves(pictures[0], [read_curve(run) for run in runs])
    if len({code.subspace for code in codes if code.subspace}) > 1:
        pictures.append(folder / SUBSPACES_FILE)
        draw_subspaces(pictures[1], codes)
    return pictures


def _block_ends(count: int) -> list[int]:
    """Where blocks end that double from `_FIRST_BLOCK` labels on, the last one at `count`."""
    ends = [_FIRST_BLOCK << power for power in range(64) if _FIRST_BLOCK << power < count]
    return [*ends, count]
