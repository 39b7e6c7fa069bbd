"""What the decoder of an archive of targets shares with training: shapes of a student, and the inputs. No torch."""

from itertools import pairwise

import numpy as np


def layer_shapes(widths: list[int]) -> list[tuple[int, int]]:
    """Shape of each layer with its biases: (outputs, inputs + 1)."""
    return [(outputs, inputs + 1) for inputs, outputs in pairwise(widths)]


def split_layers(weights: np.ndarray, widths: list[int]) -> dict[str, np.ndarray]:
    """The layers of one student's weights (weights,), by name."""
    shapes = layer_shapes(widths)
    ends = np.cumsum([rows * columns for rows, columns in shapes])[:-1]
    parts = np.split(weights, ends)
    return {f"layer{i}": part.reshape(shape) for i, (part, shape) in enumerate(zip(parts, shapes, strict=True))}


def make_inputs(seed: int, num_targets: int, width: int) -> np.ndarray:
    """Inputs (targets, width) float32, uniform on [-1, 1): the first ones are the same for any number of targets.

    From PCG64 by exact arithmetic, so that a decoder draws the same.
    """
    return (2 * np.random.Generator(np.random.PCG64(seed)).random((num_targets, width)) - 1).astype(np.float32)
