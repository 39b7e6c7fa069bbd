"""Units of a classifier that cannot influence its output: of chains of layers, each read by the next one alone."""

import itertools
import math
from collections.abc import Mapping

from torch import Tensor


def find_live(nonzero: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Find the weights that have influence (bool, by tensor), given the patterns (bool) of all tensors of a classifier.

    A unit whose weights and bias are zero is zero behind a ReLU or a pooling, so that nothing reads it; one that
    nothing reads needs no weights. Behind norms, and where layers are added, all weights count.
    """
    live = {name: pattern.clone() for name, pattern in nonzero.items()}
    layers = [name.removesuffix(".weight") for name, p in nonzero.items() if name.endswith(".weight")]
    if any(nonzero[f"{layer}.weight"].dim() < 2 for layer in layers):
        return live
    pairs = list(itertools.pairwise(layers))
    for layer, reader in pairs:
        weight, bias = live[f"{layer}.weight"], live[f"{layer}.bias"]
        _by_unit(live[f"{reader}.weight"], len(weight)).mul_((weight.flatten(1).any(1) | bias)[:, None])
    for layer, reader in reversed(pairs):
        weight, bias = live[f"{layer}.weight"], live[f"{layer}.bias"]
        is_read = _by_unit(live[f"{reader}.weight"], len(weight)).any(2).any(0)
        weight.mul_(is_read.view(-1, *[1] * (weight.dim() - 1)))
        bias.mul_(is_read)
    return live


def _by_unit(weight: Tensor, units: int) -> Tensor:
    """Weights of a reader as (outputs, units, places), a view."""
    return weight.view(len(weight), units, math.prod(weight.shape[1:]) // units)


def num_dead(nonzero: Mapping[str, Tensor]) -> tuple[int, int]:
    """Count the units, and the weights that are not zero, without influence."""
    live = find_live(nonzero)
    matrices = [name for name, p in nonzero.items() if p.dim() >= 2]
    units = sum(int((~live[name].flatten(1).any(1)).sum()) for name in matrices)
    return units, sum(int((nonzero[name] & ~live[name]).sum()) for name in nonzero)
