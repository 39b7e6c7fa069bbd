"""Pictures of the studies: losses and ratios by epoch, curves with the acceleration, similarity, weights; orders."""

from pathlib import Path

import numpy as np
from scipy.optimize import curve_fit

from eval.show.figures import COLOURS, LEGEND, QUIET_COLOUR, SMALL_FONT, new_figure, new_panels, save_figure
from eval.studies.order import OrderPoint
from eval.studies.policy import PolicyPoint
from eval.studies.tables import laws
from harness.units import bits_from_nats

_HEIGHT_INCHES, _LEAST_TO_FIT = 3.6, 5


def draw_policies(directory: Path, points: list[PolicyPoint]) -> None:
    """Draw all figures of a study of policies; each file is replaced in one step."""
    draw_epochs(directory / "epochs.png", points)
    draw_curves(directory / "curves.png", points)
    draw_similarity(directory / "similarity.png", points)
    draw_weights(directory / "weights.png", points)


def draw_epochs(path: Path, points: list[PolicyPoint]) -> None:
    """Draw the loss on both sets, and the compression ratio, after each change of the policy."""
    figure, panels = new_panels("What learning the policy brings", 2, 1, 2 * _HEIGHT_INCHES)
    losses, ratios = panels[:, 0]
    for index, point in enumerate(points):
        for values, dashes, name in ((point.desired_nats, "--", "desired"), (point.test_nats, "-", "test")):
            style = {"color": _colour(index), "ls": dashes, "lw": 1.4, "label": f"{_name(point)}, {name}"}
            losses.plot(values, **style)
            ratios.plot([point.ratio(value) for value in values], **style)
    losses.set_ylabel("mean loss over training (nats)")
    ratios.set_ylabel("compression ratio")
    for axes in (losses, ratios):
        axes.set_xlabel("changes of the policy")
    losses.legend(loc="upper right", **LEGEND)
    save_figure(figure, path)


def draw_curves(path: Path, points: list[PolicyPoint]) -> None:
    """Draw the test loss at each step by both policies, with laws and an arrow from the later to the sooner step."""
    figure, panels = new_panels("Test loss while training", 1, len(points), _HEIGHT_INCHES)
    for axes, point in zip(panels[0], points, strict=True):
        steps = np.arange(1, point.steps + 1)
        curves = (("constant", point.constant_curve, QUIET_COLOUR), ("learnt", point.learnt_curve, COLOURS[0]))
        fitted = laws(point) or (None, None)
        for (name, curve, colour), law in zip(curves, fitted, strict=True):
            axes.plot(steps, curve, color=colour, lw=1.8, label=f"{name} policy")
            if law:
                shown = steps[steps >= law.t0]
                axes.plot(shown, law.at(shown), color=colour, lw=0.8, ls=":", label=f"its law, |r| {abs(law.r):.4f}")
        if point.acceleration:
            loss, sooner = point.constant_curve[-1], point.steps / point.acceleration
            arrow = {"arrowstyle": "->", "color": COLOURS[1], "lw": 1.4}
            axes.annotate("", (sooner, loss), (point.steps, loss), arrowprops=arrow)
            middle = np.sqrt(sooner * point.steps)
            axes.annotate(f"{point.acceleration:.2f}x", (middle, loss), (0, 5), textcoords="offset points", ha="center")
        axes.set_title(_name(point), fontsize=SMALL_FONT)
        axes.set_xscale("log")
        axes.set_xlabel("step")
    panels[0][0].set_ylabel("loss (nats)")
    panels[0][0].legend(loc="upper right", **LEGEND)
    save_figure(figure, path)


