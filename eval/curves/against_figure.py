"""Picture of two loss curves: their points, their laws, and how much sooner one is where the other one ends."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from eval.curves.against import Comparison
from eval.show.figures import COLOURS, LEGEND, QUIET_COLOUR, SMALL_FONT, new_figure, save_figure

_LAW_POINTS = 300


def draw_comparison(path: Path, comparison: Comparison) -> None:
    """Draw both in nats per token against tokens, both logarithmic, up to the common end; `path` is replaced."""
    figure, axes = new_figure("Two loss curves")
    axes.set_xscale("log")
    axes.set_yscale("log")
    style: dict[str, Any]
    losses = []
    for side, colour in zip(comparison.sides, COLOURS, strict=False):
        kept = side.curve.tokens <= comparison.tokens
        tokens, loss = side.curve.tokens[kept], side.curve.loss_nats[kept]
        losses.append(loss)
        nats = side.online.total.estimate_nats / comparison.tokens
        axes.plot(tokens, loss, color=colour, lw=1.4, label=f"{side.curve.name}: {nats:.4f} nats/token")
        if not isinstance(side.law, str):
            law = side.law
            places = np.geomspace(law.t0, comparison.tokens, _LAW_POINTS)
            label = f"{law.L0:.3g} + ({law.B:.3g} / t)^{law.beta:.3g}"
            style = {"color": colour, "ls": (0, (5, 2)), "lw": 1.0, "zorder": 3}
            axes.plot(places, law.at(places), label=label, **style)
    axes.axvline(comparison.tokens, color=QUIET_COLOUR, lw=0.8, zorder=0)
    for side, other in (comparison.sides, comparison.sides[::-1]):
        # Of the two only the one that is sooner has an arrow to draw.
        if side.acceleration and side.acceleration > 1:
            ends = ((side.tokens_to_other, other.end_loss_nats), (comparison.tokens, other.end_loss_nats))
            axes.annotate("", ends[0], ends[1], arrowprops={"arrowstyle": "->", "color": QUIET_COLOUR})
            style = {"textcoords": "offset points", "fontsize": SMALL_FONT, "ha": "right"}
            axes.annotate(f"{side.acceleration:.3g} x", ends[1], xytext=(-6, 5), **style)
    both = np.concatenate(losses)
    axes.set_ylim(float(both.min()) / 1.1, float(both.max()) * 1.15)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("tokens read")
    axes.set_ylabel("loss (nats/token)")
    axes.legend(loc="upper right", **LEGEND)
    save_figure(figure, path)
