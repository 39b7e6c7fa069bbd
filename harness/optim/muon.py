"""Muon: momentum whose matrices are made orthogonal, in batches of equal shape, shared out among ranks.

Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks": update rule, coefficients and scaling are
those of `torch.optim.Muon`. What differs is the arithmetic of the iteration. In bf16, which few processors have, it is
the published one on the whole matrix. In float32 it runs on the small square of a matrix (Gram Newton-Schulz, Dao-AILab
2026): the same polynomial in exact arithmetic, for two thirds of the work on the matrices of a transformer. Its
squares are too coarse for bf16.
"""

import math
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from harness.optim.adamw import EagerOptimizer

ITERATIONS = 5
A, B, C = 3.4445, -4.7750, 2.0315
EPSILON = 1e-7
# Matrices of one product on a GPU, where a launch costs more than a small product. Which are together depends on the
# model alone and not on the number of ranks, since a library may choose other kernels, and so other last bits, for
# another number of matrices.
STACKED_ON_GPU = 4


def orthogonalised(matrices: Tensor, dtype: torch.dtype) -> Tensor:
    """Nearly orthogonal matrices (n, rows, columns) or one of them, in `dtype` (bfloat16, or float32 and wider).

    Singular values become some between 0.7 and 1.2; directions without any stay near 0.
    """
    is_tall = matrices.shape[-2] > matrices.shape[-1]
    x = (matrices.mT if is_tall else matrices).to(dtype)
    x = x / torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True).clamp(min=EPSILON)
    x = _iterated(x) if dtype == torch.bfloat16 or x.shape[-2] == x.shape[-1] else _iterated_on_gram(x)
    return x.mT if is_tall else x


def _iterated(x: Tensor) -> Tensor:
    """x <- A x + (B G + C G^2) x with G = x x^T, again and again."""
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = _sum(A, x, 1, _sum(B, gram, C, gram, gram), x)
    return x


def _iterated_on_gram(x: Tensor) -> Tensor:
    """The same as a product of polynomials in the first G, which all commute."""
    gram = x @ x.mT
    total = None
    for index in range(ITERATIONS):
        factor = _sum(B, gram, C, gram, gram)
        factor.diagonal(dim1=-2, dim2=-1).add_(A)
        total = factor if total is None else factor @ total
        if index < ITERATIONS - 1:
            gram = factor @ (factor @ gram)
    assert total is not None
    return total @ x


def _sum(beta: float, addend: Tensor, alpha: float, left: Tensor, right: Tensor) -> Tensor:
    """beta * addend + alpha * left @ right."""
    add = torch.addmm if left.dim() == 2 else torch.baddbmm
    return add(addend, left, right, beta=beta, alpha=alpha)


