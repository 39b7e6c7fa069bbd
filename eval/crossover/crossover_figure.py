"""Picture of a crossover: both codes for every byte of the text so far, measured and projected."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter

from eval.crossover.crossing import Crossover, OfflineCode, OnlineCurve, online_band
from eval.crossover.hybrid import HybridCode
from eval.show.figures import (
    COLOURS,
    LEGEND,
    MEASURED_COLOUR,
    QUIET_COLOUR,
    SMALL_FONT,
    new_figure,
    save_figure,
    si_prefix,
)
from harness.units import BITS_PER_BYTE

_POINTS = 200
_DECADES_SHOWN = 2.0
_FACTOR_BEYOND = 10.0
_FARTHEST_FACTOR = 1e4


def draw_crossover(
    path: Path,
    curve: OnlineCurve,
    resampled: list[OnlineCurve],
    offline: OfflineCode,
    crossover: Crossover,
    hybrid: HybridCode | None = None,
) -> None:
    """Draw all codes in bits/byte against the size of the text in bytes; `path` is replaced in one step.

    Divided by the size, lines that cross at a small angle can be told apart, and they cross at the same place.
    """
    figure, axes = new_figure("Online and offline code length of a growing text")
    axes.set_xscale("log")
    num_bytes = curve.measured_bytes
    places = [size for size in (crossover.raw_bytes, crossover.until_bytes) if size is not None]
    right = min(max([_FACTOR_BEYOND * num_bytes, *(3 * size for size in places)]), _FARTHEST_FACTOR * num_bytes)
    left = min([num_bytes / 10**_DECADES_SHOWN, *(size / 3 for size in places)])
    _draw_online(axes, curve, resampled, max(left, float(curve.raw_bytes[1])), right)
    sizes = np.geomspace(left, right, _POINTS)
    style: dict[str, Any] = {"color": COLOURS[1], "ls": (0, (5, 2)), "lw": 1.6}
    axes.plot(sizes, offline.bits(sizes) / sizes, label="offline code, projected", **style)
    if hybrid:
        _draw_hybrid(axes, hybrid, sizes)
    axes.axvline(num_bytes, color=QUIET_COLOUR, lw=0.8, zorder=0)
    style = {"xycoords": axes.get_xaxis_transform(), "textcoords": "offset points", "fontsize": SMALL_FONT}
    axes.annotate("end of the corpus", (num_bytes, 1), xytext=(0, 4), ha="center", color=QUIET_COLOUR, **style)
    axes.set_title(axes.get_title(loc="left"), loc="left", pad=18)
    for name, size, face in (
        ("crossover", crossover.raw_bytes, "white"),
        ("online shorter again", crossover.until_bytes, QUIET_COLOUR),
    ):
        if size is not None and size <= right:
            kind = "measured" if size <= num_bytes else "projected"
            colour = MEASURED_COLOUR if size <= num_bytes else COLOURS[0]
            style = {"ls": "", "marker": "o", "ms": 8, "mfc": face, "mec": colour, "mew": 1.8, "zorder": 4}
            label = f"{name}, {kind}: {size_text(size)}"
            axes.plot([size], [offline.bits(size) / size], label=label, **style)
    axes.set_xlim(left, right)
    axes.set_ylim(0, 1.05 * BITS_PER_BYTE)
    axes.xaxis.set_major_formatter(EngFormatter(unit="B"))
    axes.set_xlabel("text so far")
    axes.set_ylabel("code length so far (bits/byte)")
    axes.legend(loc="upper right", **LEGEND)
    save_figure(figure, path)


def _draw_hybrid(axes: Axes, hybrid: HybridCode, sizes: np.ndarray) -> None:
    """A line that is solid as far as the ledger goes."""
    end = hybrid.curve.measured_bytes
    for chosen, dashes, words in ((sizes <= end, "-", "measured (ideal)"), (sizes >= end, (0, (1, 1.2)), "projected")):
        rates = np.array([hybrid.bits_at(size) for size in sizes[chosen]]) / sizes[chosen]
        label = f"hybrid code with its weights, {words}"
        axes.plot(sizes[chosen], rates, color=COLOURS[2], ls=dashes, lw=1.6, label=label)


def _draw_online(axes: Axes, curve: OnlineCurve, resampled: list[OnlineCurve], left: float, right: float) -> None:
    """A solid line as far as the ledger goes; beyond it a dotted one in its band."""
    measured = np.geomspace(left, curve.measured_bytes, _POINTS)
    rates = np.array([curve.bits_at(size) for size in measured]) / measured
    axes.plot(measured, rates, color=MEASURED_COLOUR, lw=2.2, label="online code, measured (ideal)")
    beyond = np.geomspace(curve.measured_bytes, right, _POINTS)
    low, high = online_band(resampled, beyond)
    label = "5 to 95 % of resampled curves"
    axes.fill_between(beyond, low / beyond, high / beyond, color=COLOURS[0], alpha=0.25, lw=0, label=label)
    rates = np.array([curve.bits_at(size) for size in beyond]) / beyond
    style: dict[str, Any] = {"color": COLOURS[0], "ls": (0, (1, 1.2)), "lw": 1.8}
    axes.plot(beyond, rates, label="online code, projected by its law", **style)


def size_text(raw_bytes: float) -> str:
    """Format a size with three digits and a prefix, such as 8.12 MB."""
    factor, prefix = si_prefix(raw_bytes)
    return f"{raw_bytes / factor:.3g} {prefix}B"
