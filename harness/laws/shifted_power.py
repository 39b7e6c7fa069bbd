"""The law L(t) = L0 + (B / t)^beta of a training run, fitted by a straight line on logarithmic axes.

Found as published (Gu et al., "Towards Optimal Learning of Language Models", 2024): ordinary least squares of
ln(L - L0) on ln t from a first position t0 on, with t0 and L0 those of the largest |r|. How much sooner one run is
where another one ends follows from both laws.
"""

import math
from dataclasses import dataclass

import numpy as np

MIN_POINTS = 8
"""Fewer points fit any line."""
_MAX_FITTED_POINTS = 2_000
_MAX_STARTS = 24
_GAPS = np.geomspace(1.0, 1e-4, 81)
_GOLDEN_STEPS = 60
_GOLDEN = (math.sqrt(5.0) - 1) / 2
_LARGEST_LOG = 700.0
# What rounding alone makes of a constant.
_NO_FALL = 1e-12


@dataclass(frozen=True, slots=True)
class CurveLaw:
    """L(t) = L0 + (B / t)^beta for t >= t0; t counts steps or tokens, L is a loss in the unit of the points."""

    L0: float
    """What the loss falls to; at least 0."""
    B: float
    """Scale of t, at most e^700."""
    beta: float
    """Above 0."""
    t0: float
    """First position that counts."""
    r: float
    """Correlation of ln(L - L0) with ln t, negative; -1 for points that lie on the law."""

    def at(self, steps: np.ndarray | float) -> np.ndarray | float:
        """Compute the loss at `steps`, which are above 0."""
        return self.L0 + (self.B / steps) ** self.beta

    def steps_to(self, loss: float) -> float:
        """Compute the position from which on the loss is at most `loss`; inf where it never is."""
        excess = loss - self.L0
        if excess <= 0:
            return math.inf
        return math.exp(min(math.log(self.B) - math.log(excess) / self.beta, _LARGEST_LOG))

    def acceleration_over(self, other: "CurveLaw", steps: float) -> float:
        """Compute how many times as fast this law is where `other` is after `steps`; 0 where it never gets there.

        With equal L0 it is (B1^(b1/b2) / B2) T^(1 - b1/b2), where 1 is `other` and 2 this law.
        """
        return steps / self.steps_to(float(other.at(steps)))


def fit_curve(steps: np.ndarray, losses: np.ndarray) -> CurveLaw:
    """Fit the law to `losses` (n,), above 0, at ascending `steps` (n,), above 0.

    t0 leaves at least half of the points. Raises ValueError, with the reason in words, where there are fewer than
    `MIN_POINTS` or losses do not fall.
    """
    if len(steps) < MIN_POINTS:
        raise ValueError(f"{len(steps)} points; a law needs {MIN_POINTS}")
    if np.ptp(losses) <= _NO_FALL * np.min(losses):
        raise ValueError("losses do not fall")
    every = -(-len(steps) // _MAX_FITTED_POINTS)
    steps, losses = np.asarray(steps, np.float64)[::every], np.asarray(losses, np.float64)[::every]
    last_start = min(len(steps) // 2, len(steps) - MIN_POINTS)
    starts = np.unique(np.linspace(0, max(last_start, 0), min(last_start + 1, _MAX_STARTS)).astype(int))
    _, start = min((_best_gap(np.log(steps[first:]), losses[first:])[1], int(first)) for first in starts)
    logs, kept = np.log(steps[start:]), losses[start:]
    gap = _refined_gap(logs, kept)
    floor = float(kept.min()) * (1 - gap)
    slope, intercept, correlation = _line(logs, np.log(kept - floor))
    if not slope < 0:
        raise ValueError("losses do not fall")
    scale = math.exp(min(max(intercept / -slope, -_LARGEST_LOG), _LARGEST_LOG))
    return CurveLaw(floor, scale, -slope, float(steps[start]), correlation)


def _refined_gap(logs: np.ndarray, losses: np.ndarray) -> float:
    """The gap between L0 and the lowest loss, as a share of it, of the largest |r|: on a grid, then by sections."""
    best, _ = _best_gap(logs, losses)
    shares = np.log(_GAPS)
    low, high = float(shares[min(best + 1, len(shares) - 1)]), float(shares[max(best - 1, 0)])

    def correlation(share: float) -> float:
        return _correlation(logs, losses, math.exp(share))

    for _ in range(_GOLDEN_STEPS):
        left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
        low, high = (low, right) if correlation(left) <= correlation(right) else (left, high)
    # The ends of the grid, L0 = 0 among them, are never tried by the section itself.
    return min((math.exp((low + high) / 2), float(_GAPS[best])), key=lambda gap: _correlation(logs, losses, gap))


def _best_gap(logs: np.ndarray, losses: np.ndarray) -> tuple[int, float]:
    """Index into the grid of gaps, and its r: the lowest one."""
    correlations = [_correlation(logs, losses, gap) for gap in _GAPS]
    best = int(np.argmin(correlations))
    return best, correlations[best]


def _correlation(logs: np.ndarray, losses: np.ndarray, gap: float) -> float:
    return _line(logs, np.log(losses - losses.min() * (1 - gap)))[2]


def _line(x: np.ndarray, y: np.ndarray) -> tuple[float, float, float]:
    """Slope, intercept and correlation of the least squares of `y` on `x`, both (n,)."""
    dx, dy = x - x.mean(), y - y.mean()
    xx, xy, yy = float(dx @ dx), float(dx @ dy), float(dy @ dy)
    slope = xy / xx
    return slope, float(y.mean() - slope * x.mean()), xy / math.sqrt(xx * yy) if yy > 0 else 0.0
