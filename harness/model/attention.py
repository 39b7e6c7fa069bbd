"""Causal attention: PyTorch's fused kernel, and on a CPU block by block as matrix products.

The fused kernel for CPUs reaches half the rate of a plain matrix product. Blocks of queries against the keys that they
may see run at that rate, and so take two thirds of its time in float32 and half in bfloat16, forward and backward
(docs/speed.md). As in the fused kernel nothing of size length x length is kept: the backward pass computes the weights
again. In bfloat16 scores are rounded before the softmax, as in attention written with plain products; processors
without native bfloat16 compute in float32 instead of emulating it.
"""

import functools
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from harness.machine.hardware import has_native_bf16
from harness.model.functions import asks_second_derivatives

if TYPE_CHECKING:
    from harness.model.functions import Context

# Queries of a block: larger ones compute more of what the mask then hides, smaller ones are slow products.
BLOCK = 64
# Heads that go through a product together: their weights stay in the second-level cache.
GROUP = 8


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Values mixed by softmax(q k' / sqrt(head width)) over this and earlier places, shape (batch, length, width).

    `q`, `k` and `v` have shape (batch, length, heads, head width).
    """
    if asks_second_derivatives():
        # Only studies do.
        from harness.model.plain_attention import softmax_attention

        return softmax_attention(q, k, v)
    if v.device.type == "cpu" and not torch.compiler.is_compiling():
        dtype = v.dtype if v.dtype != torch.bfloat16 or has_native_bf16(v.device) else torch.float32
        with torch.autocast("cpu", enabled=False):
            return _BlockAttention.apply(q.to(dtype), k.to(dtype), v.to(dtype)).to(v.dtype)
    mixed = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True)
    return mixed.transpose(1, 2).flatten(2)


class _BlockAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: "Context", q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        ctx.shape = q.shape
        q, k, v = map(_heads_first, (q * q.shape[-1] ** -0.5, k, v))
        mixed = torch.empty_like(v)
        for heads, start, end in _blocks(*q.shape[:2]):
            seen = slice(None, end)
            weights = _weights(q[heads, start:end], k[heads, seen], start)
            mixed[heads, start:end] = torch.bmm(weights, v[heads, seen])
        ctx.save_for_backward(q, k, v)
        return _heads_last(mixed, ctx.shape).flatten(2)

    @staticmethod
    @once_differentiable
    def backward(ctx: "Context", gradient: Tensor) -> tuple[Tensor, ...]:
        q, k, v = ctx.saved_tensors
        gradient = _heads_first(gradient.view(ctx.shape))
        of_q, of_k, of_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for heads, start, end in _blocks(*q.shape[:2]):
            seen, own = slice(None, end), (heads, slice(start, end))
            weights = _weights(q[own], k[heads, seen], start)
            of_v[heads, seen].baddbmm_(weights.mT, gradient[own])
            of_weights = torch.bmm(gradient[own], v[heads, seen].mT)
            of_scores = torch._softmax_backward_data(of_weights, weights, -1, weights.dtype)
            of_q[own] = torch.bmm(of_scores, k[heads, seen])
            of_k[heads, seen].baddbmm_(of_scores.mT, q[own])
        of_q *= ctx.shape[-1] ** -0.5
        return tuple(_heads_last(tensor, ctx.shape) for tensor in (of_q, of_k, of_v))


def _blocks(num_heads: int, length: int) -> list[tuple[slice, int, int]]:
    """Heads, first place and end place of each block of queries."""
    heads = [slice(first, first + GROUP) for first in range(0, num_heads, GROUP)]
    return [(own, start, min(start + BLOCK, length)) for own in heads for start in range(0, length, BLOCK)]


def _weights(q: Tensor, k: Tensor, start: int) -> Tensor:
    """Softmax (heads, queries, keys) of the scores of queries from place `start` on; the last one sees all keys."""
    scores = torch.bmm(q, k.mT)
    scores[:, :, start:].masked_fill_(_later(q.shape[1]), -torch.inf)
    return torch.softmax(scores, dim=-1)


@functools.cache
def _later(size: int) -> Tensor:
    """Which keys (size, size) of a block come after a query."""
    return torch.ones(size, size, dtype=torch.bool).triu_(1)


def _heads_first(x: Tensor) -> Tensor:
    """(batch, length, heads, head width) -> (batch * heads, length, head width)."""
    return x.transpose(1, 2).flatten(0, 1).contiguous()


def _heads_last(x: Tensor, shape: torch.Size) -> Tensor:
    """Inverse of `_heads_first`; `shape` is the one before."""
    return x.view(shape[0], shape[2], shape[1], shape[3]).transpose(1, 2)
