"""Elementwise functions with hand-written gradients; a compiler gets the plain formulas and makes its own.

Autograd's own chains keep and reread more intermediate tensors; on a CPU, where a 0.85 M-parameter step is bound by
memory traffic, these take a third to two thirds of the time (tests/benchmarks/model_functions.py).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

if TYPE_CHECKING:

    class Context(FunctionCtx):
        """What a forward pass leaves for the backward pass."""

        saved_tensors: tuple[Tensor, ...]
        shape: torch.Size


EPSILON = 1e-6
_is_plain = False


@contextmanager
def plain_formulas() -> Iterator[None]:
    """In the context functions are the plain formulas, whose gradients have gradients too."""
    global _is_plain
    before, _is_plain = _is_plain, True
    try:
        yield
    finally:
        _is_plain = before


def asks_second_derivatives() -> bool:
    """Whether this is inside of `plain_formulas`."""
    return _is_plain


def are_plain() -> bool:
    """Whether functions must be their formulas: a compiler reads them, or second derivatives are asked for."""
    return _is_plain or torch.compiler.is_compiling()


class _RMSNorm(torch.autograd.Function):
    """y = x / sqrt(mean(x^2) + epsilon) over the last dimension."""

    @staticmethod
    def forward(ctx: "Context", x: Tensor) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide)
        scale = norm.square_().div_(x.shape[-1]).add_(EPSILON).rsqrt_().to(x.dtype)
        y = x * scale
        ctx.save_for_backward(y, scale)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: "Context", gradient: Tensor) -> Tensor:
        y, scale = ctx.saved_tensors
        mean = torch.linalg.vecdot(gradient, y).unsqueeze(-1) / y.shape[-1]
        return torch.addcmul(gradient, y, mean, value=-1).mul_(scale)


class _SquaredReLU(torch.autograd.Function):
    """y = max(x, 0)^2."""

    @staticmethod
    def forward(ctx: "Context", x: Tensor) -> Tensor:
        positive = torch.relu(x)
        ctx.save_for_backward(positive)
        return positive * positive

    @staticmethod
    @once_differentiable
    def backward(ctx: "Context", gradient: Tensor) -> Tensor:
        (positive,) = ctx.saved_tensors
        return (gradient * positive).mul_(2)


class _Rotated(torch.autograd.Function):
    """The gradient of a rotation is turned back."""

    @staticmethod
    def forward(ctx: "Context", x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turned(x, cos, sin)

    @staticmethod
    @once_differentiable
    def backward(ctx: "Context", gradient: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _turned(gradient, cos, -sin), None, None


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Each pair of the first and second half of the last dimension turned by its angle."""
    first, second = x.chunk(2, dim=-1)
    turned = torch.empty_like(x, memory_format=torch.contiguous_format)
    new_first, new_second = turned.chunk(2, dim=-1)
    torch.mul(first, cos, out=new_first).addcmul_(second, sin, value=-1)
    torch.mul(first, sin, out=new_second).addcmul_(second, cos)
    return turned


def rms_norm(x: Tensor) -> Tensor:
    """`x` divided by its root mean square over the last dimension (Zhang & Sennrich 2019, without a gain)."""
    if are_plain():
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        return x * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + EPSILON).to(x.dtype)
    if x.device.type == "cuda":
        # One kernel, in the precision of `x`, where autocast would widen it.
        with torch.autocast("cuda", enabled=False):
            return F.rms_norm(x, x.shape[-1:], eps=EPSILON)
    return _RMSNorm.apply(x)


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Pairs of the first and second half of the last dimension of `x` turned by angles with these cosines and sines.

    The tables have the shape of a half, or one that broadcasts to it.
    """
    if are_plain():
        first, second = x.chunk(2, dim=-1)
        return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)
    return _Rotated.apply(x, cos, sin)


def squared_relu(x: Tensor) -> Tensor:
    """max(x, 0)^2 (So et al. 2021, "Primer")."""
    return torch.relu(x).square() if are_plain() else _SquaredReLU.apply(x)