class Muon(EagerOptimizer):
    """Muon for matrices that all ranks hold; all take part in each step with the same gradients.

    Each rank makes a part of the updates orthogonal and gets those of the others, so that the work of a rank falls
    with their number and no bit depends on it.
    """

    def __init__(
        self,
        groups: list[dict],
        momentum: float,
        dtype: torch.dtype,
        rank: int,
        world_size: int,
    ):
        """Groups name their `lr` and `weight_decay`; `momentum` is its decay rate, `dtype` that of the iteration."""
        super().__init__(groups, {})
        self.momentum = momentum
        self.dtype, self.rank, self.world_size = dtype, rank, world_size

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """One step on the gradients; parameters without one stay as they are."""
        trained = [(group, p) for group in self.param_groups for p in group["params"] if p.grad is not None]
        if not trained:
            return
        updates = self._orthogonalised(self._momenta([p for _, p in trained]))
        by_rate: dict[tuple[float, float], tuple[list[Tensor], list[Tensor]]] = {}
        for (group, p), update in zip(trained, updates, strict=True):
            rows, columns = p.shape
            rate = group["lr"] * math.sqrt(max(1.0, rows / columns))
            parameters, own = by_rate.setdefault((1 - group["lr"] * group["weight_decay"], rate), ([], []))
            parameters.append(p)
            own.append(update.to(p.dtype))
        for (kept, rate), (parameters, own) in by_rate.items():
            if kept != 1:
                torch._foreach_mul_(parameters, kept)
            torch._foreach_add_(parameters, own, alpha=-rate)

    def _momenta(self, parameters: list[Tensor]) -> list[Tensor]:
        """Nesterov's momentum of each gradient."""
        for p in parameters:
            if "momentum_buffer" not in self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        gradients = [p.grad for p in parameters if p.grad is not None]
        buffers = [self.state[p]["momentum_buffer"] for p in parameters]
        torch._foreach_lerp_(buffers, gradients, 1 - self.momentum)
        return list(torch._foreach_lerp(gradients, buffers, self.momentum))

    def _orthogonalised(self, matrices: list[Tensor]) -> list[Tensor]:
        """The orthogonal matrices of all `matrices`, each computed by one rank."""
        most = STACKED_ON_GPU if matrices[0].device.type == "cuda" else 1
        pieces = pieces_of_equal_shape([m.shape for m in matrices], most)
        owners = assigned([len(piece) * _work(matrices[piece[0]].shape) for piece in pieces], self.world_size)
        dtype = torch.promote_types(matrices[0].dtype, torch.float32) if self.dtype == torch.float32 else self.dtype
        made: dict[int, Tensor] = {}
        for piece, owner in zip(pieces, owners, strict=True):
            if owner == self.rank:
                stack = torch.stack([matrices[index] for index in piece])
                made |= zip(piece, orthogonalised(stack, dtype), strict=True)
        if self.world_size > 1:
            made = self._gathered(made, matrices, pieces, owners, dtype)
        return [made[index] for index in range(len(matrices))]

    def _gathered(
        self,
        made: dict[int, Tensor],
        matrices: list[Tensor],
        pieces: list[list[int]],
        owners: list[int],
        dtype: torch.dtype,
    ) -> dict[int, Tensor]:
        """All ranks' results on every rank, in one collective of equal shares."""
        of_rank = [
            [i for piece, owner in zip(pieces, owners, strict=True) if owner == rank for i in piece]
            for rank in range(self.world_size)
        ]
        largest = max(sum(matrices[i].numel() for i in own) for own in of_rank)
        part = torch.zeros(largest, dtype=dtype, device=matrices[0].device)
        if own := of_rank[self.rank]:
            flat = torch.cat([made[i].reshape(-1) for i in own])
            part[: flat.numel()] = flat
        shares = [torch.empty_like(part) for _ in of_rank]
        dist.all_gather(shares, part)
        gathered: dict[int, Tensor] = {}
        for own, flat in zip(of_rank, shares, strict=True):
            parts = flat.split([matrices[i].numel() for i in own] + [largest - sum(matrices[i].numel() for i in own)])
            gathered |= {i: part.view(matrices[i].shape) for i, part in zip(own, parts, strict=False)}
        return gathered


def pieces_of_equal_shape(shapes: Sequence[torch.Size], most: int) -> list[list[int]]:
    """Indices of matrices of one shape each, at most `most` a piece, in the order of their first appearance."""
    by_shape: dict[torch.Size, list[int]] = {}
    for index, shape in enumerate(shapes):
        by_shape.setdefault(shape, []).append(index)
    return [same[start : start + most] for same in by_shape.values() for start in range(0, len(same), most)]


def assigned(work: Sequence[float], world_size: int) -> list[int]:
    """Owner of each piece of work: the largest first, each to whom has the least so far."""
    loads, owners = [0.0] * world_size, [0] * len(work)
    for index in sorted(range(len(work)), key=lambda i: (-work[i], i)):
        owner = loads.index(min(loads))
        owners[index] = owner
        loads[owner] += work[index]
    return owners


def _work(shape: torch.Size) -> float:
    """Work of an iteration, up to a factor."""
    small, large = sorted(shape)
    return small * small * (small + large)