def similarity_fit(point: PolicyPoint) -> tuple[float, float, float] | None:
    """Fit a, b, c of SIM = log(a / (b - CR)^c) to a point's epochs (Gu et al. 2024); None where they are too few."""
    if len(point.similarities) < _LEAST_TO_FIT:
        return None
    epochs, values = np.array(point.similarities).T
    ratios = np.array([point.ratio(point.desired_nats[int(epoch)]) for epoch in epochs])
    top, span = float(ratios.max()), float(np.ptp(ratios))
    if not span:
        return None

    def formula(ratio: np.ndarray, log_a: float, log_gap: float, c: float) -> np.ndarray:
        return log_a - c * np.log(top + span * np.exp(log_gap) - ratio)

    first, bounds = (float(values.mean()), 0.0, 0.1), ([-100, -12, 0], [100, 12, 100])
    try:
        (log_a, log_gap, c), _ = curve_fit(formula, ratios, values, p0=first, bounds=bounds, max_nfev=20_000)
    except (RuntimeError, ValueError):
        return None
    return float(np.exp(log_a)), top + span * float(np.exp(log_gap)), float(c)


def draw_similarity(path: Path, points: list[PolicyPoint]) -> None:
    """Draw how alike gradients are against the compression ratio on the desired set, with a fit."""
    figure, axes = new_figure("Products of gradients against the compression ratio (desired set)")
    for index, point in enumerate(points):
        epochs, values = np.array(point.similarities).T
        ratios = np.array([point.ratio(point.desired_nats[int(epoch)]) for epoch in epochs])
        label = _name(point)
        if found := similarity_fit(point):
            a, b, c = found
            label += f": log({a:.3g} / ({b:.3g} - CR)^{c:.3g})"
            walk = np.linspace(ratios.min(), ratios.max(), 200)
            axes.plot(walk, np.log(a) - c * np.log(b - walk), color=_colour(index), lw=1)
        axes.plot(ratios, values, "o", color=_colour(index), ms=4, label=label)
    axes.set_xlabel("compression ratio")
    axes.set_ylabel("SIM")
    axes.legend(loc="upper left", **LEGEND)
    save_figure(figure, path)


def draw_weights(path: Path, points: list[PolicyPoint]) -> None:
    """Draw the weight of corrupted examples by epoch and, at the end, by step."""
    figure, panels = new_panels("Sum of the weights of corrupted examples", 1, 2, _HEIGHT_INCHES)
    by_epoch, by_step = panels[0]
    for index, point in enumerate(points):
        style = {"color": _colour(index), "lw": 1.4, "label": _name(point)}
        by_epoch.plot(point.corrupted_weights, **style)
        by_step.plot(np.arange(point.steps) / point.steps, point.corrupted_by_step, **style)
    by_epoch.set_ylabel("weight, mean over steps")
    by_epoch.set_xlabel("changes of the policy")
    by_step.set_xlabel("fraction of training (learnt policy)")
    by_epoch.set_ylim(bottom=0)
    by_epoch.legend(loc="upper right", **LEGEND)
    save_figure(figure, path)


def draw_orders(path: Path, points: list[OrderPoint]) -> None:
    """Draw the area of the hardened order by epoch beside random orders, with and without the order's name."""
    figure, axes = new_figure("Area under the loss curve by order (ideal)")
    for index, point in enumerate(points):
        colour, epochs = _colour(index), np.arange(1, len(point.areas) + 1)
        best = bits_from_nats(1.0) * np.minimum.accumulate(point.areas)
        name = f"{point.labels} labels, seed {point.seed}"
        axes.plot(epochs, best, color=colour, lw=1.6, label=f"{name}: best so far")
        axes.plot(epochs, best + point.name_bits, color=colour, lw=1.2, ls="--", label=f"{name}: and log2 n!")
        random = bits_from_nats(float(np.mean(point.random_areas)))
        axes.axhline(random, color=colour, lw=0.8, ls=":", label=f"{name}: random orders")
    axes.axhline(bits_from_nats(points[0].uniform_nats), color=QUIET_COLOUR, lw=0.8, label="uniform")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("changes of the order")
    axes.set_ylabel("bits")
    axes.legend(loc="center right", **LEGEND)
    save_figure(figure, path)


def _name(point: PolicyPoint) -> str:
    return f"N {point.examples:,}, T {point.steps:,}, seed {point.seed}"


def _colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]
