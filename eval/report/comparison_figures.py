"""Pictures of many runs: total code length against the size of the weights, and held-out loss against it."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from eval.report.comparison import Entry, families
from eval.show.figures import COLOURS, LEGEND, QUIET_COLOUR, SMALL_FONT, new_figure, save_figure
from harness.units import bits_from_bytes, bytes_from_bits

_MARKERS = "osD^vP*X"
_FAMILY_COLOURS = (*COLOURS, "#332288", "#882255")
_RATES = (1.5, 2.0, 2.5, 3.0, 4.0, 5.0)
"""Bits/byte of the data along iso-lines."""


def totals_figure(path: Path, column: str, entries: list[Entry]) -> None:
    """Total bytes against coded weights of one data set, with lines of equal data bits/byte.

    A line a family, through the means of what was repeated.
    """
    figure, axes = new_figure(f"{column}: total code length against the size of the weights")
    raw_bytes = entries[0].record["raw_bytes"]
    sizes = np.array([entry.record["model_bytes"] for entry in entries])
    totals = np.array([entry.ideal_total_bytes for entry in entries])
    _points(axes, entries, totals)
    low, high = 0.7 * sizes.min(), 1.5 * sizes.max()
    walk = np.geomspace(max(1.0, low), high, 200)
    for rate in _RATES:
        line = walk + bytes_from_bits(rate * raw_bytes)
        if totals.min() / 1.1 < line.max() and line.min() < 1.1 * totals.max():
            axes.plot(walk, line, color=QUIET_COLOUR, lw=0.7, zorder=0)
            label: dict[str, Any] = {
                "fontsize": SMALL_FONT,
                "color": QUIET_COLOUR,
                "xytext": (2, 3),
                "textcoords": "offset points",
            }
            axes.annotate(f"{rate:g} bits/byte", (walk[0], line[0]), **label)
    axes.plot(walk, walk, color=QUIET_COLOUR, lw=0.7, linestyle="--", zorder=0)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(walk[0], walk[-1])
    axes.set_ylim(0.9 * totals.min(), 1.1 * totals.max())
    axes.set_ylabel("weights and data (bytes)")
    axes.legend(loc="best", **LEGEND)
    save_figure(figure, path)


def heldout_figure(path: Path, entries: list[Entry]) -> None:
    """Held-out bits/byte against coded weights; a colour a data set, a marker a family."""
    figure, axes = new_figure("Held-out loss against the size of the weights")
    columns = list(dict.fromkeys(entry.column for entry in entries))
    names = list(families(entries))
    for index, column in enumerate(columns):
        for name in names:
            own = [entry for entry in entries if entry.column == column and entry.family == name]
            style: dict[str, Any] = {
                "color": COLOURS[index % len(COLOURS)],
                "marker": _MARKERS[names.index(name) % len(_MARKERS)],
            }
            rates = [entry.record["heldout_ideal_bits_per_byte"] for entry in own]
            _line(axes, own, rates, f"{column}, {name}", style)
    axes.set_xscale("log")
    axes.set_xlabel("weights in the file (bytes)")
    axes.set_ylabel("held-out text (bits/byte)")
    axes.legend(loc="best", ncols=len(columns), **LEGEND)
    save_figure(figure, path)


def _line(axes: Axes, entries: list[Entry], values: list[float], label: str, style: dict[str, Any]) -> None:
    """A point an entry, and a line through the means of members of a family over their seeds."""
    points: dict[str, list[tuple[float, float]]] = {}
    for entry, value in zip(entries, values, strict=True):
        points.setdefault(entry.member, []).append((entry.record["model_bytes"], value))
    every = [point for own in points.values() for point in own]
    axes.plot(*zip(*every, strict=True), **style, markersize=5, linestyle="none")
    means = sorted(tuple(np.mean(own, axis=0)) for own in points.values())
    axes.plot(*zip(*means, strict=True), **style, markersize=0, lw=0.9)
    # What the legend shows: both.
    axes.plot([], [], **style, markersize=5, lw=0.9, label=label)


def _points(axes: Axes, entries: list[Entry], totals: np.ndarray) -> None:
    """A line a family, a point a run, a ring around the best of all, which is named below the axis."""
    total_of = dict(zip(map(id, entries), totals, strict=True))
    for index, (name, members) in enumerate(families(entries).items()):
        style: dict[str, Any] = {
            "color": _FAMILY_COLOURS[index % len(_FAMILY_COLOURS)],
            "marker": _MARKERS[index % len(_MARKERS)],
        }
        _line(axes, members, [total_of[id(entry)] for entry in members], name, style)
    best = min(entries, key=lambda entry: total_of[id(entry)])
    rate = bits_from_bytes(total_of[id(best)]) / best.record["raw_bytes"]
    ring: dict[str, Any] = {
        "marker": "o",
        "markersize": 13,
        "markerfacecolor": "none",
        "color": "black",
        "linestyle": "none",
    }
    axes.plot(best.record["model_bytes"], total_of[id(best)], **ring)
    axes.set_xlabel(f"weights in the file (bytes)\ncircle: the shortest, {best.label}, {rate:.3f} bits/byte")
