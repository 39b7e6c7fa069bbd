"""Picture of a loss curve: the points, the fitted law, and the parts of the online code that no point shows."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from eval.curves.area import KIND, BoundedLength, OnlineLength
from eval.curves.read import Curve
from eval.show.figures import COLOURS, LEGEND, MEASURED_COLOUR, QUIET_COLOUR, new_figure, save_figure, si_prefix
from harness.errors import UsageError

_MANY_POINTS = 100
_LAW_POINTS = 400
_HEAD_DECADES = 3


def check_figure_path(path: Path) -> None:
    """Raise UsageError where no picture can be put."""
    if path.suffix != ".png":
        raise UsageError(f"--figure {path}: must end in .png")
    if path.is_dir() or not path.parent.is_dir():
        raise UsageError(f"--figure {path}: not a place for a file; give a path in an existing directory")


def draw_curve(path: Path, curve: Curve, online: OnlineLength) -> None:
    """Draw losses in nats per token against tokens, both logarithmic; `path` is replaced in one step."""
    figure, axes = new_figure("Loss curve and online code length")
    axes.set_xscale("log")
    axes.set_yscale("log")
    first, last, end = online.head.tokens, online.head.tokens + online.plotted.tokens, online.total.tokens
    # The head reaches down to the first token: shown whole it would push the points aside.
    left = max(min(1.0, first / 2), first / 10**_HEAD_DECADES)
    right = max(end, float(curve.tokens[-1])) * 1.15
    axes.axvspan(left, first, color=COLOURS[0], alpha=0.13, lw=0, label=f"before the points: {_size(online.head)}")
    if online.tail.tokens:
        axes.axvspan(last, end, color=COLOURS[2], alpha=0.16, lw=0, label=f"after the points: {_size(online.tail)}")
    law_tokens = np.geomspace(left, end, _LAW_POINTS)
    law = online.law
    label = f"fit {law.c_nats:.3g} + {law.a_nats:.3g} t^-{law.exponent:.3g}"
    style: dict[str, Any] = {"color": COLOURS[1], "ls": (0, (5, 2)), "lw": 1.4, "zorder": 3}
    axes.plot(law_tokens, law.loss_nats(law_tokens), label=label, **style)
    counted = slice(0, online.num_points)
    marker = "o" if online.num_points <= _MANY_POINTS else ""
    style = {"color": MEASURED_COLOUR, "marker": marker, "ms": 4, "lw": 1.4}
    axes.plot(curve.tokens[counted], curve.loss_nats[counted], label=f"points: {_size(online.plotted)}", **style)
    if online.num_points_beyond:
        beyond = slice(online.num_points, None)
        style = {"color": QUIET_COLOUR, "marker": marker, "ms": 4, "lw": 1.0}
        label = f"further epochs, not counted ({online.num_points_beyond:,})"
        axes.plot(curve.tokens[beyond], curve.loss_nats[beyond], label=label, **style)
    lowest, highest = float(curve.loss_nats.min()), float(curve.loss_nats.max())
    axes.set_ylim(lowest / 1.15, highest * 1.25)
    axes.set_xlim(left, right)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("tokens read")
    axes.set_ylabel("loss (nats/token)")
    title = f"{KIND}, from a plotted curve; in all {_size(online.total)}"
    axes.legend(title=title, loc="upper right", **LEGEND)
    save_figure(figure, path)


def _size(part: BoundedLength) -> str:
    num_bytes = part.length.total_bytes
    factor, prefix = si_prefix(num_bytes)
    return f"{num_bytes / factor:.4g} {prefix}B"
