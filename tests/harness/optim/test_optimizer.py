"""Rules, masks and schedules inside the optimizer."""

import copy

import pytest
import torch

from harness.backends.base import gather_state, load_local_state, local_state, scatter_state
from harness.backends.ddp import DDPBackend
from harness.data.schedule import Moment, learning_rate_factor
from harness.machine.ranks import Ranks
from harness.model.transformer import ModelConfig, Transformer
from harness.optim.optimizer import Optimizer, OptimizerConfig, rounded, torch_parts
from harness.rules.config import kind_of_tensor
from harness.rules.penalties import RL1


def make_model() -> Transformer:
    torch.manual_seed(0)
    return Transformer(ModelConfig(architecture="published", width=16, layers=1, heads=2, context=8), 11)


def make_optimizer(model: Transformer, config: OptimizerConfig, rule: RL1 | None) -> tuple[Optimizer, DDPBackend]:
    optimizer, backend = Optimizer(model, config, rule, torch_parts), DDPBackend(Ranks(0, 1, torch.device("cpu")))
    backend.prepare(model, optimizer)
    return optimizer, backend


def backward(model: Transformer) -> None:
    model(torch.arange(8)[None]).square().mean().backward()


FIRST = {"kind": "muon", "learning_rate": 0.01, "warmup_tokens": 0}


def moved(**settings) -> dict[str, torch.Tensor]:
    """What the first step adds to each tensor."""
    model = make_model()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer, _ = make_optimizer(model, OptimizerConfig(**FIRST | settings), None)
    optimizer.set_learning_rate(Moment(0.0, 0.5, 8))
    backward(model)
    optimizer.step()
    return {name: p.detach() - before[name] for name, p in model.named_parameters()}


def test_a_factor_moves_its_tensors_alone_and_by_as_much():
    factors = {"embedding": 2.0, "head": 3.0, "vectors": 5.0}
    plain, scaled = moved(), moved(**{f"{kind}_factor": factor for kind, factor in factors.items()})
    for name, p in make_model().named_parameters():
        factor = factors.get(kind_of_tensor(name, p), 1.0)
        assert torch.allclose(scaled[name], factor * plain[name], rtol=1e-4, atol=1e-7), name


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_matrices_decay_and_vectors_do_not(kind):
    plain, decayed = moved(kind=kind), moved(kind=kind, weight_decay=0.5)
    for name, p in make_model().named_parameters():
        # Both learning rates are 0.01.
        lost = 0.5 * 0.01 * p.detach() if p.dim() > 1 else torch.zeros_like(p)
        assert torch.allclose(plain[name] - decayed[name], lost, rtol=1e-3, atol=1e-7), name


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_frozen_zeros_stay_exactly_zero_and_the_rest_moves(kind):
    model = make_model()
    optimizer, backend = make_optimizer(model, OptimizerConfig(kind=kind), None)
    backward(model)
    optimizer.step()
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() >= 2:
                p.mul_(torch.rand_like(p) > 0.5)
    zeros = {name: (p != 0).float() for name, p in model.named_parameters()}
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    scatter_state(backend, optimizer, "mask", zeros)
    backend.set_weights(weights)
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
    optimizer, backend = make_optimizer(model, OptimizerConfig(), None)
    backward(model)
    optimizer.step()
    put_on_grid(model, backend, optimizer, 0.01)
    before = {name: p.clone() for name, p in model.named_parameters()}
    for _ in range(5):
        backward(model)
        optimizer.step()
    for name, p in model.named_parameters():
        assert (p != before[name]).any(), name
        if p.dim() >= 2:
            assert torch.equal(p.detach(), rounded(p.detach(), 0.01)), name


def put_on_grid(model: Transformer, backend: DDPBackend, optimizer: Optimizer, step: float) -> None:
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    scatter_state(backend, optimizer, "grid_step", {name: torch.full_like(w, step) for name, w in weights.items()})
    scatter_state(backend, optimizer, "unrounded", weights)


def test_norms_and_biases_are_not_regularised():
    model = make_model()
    optimizer, _ = make_optimizer(model, OptimizerConfig(kind="adamw"), RL1(1e3, "decoupled"))
    backward(model)
    optimizer.step()
    for name, p in model.named_parameters():
        assert bool((p == 0).all()) == (p.dim() >= 2) or name.endswith("bias"), name


def test_weights_that_never_had_a_gradient_are_known_from_the_gathered_state():
    model = make_model()
    optimizer, backend = make_optimizer(model, OptimizerConfig(), None)
    backward(model)
    optimizer.step()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trained = gather_state(backend, optimizer, "exp_avg_sq", missing=1.0)
    # Symbols 0 to 6 and "begin" (11) were read; 7 was only predicted, 8 to 10 never occurred.
    assert trained["embed.weight"].ne(0).any(dim=1).tolist() == [True] * 7 + [False] * 4 + [True]
    assert trained["head.weight"].ne(0).all() and trained["blocks.0.qkv.weight"].eq(1).all()
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_learning_rates_warm_up_and_decay_to_the_final_fraction():
    moments = [Moment(step / 100, (step + 1) / 100, 512 * (step + 1)) for step in range(100)]
    linear = [learning_rate_factor(moment, 5120, "linear", 0.0) for moment in moments]
    assert linear[0] == pytest.approx(0.1) and linear[9] == pytest.approx(0.91) and linear[99] == pytest.approx(0.01)
    assert learning_rate_factor(moments[0], 0, "cosine", 0.1) == 1.0
    assert learning_rate_factor(Moment(1.0, 1.0, 0), 0, "cosine", 0.1) == pytest.approx(0.1)


def test_smaller_steps_have_smaller_rates_by_their_own_exponent():
    model = make_model()
    for exponent, expected in ((0.0, 1.0), (0.5, 0.5), (1.0, 0.25)):
        optimizer, _ = make_optimizer(model, OptimizerConfig(warmup_tokens=0, batch_exponent=exponent), None)
        assert optimizer.set_learning_rate(Moment(0.0, 0.1, 1, batch=0.25)) == expected
        assert optimizer.set_learning_rate(Moment(0.0, 0.1, 1)) == 1.0


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_state_survives_saving_bit_by_bit(kind):
    model, twin = make_model(), make_model()
    config = OptimizerConfig(kind=kind)
    (optimizer, backend), (other, its_backend) = (
        make_optimizer(m, config, RL1(0.01, "decoupled")) for m in (model, twin)
    )
    for _ in range(2):
        backward(model)
        optimizer.step()
    put_on_grid(model, backend, optimizer, 0.01)
    load_local_state(its_backend, other, copy.deepcopy(local_state(backend, optimizer)))
    for m, o in ((model, optimizer), (twin, other)):
        backward(m)
        o.step()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(p, q)


def test_the_state_of_another_model_is_refused():
    model = make_model()
    optimizer, backend = make_optimizer(model, OptimizerConfig(), None)
    saved = local_state(backend, optimizer)
    with pytest.raises(ValueError):
        load_local_state(backend, optimizer, saved | {"partitions": [p[:1] for p in saved["partitions"]]})
