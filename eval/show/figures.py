"""Pictures of a run: the online code as it grows, the loss, the sparsity of every layer. PNG files, written atomically.

Drawn on `Figure` objects: no display, no state shared between pictures.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from harness.files import replacing
from harness.units import BITS_PER_BYTE

_DOTS_PER_INCH = 150
_WIDTH_INCHES, _HEIGHT_INCHES = 8.0, 5.0
_MAX_POINTS = 2000
# Okabe and Ito's palette, distinct for colour-blind readers; black is kept for what this project measured.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_DASHES = ((0, (5, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)))
MEASURED_COLOUR, QUIET_COLOUR, _FAINT_COLOUR = "black", "0.55", "0.92"
SMALL_FONT = 8
LEGEND: dict[str, Any] = {"edgecolor": "none", "framealpha": 1.0, "alignment": "left"}
LEGEND |= {"fontsize": SMALL_FONT, "title_fontsize": SMALL_FONT}


def online_curve(
    path: Path,
    raw_bytes: np.ndarray,
    cumulative_bits: np.ndarray,
    baselines_bits_per_byte: dict[str, float],
    charged_bits: float = 0.0,
) -> None:
    """Code length in bits of the first `raw_bytes` bytes of the corpus (1-D, ascending), with baselines as lines.

    `charged_bits` of it come before the first byte. A baseline is a rate in bits per byte of a whole text, so its line
    is straight from the origin.
    """
    figure, axes = new_figure("Online code length of the corpus")
    raw_bytes = np.concatenate([[0.0], raw_bytes])
    cumulative_bits = charged_bits + np.concatenate([[0.0], cumulative_bits])
    last_byte, total_bits = float(raw_bytes[-1]), float(cumulative_bits[-1])
    online_rate = total_bits / last_byte if last_byte else 0.0
    byte_scale, byte_prefix = si_prefix(last_byte)
    bit_scale, bit_prefix = si_prefix(last_byte * max([online_rate, *baselines_bits_per_byte.values()]))

    lines: dict[str, tuple[float, dict[str, Any]]] = {
        "raw text": (float(BITS_PER_BYTE), {"color": QUIET_COLOUR, "lw": 0.8})
    }
    for i, (name, rate) in enumerate(baselines_bits_per_byte.items()):
        # Shifted by one at every turn of the palette, so that eighteen lines look different.
        colour, dashes = COLOURS[i % len(COLOURS)], _DASHES[(i + i // len(COLOURS)) % len(_DASHES)]
        lines[name] = (rate, {"color": colour, "linestyle": dashes, "lw": 1.3})
    ends = np.array([0.0, last_byte])
    handles = {}
    for name, (rate, style) in lines.items():
        (handles[name, rate],) = axes.plot(ends / byte_scale, ends * rate / bit_scale, **style)
    kept = _subsample(len(raw_bytes))
    style = {"color": MEASURED_COLOUR, "lw": 2.2}
    (handles["online code", online_rate],) = axes.plot(
        raw_bytes[kept] / byte_scale, cumulative_bits[kept] / bit_scale, **style
    )

    axes.set_xlabel(f"text read ({byte_prefix}B)")
    axes.set_ylabel(f"code length so far ({bit_prefix}bit)")
    axes.set_xlim(0, max(last_byte, 1.0) / byte_scale)
    axes.set_ylim(0, 1.02 * max(BITS_PER_BYTE * last_byte, total_bits, 1.0) / bit_scale)
    # The legend lists the lines from top to bottom as they end.
    ordered = sorted(handles.items(), key=lambda item: -item[0][1])
    labels = [f"{rate:.3f}  {name}" for (name, rate), _ in ordered]
    axes.legend([handle for _, handle in ordered], labels, title="bits/byte at the end", loc="upper left", **LEGEND)
    save_figure(figure, path)


def loss_curve(path: Path, step: np.ndarray, bits_per_byte: np.ndarray, phases: list[tuple[str, int]]) -> None:
    """Logged losses in bits per byte (1-D arrays) with their running mean; `phases` are (name, first step)."""
    figure, axes = new_figure("Training loss")
    step, bits_per_byte = np.asarray(step), np.asarray(bits_per_byte, dtype=np.float64)
    kept = _subsample(len(step))
    window = max(1, len(step) // 50)
    smooth = _running_mean(bits_per_byte, window)
    axes.plot(step[kept], bits_per_byte[kept], color=COLOURS[5], lw=0.7, label="as logged")
    axes.plot(step[kept], smooth[kept], color=COLOURS[0], lw=1.8, label=f"mean of the last {window} logs")
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("loss (bits/byte)")
    _limit_to_the_bulk(axes, bits_per_byte)
    axes.margins(x=0)
    for _, first_step in phases:
        axes.axvline(first_step, color=QUIET_COLOUR, lw=0.8, zorder=0)
    style: dict[str, Any] = {
        "xycoords": axes.get_xaxis_transform(),
        "textcoords": "offset points",
        "fontsize": SMALL_FONT,
    }
    for names, first_step in _merge_close(phases, 0.08 * float(np.ptp(step)) if step.size else 0.0):
        axes.annotate(names, (first_step, 1), xytext=(0, 4), **style)
    axes.set_title(axes.get_title(loc="left"), loc="left", pad=18)
    axes.legend(loc="upper right", **LEGEND)
    save_figure(figure, path)


def sparsity_per_layer(path: Path, names: list[str], parameters: list[int], nonzeros: list[int]) -> None:
    """Share of non-zero weights of every tensor, as bars in the order given with a gap where the layer changes."""
    height_inches = max(_HEIGHT_INCHES, 0.2 * len(names) + 1.2)
    figure, axes = new_figure("Weights that are not zero", height_inches)
    shares = np.array([100 * kept / total if total else 0.0 for kept, total in zip(nonzeros, parameters, strict=True)])
    layers = [_layer(name) for name in names]
    changes = [i > 0 and layers[i] != layers[i - 1] for i in range(len(names))]
    rows = np.arange(len(names)) + 0.6 * np.cumsum(changes)
    axes.barh(rows, np.full(len(names), 100.0), color=_FAINT_COLOUR, height=0.8)
    axes.barh(rows, shares, color=COLOURS[0], height=0.8)
    style: dict[str, Any] = {"textcoords": "offset points", "va": "center", "fontsize": SMALL_FONT}
    for row, share, total in zip(rows, shares, parameters, strict=True):
        axes.annotate(f"{share:.1f} %", (share, row), xytext=(3, 0), **style)
        axes.annotate(f"{total:,}", (1, row), xycoords=("axes fraction", "data"), xytext=(4, 0), **style)
    axes.annotate("parameters", (1, 1), xycoords="axes fraction", xytext=(4, 7), **style)
    axes.set_yticks(rows, names, fontsize=SMALL_FONT)
    axes.tick_params(axis="y", length=0)
    # Room for the label of a full bar.
    axes.set_xlim(0, 115)
    axes.set_xticks(range(0, 101, 20))
    axes.set_ylim(rows[-1] + 0.7 if len(rows) else 1, -0.7)
    axes.set_xlabel("share of the tensor's parameters (%)")
    axes.grid(visible=False)
    save_figure(figure, path)


@dataclass(frozen=True, slots=True)
class PartCurve:
    """What a part of a text looks like over the bytes that were read (n,)."""

    name: str
    raw_bytes: np.ndarray
    shares: np.ndarray
    """Share of the part in what is read there."""
    bits_per_byte: np.ndarray
    """Its loss; NaN where it was not read."""
    law: np.ndarray | None
    """A law fitted to the loss before `fitted_bytes`, and from there on its forecast."""
    fitted_bytes: float


def parts_figure(path: Path, curves: list[PartCurve]) -> None:
    """Shares of the parts of a text over what was read, and the loss of each with a fitted law and its forecast."""
    scale, prefix = si_prefix(float(curves[0].raw_bytes[-1]))
    figure = _new_canvas(_HEIGHT_INCHES * 1.5)
    figure.suptitle("Parts of the text", x=0.02, ha="left", fontsize="large")
    above, below = figure.subplots(2, 1, sharex=True)
    bottom = np.zeros(len(curves[0].raw_bytes))
    for index, curve in enumerate(curves):
        colour, places = COLOURS[index % len(COLOURS)], curve.raw_bytes / scale
        above.fill_between(places, bottom, bottom + curve.shares, color=colour, lw=0, label=curve.name)
        bottom = bottom + curve.shares
        below.plot(places, curve.bits_per_byte, color=colour, lw=1.2, label=curve.name)
        if curve.law is not None:
            is_fitted = curve.raw_bytes < curve.fitted_bytes
            for chosen, dashes in ((is_fitted, "-"), (~is_fitted, _DASHES[0])):
                below.plot(places[chosen], curve.law[chosen], color=colour, lw=0.8, linestyle=dashes, alpha=0.7)
    for axes in (above, below):
        _style(axes)
        axes.margins(x=0)
    _limit_to_the_bulk(below, np.concatenate([curve.bits_per_byte for curve in curves]))
    above.set_ylim(0, 1)
    above.set_ylabel("share of what is read")
    below.set_ylabel("loss (bits/byte); thin: law, dashed: its forecast")
    below.set_xlabel(f"text read ({prefix}B)")
    above.legend(loc="upper right", **LEGEND)
    save_figure(figure, path)


def new_figure(title: str, height_inches: float = _HEIGHT_INCHES) -> tuple[Figure, Axes]:
    """An empty picture in the style of all of them."""
    figure = _new_canvas(height_inches)
    axes = figure.add_subplot()
    axes.set_title(title, loc="left")
    _style(axes)
    return figure, axes


def new_panels(title: str, rows: int, columns: int, height_inches: float) -> tuple[Figure, np.ndarray]:
    """The same with (rows, columns) axes, those of a row sharing their vertical one."""
    figure = _new_canvas(height_inches)
    figure.suptitle(title, x=0.02, ha="left", fontsize="large")
    panels = figure.subplots(rows, columns, sharey="row", squeeze=False)
    for axes in panels.flat:
        _style(axes)
    return figure, panels


def _new_canvas(height_inches: float) -> Figure:
    figure = Figure(figsize=(_WIDTH_INCHES, height_inches), dpi=_DOTS_PER_INCH, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _style(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color=_FAINT_COLOUR, lw=0.6)
    axes.set_axisbelow(True)


def save_figure(figure: Figure, path: Path) -> None:
    """Write the picture whole, so that no reader sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        figure.savefig(file, format="png")


