"""Weights without influence: found exactly from the zeros, or by random gradients, and removed without a trace."""

import pytest
import torch
from torch import Tensor

from harness.model.transformer import ARCHITECTURES, ModelConfig, Transformer, token_nats
from harness.optim.optimizer import is_regularised
from harness.pruning.random_gradient import remove_without_influence, without_gradient
from harness.pruning.structure import DeadStructure, find_dead

WIDTH, HEADS = 16, 4


KINDS = (*ARCHITECTURES, "smeared")


def kind(architecture: str) -> dict:
    """Settings of a model: of an architecture, or of the first one with smeared embeddings."""
    return {"smear": 2} if architecture == "smeared" else {"architecture": architecture}


def make_model(architecture: str, density: float = 1.0, seed: int = 0) -> Transformer:
    """Random weights, of which a random share is not zero, norms and biases included."""
    torch.manual_seed(seed)
    model = Transformer(ModelConfig(**kind(architecture), width=WIDTH, layers=2, heads=HEADS, context=16), 30)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(0.3 * torch.randn_like(p))
            if density < 1:
                p.mul_(torch.rand(WIDTH) < 0.6 if name == "embed.weight" else torch.rand_like(p) < density)
    return model


def patterns(model: Transformer) -> dict[str, Tensor]:
    return {name: p != 0 for name, p in model.named_parameters()}


def logits(model: Transformer) -> Tensor:
    with torch.no_grad():
        return model(torch.arange(64).view(4, 16) * 7 % 30)


