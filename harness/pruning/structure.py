"""What the zeros of a model decide: which weights cannot influence its output, whatever the text.

A tensor is represented by its pattern: True where a weight is not zero. One pass from the embedding to the head finds
what can differ from zero, and what reads it. Every zero found is exact in floating point (0 times a finite number, the
activation of 0, the RMS norm of zeros), so zeroing the rest changes no bit of the logits. What only cancels in
arithmetic without rounding, such as a key's bias in a softmax, counts as influence.

Of a classifier, whose layers are a chain that each is read by the next of alone, units are found.
"""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK_MATRICES = ("qkv", "out", "up", "down")


@dataclass(frozen=True, slots=True)
class DeadStructure:
    """How many parts of a transformer cannot influence its output."""

    rows: int
    """Rows of the matrices of blocks in which no weight has influence."""
    columns: int
    """Columns of these matrices in which no weight has influence."""
    heads: int
    """Attention heads that add nothing: their values are zero, or read by nothing."""
    units: int
    """Hidden units of perceptrons that are zero, or read by nothing."""
    channels: int
    """Channels of the residual stream that are zero at every depth."""
    weights: int
    """Weights that are not zero and have no influence, biases and norms included."""


@dataclass(frozen=True, slots=True)
class _Part:
    """Half a block."""

    live: dict[str, Tensor]
    """By tensor, which weights have influence."""
    adds: Tensor
    """Which channels of the residual stream it can change (width,)."""
    working: Tensor
    """Which of its heads or hidden units add something."""


