"""When has a loss stopped falling? Two halves of a window, each smoothed, compared."""

import math
from dataclasses import dataclass

import numpy as np


@dataclass(kw_only=True, slots=True)
class StoppingConfig:
    """Early end of what reads text again: later epochs, fine-tuning, block trainings; never of the first epoch.

    It looks at losses of training on text that was read before, so both ends of an online code stop alike, and in the
    main phase at those since the rule has had its full strength.
    """

    window_steps: int = 0
    """Steps whose losses are looked at, half of them against the other half; 0 never stops early."""
    tolerance: float = 0.0
    """Share by which the newer half must lie below the older one for training to go on."""

    def problems(self) -> list[str]:
        """Every bad value, a line each."""
        problems = []
        if self.window_steps < 0 or self.window_steps % 2:
            problems.append(
                f"stopping.window_steps={self.window_steps}: must be an even number, or 0 to never stop early"
            )
        if not (math.isfinite(self.tolerance) and -1 < self.tolerance < 1):
            problems.append(f"stopping.tolerance={self.tolerance}: must be a fraction between -1 and 1")
        return problems


class Convergence:
    """The last losses of a phase."""

    def __init__(self, config: StoppingConfig):
        self.config = config
        self.loss_nats: list[float] = []
        """Mean losses in nats per token of at most `window_steps` steps, the newest last."""

    def add(self, loss_nats: float) -> None:
        """Take in the loss of a step."""
        if self.config.window_steps:
            self.loss_nats = [*self.loss_nats[-(self.config.window_steps - 1) :], loss_nats]

    def clear(self) -> None:
        """Forget what was seen: another phase begins."""
        self.loss_nats = []

    def halves(self) -> tuple[float, float] | None:
        """Smoothed loss of the older and of the newer half of the window, in nats per token; None before it is full."""
        size = self.config.window_steps // 2
        if not size or len(self.loss_nats) < 2 * size:
            return None
        weights = epanechnikov(size)
        older, newer = np.array(self.loss_nats[:size]), np.array(self.loss_nats[size:])
        return float(weights @ older), float(weights @ newer)

    @property
    def is_reached(self) -> bool:
        """Whether the newer half is not lower than the older one by more than the tolerance."""
        halves = self.halves()
        return halves is not None and not halves[1] < (1 - self.config.tolerance) * halves[0]


def epanechnikov(size: int) -> np.ndarray:
    """Weights (size,) of Epanechnikov's kernel 3/4 (1 - u^2), at the middles of `size` parts of [-1, 1]; sum 1."""
    u = (2 * np.arange(size) + 1) / size - 1
    kernel = 0.75 * (1 - u * u)
    return kernel / kernel.sum()
