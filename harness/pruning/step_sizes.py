"""Which grid to round each tensor to: its step balances the bits of weights against those of a text.

Half the step costs a bit more for each non-zero weight and leaves a quarter of what rounding adds to the code length of
the text. With penalty_t for what the text grows by, in nats, when tensor t alone is rounded at probe_t, model and text
together are shortest at step_t = probe_t * sqrt(nonzeros_t / (2 penalty_t)), as long as rounding acts like noise of
variance step^2 / 12 and weights take their differential entropy less log2 step.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

# Steps relative to the root mean square of a tensor's non-zero weights.
FINE_STEP, PROBE_STEP, COARSEST_STEP = 2.0**-7, 0.5, 1.5
# A tensor that hardly matters must not get a step without bound: the penalty per non-zero counts as this at least.
SMALLEST_PENALTY_NATS = 0.014


@dataclass(frozen=True, slots=True)
class Scale:
    """What the search for a tensor's step needs to know of it."""

    rms: float
    """Root mean square of its non-zero weights, positive."""
    nonzeros: int
    """How many these are."""

    def limited(self, step: float, coarsest: float = COARSEST_STEP) -> float:
        """Limit a step to what is not too coarse for the tensor, in root mean squares."""
        return min(step, coarsest * self.rms)


def balanced_steps(scales: Mapping[str, Scale], text_nats: Callable[[Mapping[str, float]], float]) -> dict[str, float]:
    """Search each tensor's step that balances weights against text, by probing one tensor at a time.

    `text_nats(steps)` is the length of the text with each tensor rounded to multiples of its step.
    """
    fine = {name: FINE_STEP * scale.rms for name, scale in scales.items()}
    unrounded = text_nats(fine)
    steps = {}
    for name, scale in scales.items():
        probe = PROBE_STEP * scale.rms
        nonzeros = max(1, scale.nonzeros)
        penalty = max(text_nats(fine | {name: probe}) - unrounded, SMALLEST_PENALTY_NATS * nonzeros)
        steps[name] = probe * math.sqrt(nonzeros / (2 * penalty))
    return steps
