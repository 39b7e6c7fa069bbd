"""The power law c + s (t / r)^-b of a loss that never rises, fitted by least squares in a fixed number of operations.

For a given exponent the best c and s have a closed form; the exponent is searched in a fixed number of steps. Only
elementwise float64 and sums of numpy are used: both ends of a code, which read by such laws, agree where they have the
same numpy and processors with the same instructions, as an online code asks of them anyway.
"""

from dataclasses import dataclass

import numpy as np

# Beyond it most of the law's integral would lie in the first tokens, which hardly any curve shows.
LARGEST_EXPONENT = 1.0
_SMALLEST_EXPONENT = 1e-3
_GRID_POINTS = 61
_GOLDEN_STEPS = 60
_GOLDEN = (np.sqrt(5.0) - 1) / 2


@dataclass(frozen=True, slots=True)
class Fit:
    """Coefficients of a law, none of them negative."""

    floor: float
    """c."""
    scale: float
    """s, what the law has above c at `reference`."""
    exponent: float
    """b, at most 1; 0 where s is."""
    reference: float
    """r."""

    def at(self, positions: np.ndarray | float) -> np.ndarray | float:
        """Compute the loss at `positions`, which are above 0."""
        return self.floor + self.scale * (positions / self.reference) ** -self.exponent


def fit_power_law(positions: np.ndarray, losses: np.ndarray) -> Fit:
    """Fit the law of least squares to `losses` (n,), none of them negative, at `positions` (n,) above 0.

    The exponent is searched on a grid first, because the error can have several minima in it, then by golden section. A
    curve without a descent gives its mean as c.
    """
    reference = float(np.sqrt(positions[0]) * np.sqrt(positions[-1]))
    logs = np.log(positions) - np.log(reference)

    def solved(exponent: float) -> tuple[float, float, float]:
        return solve(np.exp(-exponent * logs), losses)

    grid = np.geomspace(_SMALLEST_EXPONENT, LARGEST_EXPONENT, _GRID_POINTS)
    errors = [solved(exponent)[2] for exponent in grid]
    best = int(np.argmin(errors))
    low, high = float(grid[max(best - 1, 0)]), float(grid[min(best + 1, len(grid) - 1)])
    left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    left_error, right_error = solved(left)[2], solved(right)[2]
    for _ in range(_GOLDEN_STEPS):
        if left_error <= right_error:
            high, right, right_error = right, left, left_error
            left = high - _GOLDEN * (high - low)
            left_error = solved(left)[2]
        else:
            low, left, left_error = left, right, right_error
            right = low + _GOLDEN * (high - low)
            right_error = solved(right)[2]
    # The ends of the bracket are never tried by the section itself.
    exponent = min((left, right, float(grid[best])), key=lambda tried: solved(tried)[2])
    floor, scale, _ = solved(exponent)
    return Fit(floor, scale, float(exponent) if scale else 0.0, reference)


def solve(power: np.ndarray, losses: np.ndarray) -> tuple[float, float, float]:
    """Find c, s >= 0 with c + s `power` closest to `losses`, both (n,) and not negative, and the squared error."""
    mean_power, mean_loss = power.mean(), losses.mean()
    spread = power - mean_power
    variance = (spread * spread).sum()
    scale = (spread * losses).sum() / variance if variance > 0 else 0.0
    choices = [(mean_loss - scale * mean_power, scale)]
    if min(choices[0]) < 0:
        # The best one lies where either is zero.
        choices = [(mean_loss, 0.0), (0.0, (power * losses).sum() / (power * power).sum())]
    errors = [((floor + scale * power - losses) ** 2).sum() for floor, scale in choices]
    floor, scale = choices[int(np.argmin(errors))]
    return float(floor), float(scale), float(min(errors))
