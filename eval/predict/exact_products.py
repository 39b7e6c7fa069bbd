"""Exact products of the portable predictor: integer weights on their grid times bounded integer activations."""

import math
from collections.abc import Mapping
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

from harness.errors import UsageError
from harness.model.functions import EPSILON

# Integers below 2^this are exact, and so are their sums in any order.
EXACT_BITS = {torch.float32: 24, torch.float64: 53}
STREAM_BITS = 12
"""The residual stream is in units of 2^-12."""
# Normalised activations: units as fine as float32 sums allow, then float64 with the finest.
NORMAL_BITS = (12, 11, 10, 9, 8)
LAYER_NORM_EPSILON = 1e-5

Grids = Mapping[str, "Grid"]


class Grid:
    """A tensor of integers, in units of `step`."""

    def __init__(self, name: str, integers: np.ndarray, step: np.float32 | float):
        self.name, self.integers, self.step = name, integers.astype(np.int64, copy=False), float(step)

    def values(self, bits: int) -> Tensor:
        """Convert to float64 in units of 2^-bits: exact, since 21 bits and 24 fit into 53."""
        return torch.from_numpy(self.integers.astype(np.float64) * math.ldexp(self.step, bits))

    def matrix(self, dtype: torch.dtype) -> Tensor:
        """The integers, as (inputs, outputs)."""
        return torch.from_numpy(np.ascontiguousarray(self.integers.T)).to(dtype)

    def row_norm2(self) -> int:
        """The largest sum of squares of a row; at least 1."""
        return max(1, int((self.integers * self.integers).sum(axis=1).max()))

    def row_sum(self) -> int:
        """The largest sum of magnitudes of a row; at least 1."""
        return max(1, int(np.abs(self.integers).sum(axis=1).max()))

    def too_large(self) -> UsageError:
        """Make the error that says that sums of these integers are not exact."""
        return UsageError(
            f"{self.name}: integers too large for exact sums; use a coarser grid, or eval.predictor=float"
        )


class NormedProduct:
    """A norm and the product behind it: exact integers (lanes, outputs) from the residual stream (lanes, width).

    Without gains it is the RMS norm, with gains LayerNorm.
    """

    def __init__(self, grids: Grids, norm: str, weight: str, width: int):
        gain, bias, matrix = grids.get(f"{norm}.weight"), grids.get(f"{norm}.bias"), grids[weight]
        stretch = Fraction(1) if gain is None or bias is None else _largest(gain) + _largest(bias)
        # Rows have norm sqrt(width) * 2^bits at most before gain and bias, and rounding adds 1/2 an entry; the other
        # half covers the float64 operations. Cauchy and Schwarz bound every partial sum by the product of the norms.
        norms2 = {bits: width * (math.ceil(stretch * 2**bits) + 1) ** 2 for bits in NORMAL_BITS}
        bounds = {bits: math.isqrt(matrix.row_norm2() * norm2) + 1 for bits, norm2 in norms2.items()}
        bits = next((bits for bits in NORMAL_BITS if bounds[bits] < 1 << 24), None)
        self.dtype = torch.float64 if bits is None else torch.float32
        bits = NORMAL_BITS[0] if bits is None else bits
        if bounds[bits] >= 1 << EXACT_BITS[self.dtype]:
            raise matrix.too_large()
        self.row_norm2 = norms2[bits]
        """Bound on the squares of a normalised row."""
        self.unit = math.ldexp(matrix.step, -bits)
        """What 1 in the product stands for."""
        self.matrix, self.width = matrix.matrix(self.dtype), float(width)
        self.scale = math.ldexp(square_root(width), bits)
        self.epsilon = (width << 2 * STREAM_BITS) * (EPSILON if gain is None else LAYER_NORM_EPSILON)
        self.gain = None if gain is None else gain.values(0)
        self.bias = None if bias is None else bias.values(bits)

    def __call__(self, x: Tensor) -> Tensor:
        """Exact sums in units of `unit`."""
        if self.gain is not None:
            x = x - torch.div(x.sum(dim=1, keepdim=True), x.new_tensor(self.width)).round_()
        normal = x * inverse_norm(x, self.scale, self.epsilon)
        if self.gain is not None and self.bias is not None:
            normal = normal.mul_(self.gain).add_(self.bias)
        return normal.round_().to(self.dtype) @ self.matrix


class Product:
    """A product of bounded integers, rounded to the residual stream's unit (float64)."""

    def __init__(self, grids: Grids, name: str, limit: int, unit: float, dtypes: tuple[torch.dtype, ...]):
        """Inputs are at most `limit` in magnitude, and in units of `unit`; the first exact type is used."""
        matrix, bias = grids[f"{name}.weight"], grids.get(f"{name}.bias")
        exact = [dtype for dtype in dtypes if matrix.row_sum() * limit < 1 << EXACT_BITS[dtype]]
        if not exact:
            raise matrix.too_large()
        self.dtype, self.matrix = exact[0], matrix.matrix(exact[0])
        self.scale = math.ldexp(matrix.step * unit, STREAM_BITS)
        self.bias = None if bias is None else bias.values(STREAM_BITS)

    def __call__(self, inputs: Tensor) -> Tensor:
        """What to add to the residual stream, from integers (lanes, inputs)."""
        sums = (inputs.to(self.dtype) @ self.matrix).double().mul_(self.scale)
        return (sums if self.bias is None else sums.add_(self.bias)).round_()


def inverse_norm(x: Tensor, scale: float, epsilon: float) -> Tensor:
    """scale / sqrt(sum of squares + epsilon) over the last dimension of float64 integers."""
    squares = (x * x).sum(dim=-1, keepdim=True) + epsilon
    if squares.device.type == "cpu":
        return torch.from_numpy(scale / np.sqrt(squares.numpy()))
    return torch.div(squares.new_tensor(scale), squares.sqrt_())


def square_root(number: int) -> float:
    """Compute the square root of an integer in integer arithmetic."""
    return math.ldexp(math.isqrt(number << 80), -40)


def _largest(grid: Grid) -> Fraction:
    return int(np.abs(grid.integers).max()) * Fraction(grid.step)
