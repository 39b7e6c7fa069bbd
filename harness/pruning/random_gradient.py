"""Random-gradient pruning: weights whose gradient is exactly 0 on random inputs and targets have no influence."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from harness.model.transformer import Transformer
from harness.optim.optimizer import is_regularised
from harness.pruning.structure import find_dead

MAX_PASSES = 8
POSITIONS_PER_PASS = 512


@dataclass(frozen=True, slots=True)
class Removal:
    """Numbers of removed weights."""

    weights: int
    """Weights that were not zero and are now."""
    warning: str
    """Why not everything without a gradient was removed, or nothing."""


@torch.no_grad()
def remove_without_influence(model: Transformer, mean_loss: Callable[[], float], seed: int) -> Removal:
    """Zero the regularised weights that cannot influence the output.

    A hidden unit that is inactive on all random positions, but not on text, has no gradient either. So the loss on
    text, `mean_loss()`, must be the same number before and after, to the last bit; where it is not, only what the zeros
    prove to be without influence is removed.
    """
    named = {name: p for name, p in model.named_parameters() if is_regularised(p)}
    nonzeros, before = _count(named), mean_loss()
    dead = without_gradient(model, seed)
    originals = {name: p.clone() for name, p in named.items()}
    for name, p in named.items():
        p.masked_fill_(dead[name], 0.0)
    after, warning = mean_loss(), ""
    if after != before:
        live, _ = find_dead({name: p != 0 for name, p in _restored(model, originals)}, model.config.heads)
        for name, p in named.items():
            p.mul_(live[name])
        warning = (
            f"without the weights that have no random gradient the loss would go from {before:.9g} to {after:.9g}: "
            "some units are active on text only; undone, and only what zeros prove to be without influence removed"
        )
    return Removal(nonzeros - _count(named), warning)


def without_gradient(model: Transformer, seed: int) -> dict[str, Tensor]:
    """Find the regularised weights (bool, by tensor) whose gradient is exactly 0 at each of thousands of positions.

    The inputs replace the output of the embedding, but where it is zero for every symbol; they and the targets, in the
    shape of the logits, are N(0, 1) and follow from `seed` alone. A column of the embedding whose channel has no
    gradient anywhere is without one too. The model computes in float64 meanwhile, where products of many small weights
    do not underflow, and is float32 after. Passes end early once only weights are left that zeros prove to be without
    influence: no further one would find a gradient of theirs.
    """
    config, generator = model.config, torch.Generator().manual_seed(seed)
    named = {name: p for name, p in model.named_parameters() if is_regularised(p)}
    live, _ = find_dead({name: p != 0 for name, p in model.named_parameters()}, config.heads)
    if config.is_classifier:
        # A chain of layers has no more dead weights than its zeros tell.
        return {name: ~live[name] for name in named}
    dead = {name: torch.ones_like(p, dtype=torch.bool) for name, p in named.items()}

    def note(name: str) -> Callable[[Tensor], None]:
        def take(p: Tensor) -> None:
            # Gradients go as they come: never more than one tensor's is held.
            dead[name] &= p.grad == 0
            p.grad = None

        return take

    handles = [p.register_post_accumulate_grad_hook(note(name)) for name, p in named.items()]
    model.double()
    try:
        for _ in range(MAX_PASSES):
            channels = _backward(model, max(1, POSITIONS_PER_PASS // config.context), generator)
            if "embed.weight" in dead:
                # With its output replaced, the embedding itself gets none.
                dead["embed.weight"] &= channels == 0
            if not any((dead[name] & live[name]).any() for name in dead):
                break
    finally:
        model.float()
        model.zero_grad(set_to_none=True)
        for handle in handles:
            handle.remove()
    return dead


def _backward(model: Transformer, rows: int, generator: torch.Generator) -> Tensor:
    """One backward pass; returns the largest gradient of each channel (width,) of the embedding's output."""
    config, device = model.config, model.embed.weight.device

    def normal(size: int) -> Tensor:
        values = torch.randn(rows, config.context, size, generator=generator, dtype=torch.float64)
        return values.to(device)

    inputs = (normal(config.width) * (model.embed.weight != 0).any(0)).requires_grad_()
    targets = normal(model.vocab_size)
    tokens = torch.zeros(rows, config.context, dtype=torch.long, device=device)
    handle = model.embed.register_forward_hook(lambda *_: inputs)
    try:
        with torch.enable_grad():
            (model(tokens) - targets).square().sum().backward()
    finally:
        handle.remove()
    assert inputs.grad is not None
    return inputs.grad.abs().amax(dim=(0, 1))


def _restored(model: nn.Module, originals: dict[str, Tensor]) -> list[tuple[str, Tensor]]:
    for name, p in model.named_parameters():
        if name in originals:
            p.copy_(originals[name])
    return list(model.named_parameters())


def _count(named: Mapping[str, Tensor]) -> int:
    return sum(int(p.count_nonzero()) for p in named.values())