def zero(model: Transformer, live: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.mul_(live[name])


@pytest.mark.parametrize("architecture", KINDS)
@pytest.mark.parametrize("density", [0.02, 0.05, 0.1, 0.2])
@pytest.mark.parametrize("seed", [0, 1])
def test_zeroing_what_is_found_changes_no_bit_and_leaves_nothing_to_find(architecture, density, seed):
    model = make_model(architecture, density, seed)
    before, nonzero = logits(model), patterns(model)
    live, dead = find_dead(nonzero, HEADS)
    dead_by_gradient = without_gradient(model, seed=0)
    zero(model, live)
    assert dead.weights > 0 and torch.equal(logits(model), before)
    after_live, after = find_dead(patterns(model), HEADS)
    assert after.weights == 0 and all(torch.equal(after_live[name], live[name]) for name in live)
    # What is proved to be without influence has no gradient either.
    assert not any((nonzero[name] & ~live[name] & ~dead_by_gradient[name]).any() for name in dead_by_gradient)


@pytest.mark.parametrize("architecture", KINDS)
def test_a_dense_model_has_no_dead_parts(architecture):
    model = make_model(architecture)
    assert find_dead(patterns(model), HEADS)[1] == DeadStructure(0, 0, 0, 0, 0, 0)
    dead = without_gradient(model, seed=0)
    assert set(dead) == {name for name, p in model.named_parameters() if is_regularised(p)}
    assert not any(pattern.any() for pattern in dead.values())
    assert all(p.dtype == torch.float32 and p.grad is None for p in model.parameters())


def dead_after(architecture: str, **zeroed: tuple) -> tuple[dict[str, Tensor], DeadStructure]:
    """What is found where indices of tensors of block 0 (`head` and `embed` by name) are zeroed."""
    model = make_model(architecture)
    named = dict(model.named_parameters())
    with torch.no_grad():
        for name, index in zeroed.items():
            prefix = "" if name in ("head", "embed") else "blocks.0."
            named[f"{prefix}{name}.weight"][index] = 0.0
    return find_dead(patterns(model), HEADS)


ALL = slice(None)


@pytest.mark.parametrize("architecture", KINDS)
def test_a_unit_that_nothing_reads_takes_its_row_along_and_its_bias(architecture):
    live, dead = dead_after(architecture, down=(ALL, 5))
    biases = architecture == "published"
    assert dead == DeadStructure(rows=1, columns=1, heads=0, units=1, channels=0, weights=WIDTH + biases)
    assert not live["blocks.0.up.weight"][5].any() and live["blocks.0.up.weight"][6].all()
    assert not biases or not live["blocks.0.up.bias"][5]


def test_a_unit_without_weights_takes_its_column_along_unless_it_has_a_bias():
    assert dead_after("modern", up=(5,))[1] == DeadStructure(1, 1, 0, 1, 0, WIDTH)
    assert dead_after("published", up=(5,))[1] == DeadStructure(1, 0, 0, 0, 0, 0)


@pytest.mark.parametrize("architecture", KINDS)
def test_a_head_that_nothing_reads_takes_queries_keys_and_values_along(architecture):
    size = WIDTH // HEADS
    live, dead = dead_after(architecture, out=(ALL, slice(size, 2 * size)))
    weights = 3 * size * (WIDTH + (architecture == "published"))
    assert dead == DeadStructure(rows=3 * size, columns=size, heads=1, units=0, channels=0, weights=weights)
    rows = live["blocks.0.qkv.weight"].view(3, HEADS, size, WIDTH)
    assert not rows[:, 1].any() and rows[:, 0].all()


def test_a_head_without_values_takes_what_reads_it_along():
    size = WIDTH // HEADS
    _, dead = dead_after("modern", qkv=(slice(2 * WIDTH, 2 * WIDTH + size),))
    assert dead == DeadStructure(3 * size, size, 1, 0, 0, 2 * size * WIDTH + WIDTH * size)


def test_queries_without_keys_have_no_influence_but_values_do():
    size = WIDTH // HEADS
    _, dead = dead_after("modern", qkv=(slice(WIDTH, WIDTH + size),))
    assert dead == DeadStructure(rows=2 * size, columns=0, heads=0, units=0, channels=0, weights=size * WIDTH)


def test_a_channel_that_is_zero_at_every_depth_is_read_in_vain():
    model = make_model("modern")
    with torch.no_grad():
        model.embed.weight[:, 3] = 0
        for block in model.blocks:
            block.out.weight[3] = block.down.weight[3] = 0
    live, dead = find_dead(patterns(model), HEADS)
    assert dead.channels == 1 and dead.columns == 4 and dead.rows == 4
    assert dead.weights == 2 * (3 * WIDTH + 4 * WIDTH) + 30 and not live["head.weight"][:, 3].any()


def test_a_model_whose_output_reads_nothing_is_dead():
    live, dead = dead_after("modern", head=(ALL,))
    assert dead.heads == 2 * HEADS and dead.channels == WIDTH and not any(p.any() for p in live.values())


def text_loss(model: Transformer) -> float:
    tokens = torch.arange(64).view(4, 16) * 7 % 30
    with torch.no_grad():
        return float(token_nats(model, tokens, torch.float32).sum(dtype=torch.float64))


@pytest.mark.parametrize("architecture", KINDS)
def test_random_gradients_remove_what_zeros_prove_and_nothing_that_counts(architecture):
    model = make_model(architecture, density=0.1)
    live, _ = find_dead(patterns(model), HEADS)
    before = text_loss(model)
    removal = remove_without_influence(model, lambda: text_loss(model), seed=0)
    assert text_loss(model) == before and removal.weights > 0 and not removal.warning
    assert not any((p != 0)[~live[name]].any() for name, p in model.named_parameters() if is_regularised(p))


def test_a_unit_that_only_text_activates_is_kept_and_said():
    """Channel 15 is positive only where the embedding is nearly parallel to one direction, as all symbols' are."""
    model = make_model("modern")
    with torch.no_grad():
        for block in model.blocks:
            for layer in (block.qkv, block.out, block.up, block.down):
                layer.weight.zero_()
        first, second = model.blocks
        model.embed.weight.copy_(torch.ones(WIDTH))[:, 15] = 0.0
        first.up.weight[0, :15] = 1.0  # the square of the sum, up to 15 * 16
        first.up.weight[1:16, :15], first.up.weight[16:31, :15] = torch.eye(15), -torch.eye(15)  # all squares: 16
        first.down.weight[15, 0], first.down.weight[15, 1:31] = 1.0, -13.0
        second.up.weight[0, 15], second.down.weight[3, 0] = 1.0, 1.0
        model.head.weight.normal_()
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    assert without_gradient(model, seed=0)["blocks.1.up.weight"][0, 15]
    removal = remove_without_influence(model, lambda: text_loss(model), seed=0)
    assert "the loss would go from" in removal.warning and removal.weights == 0
    assert all(torch.equal(p, weights[name]) for name, p in model.named_parameters())


def test_gradients_are_the_same_each_time():
    model = make_model("modern", density=0.05)
    one, two = (without_gradient(model, seed=3) for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)
