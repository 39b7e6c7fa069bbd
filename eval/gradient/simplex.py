"""Weights that are never negative and have a given sum."""

import torch
from torch import Tensor


def project(values: Tensor) -> Tensor:
    """The nearest point (..., n) with no negative number and sum 1, for each row of `values` (..., n).

    By sorting, in O(n log n) a row (Held, Wolfe & Crowder 1974; Duchi et al. 2008, figure 1).
    """
    # On the host: a GPU's running sums differ from call to call, so the deterministic mode refuses them.
    ordered = values.cpu().sort(dim=-1, descending=True).values.double()
    sums = ordered.cumsum(dim=-1) - 1
    ranks = torch.arange(1, values.shape[-1] + 1, dtype=torch.float64)
    # The condition holds for leading numbers only.
    count = (ordered - sums / ranks > 0).sum(dim=-1, keepdim=True).clamp(min=1)
    shift = (sums.gather(-1, count - 1) / count).to(values.device)
    return (values.double() - shift).clamp(min=0).to(values.dtype)
