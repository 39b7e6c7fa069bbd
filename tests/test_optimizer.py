"""Rules, masks and schedules inside the optimizer."""

import copy

import pytest
import torch

from harness.model import ModelConfig, Transformer
from harness.optimizer import Optimizer, OptimizerConfig
from harness.schedule import learning_rate_factor
from harness.sparsity.rules import RL1


def make_model() -> Transformer:
    torch.manual_seed(0)
    return Transformer(ModelConfig(architecture="published", width=16, layers=1, heads=2, context=8), 11)


def backward(model: Transformer, penalty: float = 0.0) -> None:
    loss = model(torch.arange(8)[None]).square().mean()
    if penalty:
        loss = loss + penalty * sum(p.abs().sum() for p in model.parameters() if p.dim() >= 2)
    loss.backward()


def test_rl1_in_the_optimizer_is_the_penalty_in_the_loss():
    config = OptimizerConfig(kind="adamw")
    by_rule, by_loss = make_model().double(), make_model().double()
    first, second = Optimizer(by_rule, config, RL1(0.01, "adam")), Optimizer(by_loss, config, None)
    for _ in range(5):
        backward(by_rule)
        first.step()
        backward(by_loss, penalty=0.01)
        second.step()
    for p, q in zip(by_rule.parameters(), by_loss.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-10)


def test_decoupled_rl1_is_the_proximal_step_and_makes_exact_zeros():
    parameter = torch.tensor([0.5, -0.5, 0.001, -0.001, 0.0])
    RL1(0.1, "decoupled").shrink(parameter, 0.05, {})
    torch.testing.assert_close(parameter[:2], torch.tensor([0.495, -0.495]))
    assert torch.equal(parameter[2:], torch.zeros(3))


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_frozen_zeros_stay_exactly_zero_and_the_rest_moves(kind):
    model = make_model()
    optimizer = Optimizer(model, OptimizerConfig(kind=kind), None)
    backward(model)
    optimizer.step()
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() >= 2:
                p.mul_(torch.rand_like(p) > 0.5)
    optimizer.freeze_zeros()
    before = {name: p.clone() for name, p in model.named_parameters()}
    for _ in range(3):
        backward(model)
        optimizer.step()
    for name, p in model.named_parameters():
        if p.dim() >= 2:
            assert torch.equal(p == 0, before[name] == 0), name
        assert (p != before[name]).any(), name


def test_weights_on_a_grid_stay_on_it_and_learn():
    model = make_model()
    optimizer = Optimizer(model, OptimizerConfig(), None)
    backward(model)
    optimizer.step()
    optimizer.round_to_grid(0.5)
    before = {name: p.clone() for name, p in model.named_parameters()}
    for _ in range(5):
        backward(model)
        optimizer.step()
    for name, p in model.named_parameters():
        if p.dim() >= 2:
            multiples = p.detach() / optimizer.grid_step(p)
            assert torch.allclose(multiples, multiples.round(), atol=1e-4), name
            assert (p != before[name]).any(), name
        else:
            assert optimizer.grid_step(p) is None


def test_norms_and_biases_are_not_regularised():
    model = make_model()
    optimizer = Optimizer(model, OptimizerConfig(kind="adamw"), RL1(1e3, "decoupled"))
    backward(model)
    optimizer.step()
    for name, p in model.named_parameters():
        assert bool((p == 0).all()) == (p.dim() >= 2) or name.endswith("bias"), name


def test_weights_that_never_had_a_gradient_are_zeroed():
    model = make_model()
    optimizer = Optimizer(model, OptimizerConfig(), None)
    backward(model)
    optimizer.step()
    optimizer.zero_untrained()
    rows = model.embed.weight.ne(0).any(dim=1)
    # Symbols 0 to 6 and "begin" (11) were read; 7 was only predicted, 8 to 10 never occurred.
    assert rows.tolist() == [True] * 7 + [False] * 4 + [True]
    assert model.head.weight.ne(0).all()


def test_learning_rates_warm_up_and_decay_to_the_final_fraction():
    linear = [learning_rate_factor(step, 100, 10, "linear", 0.0) for step in range(100)]
    assert linear[0] == pytest.approx(0.1) and linear[9] == pytest.approx(0.91) and linear[99] == pytest.approx(0.01)
    assert learning_rate_factor(0, 100, 0, "cosine", 0.1) == 1.0
    assert learning_rate_factor(100, 100, 0, "cosine", 0.1) == pytest.approx(0.1)


def test_state_survives_saving_bit_by_bit():
    model, twin = make_model(), make_model()
    optimizer, other = (Optimizer(m, OptimizerConfig(), RL1(0.01, "decoupled")) for m in (model, twin))
    for _ in range(2):
        backward(model)
        optimizer.step()
    optimizer.freeze_zeros()
    optimizer.round_to_grid(0.5)
    twin.load_state_dict(model.state_dict())
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for m, o in ((model, optimizer), (twin, other)):
        backward(m)
        o.step()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(p, q)
