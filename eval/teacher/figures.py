"""Picture of the teacher-student experiment: U-curves of the total against strength and against non-zeros."""

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from eval.show.figures import COLOURS, LEGEND, MEASURED_COLOUR, QUIET_COLOUR, new_panels, save_figure
from eval.teacher.points import TeacherPoint
from eval.teacher.tables import Setting, best_setting, coded_bytes, grouped, settings_of
from harness.rules.config import SPARSE_RULES

_PANEL_HEIGHT_INCHES = 3.0
_DASHES = {"adam": "-", "decoupled": (0, (3, 1.5))}


def draw_totals(path: Path, points: list[TeacherPoint]) -> None:
    """Draw the coded totals, mean over seeds, a row for each number of targets; of the Gaussian loss, if any.

    At each strength the best tolerance counts. `path` is replaced in one step.
    """
    loss = "gaussian" if any(point.loss == "gaussian" for point in points) else points[0].loss
    rows = grouped((point for point in points if point.loss == loss), "num_targets")
    title = f"Weights and targets as coded, loss {loss}, mean over seeds"
    figure, panels = new_panels(title, len(rows), 2, _PANEL_HEIGHT_INCHES * len(rows))
    for ((num_targets,), those), (by_alpha, by_nonzeros) in zip(rows.items(), panels, strict=True):
        for method, group in ((key[0], group) for key, group in grouped(those, "method").items()):
            _draw_method(by_alpha, by_nonzeros, method, _best_tolerances(group))
        by_alpha.set_xscale("log")
        by_nonzeros.set_xscale("symlog", linthresh=1)
        by_nonzeros.set_xlim(left=-0.5)
        _leave_out_far_totals(by_alpha, those)
        by_alpha.set_ylabel(f"bytes, {num_targets:,} targets")
        by_alpha.set_xlabel("alpha (adam: nats a unit; decoupled: updates)")
        by_nonzeros.set_xlabel("weights that are not zero")
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, **LEGEND)
    save_figure(figure, path)


def _draw_method(by_alpha: Axes, by_nonzeros: Axes, method: str, settings: list[Setting]) -> None:
    rule, _, coupling = method.partition("-")
    totals = [setting.mean(coded_bytes) for setting in settings]
    nonzeros = [setting.mean(lambda point: point.nonzeros) for setting in settings]
    if not coupling:
        colour = QUIET_COLOUR if rule == "none" else MEASURED_COLOUR
        by_alpha.axhline(totals[0], color=colour, lw=1.2, ls=":", label=method)
        by_nonzeros.plot(nonzeros, totals, color=colour, marker="s", ls="", ms=5)
        return
    colour, is_filled = COLOURS[SPARSE_RULES.index(rule)], coupling == "adam"
    marker: dict[str, Any] = {"color": colour, "marker": "o", "ms": 4, "mfc": colour if is_filled else "white"}
    alphas = [setting.first.alpha for setting in settings]
    by_alpha.plot(alphas, totals, ls=_DASHES[coupling], lw=1.3, label=method, **marker)
    by_nonzeros.plot(nonzeros, totals, ls="", **marker)


def _leave_out_far_totals(axes: Axes, points: list[TeacherPoint]) -> None:
    """Students that a rule has left nothing of would flatten all others."""
    groups = grouped(points, "method")
    totals = [best_setting(group, coded_bytes).mean(coded_bytes) for group in groups.values()]
    lowest, highest = min(totals), max(totals)
    margin = max(highest - lowest, 1.0)
    axes.set_ylim(lowest - 0.1 * margin, highest + 0.3 * margin)


def _best_tolerances(points: list[TeacherPoint]) -> list[Setting]:
    """For each strength, in ascending order, the setting with the smallest mean."""
    by_alpha = grouped(sorted(points, key=lambda point: point.alpha), "alpha")
    return [min(settings_of(group), key=lambda s: s.mean(coded_bytes)) for group in by_alpha.values()]
