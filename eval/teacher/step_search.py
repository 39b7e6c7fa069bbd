"""The grids of a student: steps at which its weights and the targets together are shortest.

Sigma follows from the steps: the root mean square of what the rounded student leaves, at which the Gaussian code is
shortest. All steps are scaled together, then each layer's alone, downhill as long as the total falls.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from eval.codec.gaussian import gaussian_bits
from eval.teacher.archive import SMALLEST_SIGMA, Layers
from eval.weights.codec import encode_weights, quantise, rebuild
from harness.units import bytes_from_bits

# Steps relative to the root mean square of a layer's non-zeros: where the search starts, and how far it may go.
FIRST_STEP = 2.0**-3
SMALLEST_LOG2, LARGEST_LOG2 = -12.0, 6.0
_SMALLEST_RMS = 1e-20


@dataclass(frozen=True, slots=True)
class RoundedStudent:
    """A student with rounded weights, and the bits of the targets given its outputs."""

    integers: Layers
    steps: dict[str, np.float32]
    sigma: np.float32
    means: np.ndarray
    """What it predicts, but for the last bits, (targets,)."""
    total_bytes: float
    """Weights as coded, and the ideal length of the targets."""


def choose_grids(layers: Layers, inputs: np.ndarray, targets: np.ndarray) -> RoundedStudent:
    """Round a student so that weights and `targets` (n,), given `inputs` (n, width), are shortest together."""
    base = {name: FIRST_STEP * _rms(layer) for name, layer in layers.items()}
    tried: dict[tuple[float, ...], RoundedStudent] = {}

    def at(log2_factors: tuple[float, ...]) -> RoundedStudent:
        if log2_factors not in tried:
            factors = zip(base.items(), log2_factors, strict=True)
            tried[log2_factors] = _rounded(
                layers, {name: np.float32(step * 2.0**power) for (name, step), power in factors}, inputs, targets
            )
        return tried[log2_factors]

    together, alone = (1.0,) * len(layers), np.eye(len(layers))
    best = _walk((0.0,) * len(layers), together, at)
    for size in (1.0, 0.5):
        for direction in alone:
            best = _walk(best, tuple(size * direction), at)
    return at(best)


def _walk(
    start: tuple[float, ...], direction: tuple[float, ...], at: Callable[[tuple[float, ...]], RoundedStudent]
) -> tuple[float, ...]:
    """Where going up or down along `direction` from `start` ends, each further step being shorter in total."""
    best = start
    for sign in (1.0, -1.0):
        while True:
            further = tuple(here + sign * step for here, step in zip(best, direction, strict=True))
            in_range = all(SMALLEST_LOG2 <= power <= LARGEST_LOG2 for power in further)
            if not in_range or at(further).total_bytes >= at(best).total_bytes:
                break
            best = further
    return best


def _rounded(layers: Layers, steps: dict[str, np.float32], inputs: np.ndarray, targets: np.ndarray) -> RoundedStudent:
    integers = quantise(layers, steps)
    means = fast_predictions(rebuild(integers, steps), inputs)
    mse = float(np.mean(np.square(targets - means)))
    sigma = np.float32(max(mse**0.5, SMALLEST_SIGMA))
    targets_bytes = bytes_from_bits(gaussian_bits(targets, means, float(sigma)))
    return RoundedStudent(integers, steps, sigma, means, len(encode_weights(integers, steps)) + targets_bytes)


def fast_predictions(layers: Layers, inputs: np.ndarray) -> np.ndarray:
    """Compute what `predict` does but for the last bits, faster: enough for a search."""
    units = inputs.astype(np.float64)
    for index, layer in enumerate(layers.values()):
        units = units @ layer[:, :-1].T + layer[:, -1]
        units = np.tanh(units) if index < len(layers) - 1 else units
    return units[:, 0]


def _rms(layer: np.ndarray) -> float:
    """Root mean square of the non-zeros; 1 where there is none, or where a step would underflow."""
    nonzeros = layer[layer != 0].astype(np.float64)
    rms = float(np.sqrt(np.mean(np.square(nonzeros)))) if len(nonzeros) else 1.0
    return rms if rms > _SMALLEST_RMS else 1.0