def si_prefix(largest: float) -> tuple[float, str]:
    """Divisor and SI prefix under which `largest` is a number of one to three digits."""
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if largest >= factor:
            return factor, prefix
    return 1.0, ""


def _subsample(count: int) -> np.ndarray:
    """At most `_MAX_POINTS` indices, evenly spread, the first and the last among them."""
    return np.unique(np.linspace(0, count - 1, min(count, _MAX_POINTS)).round().astype(np.int64))


def _running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Mean of the last `window` finite values at every position (fewer at the start); NaN where there is none."""
    finite = np.isfinite(values)
    sums = np.cumsum(np.where(finite, values, 0.0))
    counts = np.cumsum(finite)
    sums[window:] -= sums[:-window].copy()
    counts[window:] -= counts[:-window].copy()
    return np.divide(sums, counts, out=np.full(len(values), np.nan), where=counts > 0)


def _limit_to_the_bulk(axes: Axes, values: np.ndarray) -> None:
    """Leave the highest two percent out of view: the first steps would flatten all that follows."""
    finite = values[np.isfinite(values)]
    if finite.size:
        low, high = float(finite.min()), float(np.quantile(finite, 0.98))
        margin = 0.06 * (high - low) or 0.1
        axes.set_ylim(low - margin, high + margin)


def _merge_close(phases: list[tuple[str, int]], distance: float) -> list[tuple[str, int]]:
    """Join the names of phases that start within `distance` steps of each other: their labels would overlap."""
    merged: list[tuple[str, int]] = []
    for name, first_step in phases:
        if merged and first_step - merged[-1][1] < distance:
            merged[-1] = (f"{merged[-1][0]}, {name}", merged[-1][1])
        else:
            merged.append((name, first_step))
    return merged


def _layer(name: str) -> str:
    """The layer that a tensor belongs to: its name up to the first number, or its first word."""
    parts = name.split(".")
    numbers = [i for i, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[: numbers[0] + 1]) if numbers else parts[0]