def find_dead(nonzero: Mapping[str, Tensor], heads: int) -> tuple[dict[str, Tensor], DeadStructure]:
    """Find the weights that have influence (bool, by tensor), and count the parts that have none.

    `nonzero` are the patterns (bool) of all tensors of a `Transformer` with `heads` attention heads a block, or of a
    classifier. Zeroing what has no influence leaves nothing more to find.
    """
    if "embed.weight" not in nonzero:
        # A classifier has none.
        live = find_live_units(nonzero)
        units, weights = num_dead(nonzero)
        return live, DeadStructure(rows=0, columns=0, heads=0, units=units, channels=0, weights=weights)
    live = {}
    stream = nonzero["embed.weight"].any(0)
    if "norm.weight" in nonzero:
        # Sinusoidal positions are added to every channel.
        stream = torch.ones_like(stream)
    working_heads: list[Tensor] = []
    working_units: list[Tensor] = []
    for index in range(sum(name.endswith(".qkv.weight") for name in nonzero)):
        block = f"blocks.{index}."
        patterns = {name.removeprefix(block): pattern for name, pattern in nonzero.items() if name.startswith(block)}
        for part, working in ((_attention, working_heads), (_perceptron, working_units)):
            result = part(patterns, stream, heads)
            stream = stream | result.adds
            live |= {block + name: pattern for name, pattern in result.live.items()}
            working.append(result.working)
    head = nonzero["head.weight"] & _normed(nonzero, "norm", stream)
    # A norm divides by the size of the whole stream: once one channel is read, all of them have influence. What a
    # LayerNorm passes on without a gain is its shift alone.
    is_read = (head.any(0) & nonzero.get("norm.weight", stream)).any()
    live = {name: pattern & is_read for name, pattern in live.items()}
    live |= {"embed.weight": nonzero["embed.weight"] & is_read, "head.weight": head}
    if "smear.weight" in nonzero:
        factors, channels = nonzero["smear.weight"], nonzero["embed.weight"].any(0)
        live["smear.weight"] = factors & channels.repeat(len(factors) // len(channels)) & is_read
    live |= _norm_live(nonzero, "norm", head)
    matrices = [p for name, p in live.items() if name.startswith("blocks.") and p.dim() == 2]
    return live, DeadStructure(
        rows=sum(int((~p.any(1)).sum()) for p in matrices),
        columns=sum(int((~p.any(0)).sum()) for p in matrices),
        heads=sum(int((~(w & is_read)).sum()) for w in working_heads),
        units=sum(int((~(w & is_read)).sum()) for w in working_units),
        channels=int((~(stream & is_read)).sum()),
        weights=sum(int((nonzero[name] & ~p).sum()) for name, p in live.items()),
    )


def _attention(patterns: Mapping[str, Tensor], stream: Tensor, heads: int) -> _Part:
    reads = patterns["qkv.weight"] & _normed(patterns, "attention_norm", stream)
    outputs = reads.any(1) | _bias(patterns, "qkv", reads)
    q, k, v = outputs.view(3, heads, -1)
    is_read = patterns["out.weight"].any(0).view(heads, -1)
    working = (v & is_read).any(1, keepdim=True)
    if "qkv.bias" in patterns:
        q_live = k_live = q & k & working
    else:
        # Norm and rotation tie the parts of a query together: all of them count once one meets a part of a key.
        scores = (_rotated(q) & _rotated(k)).any(1, keepdim=True) & working
        q_live, k_live = scores.expand_as(q), scores.expand_as(k)
    row_live = torch.stack([q_live, k_live, is_read]).flatten()
    live = _linear_live(patterns, "qkv", reads, row_live) | _linear_live(
        patterns, "out", patterns["out.weight"] & v.flatten()
    )
    live |= _norm_live(patterns, "attention_norm", live["qkv.weight"])
    return _Part(live, live["out.weight"].any(1) | _bias(patterns, "out", live["out.weight"]), working.flatten())


def _perceptron(patterns: Mapping[str, Tensor], stream: Tensor, _heads: int) -> _Part:
    reads = patterns["up.weight"] & _normed(patterns, "mlp_norm", stream)
    units = reads.any(1) | _bias(patterns, "up", reads)
    is_read = patterns["down.weight"].any(0)
    live = _linear_live(patterns, "up", reads, is_read) | _linear_live(
        patterns, "down", patterns["down.weight"] & units
    )
    live |= _norm_live(patterns, "mlp_norm", live["up.weight"])
    return _Part(live, live["down.weight"].any(1) | _bias(patterns, "down", live["down.weight"]), units & is_read)


def _normed(patterns: Mapping[str, Tensor], norm: str, stream: Tensor) -> Tensor:
    """Which outputs of a norm can differ from zero; a LayerNorm shifts and scales each."""
    if f"{norm}.weight" not in patterns:
        return stream
    return patterns[f"{norm}.weight"] | patterns[f"{norm}.bias"]


def _norm_live(patterns: Mapping[str, Tensor], norm: str, reading: Tensor) -> dict[str, Tensor]:
    """Gains and shifts with influence, where `reading` are the live weights behind the norm."""
    names = [name for name in (f"{norm}.weight", f"{norm}.bias") if name in patterns]
    return {name: patterns[name] & reading.any(0) for name in names}


def _linear_live(
    patterns: Mapping[str, Tensor], name: str, weights: Tensor, rows: Tensor | None = None
) -> dict[str, Tensor]:
    """Weights and biases of a linear layer of which only `rows` (default: all) are read."""
    rows = torch.ones_like(weights[:, 0]) if rows is None else rows
    live = {f"{name}.weight": weights & rows[:, None]}
    if f"{name}.bias" in patterns:
        live[f"{name}.bias"] = patterns[f"{name}.bias"] & rows
    return live


def _bias(patterns: Mapping[str, Tensor], name: str, like: Tensor) -> Tensor:
    """Pattern of a bias; without one, all False."""
    return patterns.get(f"{name}.bias", torch.zeros_like(like[:, 0]))


def _rotated(heads: Tensor) -> Tensor:
    """What can differ from zero in queries or keys (heads, head width) after rotary positions, which mix two halves."""
    first, second = heads.chunk(2, dim=1)
    return (first | second).repeat(1, 2)


def find_live_units(nonzero: Mapping[str, Tensor]) -> dict[str, Tensor]:
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
    live = find_live_units(nonzero)
    matrices = [name for name, p in nonzero.items() if p.dim() >= 2]
    units = sum(int((~live[name].flatten(1).any(1)).sum()) for name in matrices)
    return units, sum(int((nonzero[name] & ~live[name]).sum()) for name in nonzero)
