"""Gradients through training: central differences, recomputed states, projections and closed forms."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import minimize

from eval.gradient.module import ModuleLearner
from eval.gradient.perceptron import Perceptron, SoftmaxRegression
from eval.gradient.simplex import project
from eval.gradient.training import (
    Desired,
    Learner,
    Prequential,
    Training,
    check_costs,
    memory_bytes,
    most_steps,
)
from harness.errors import RunFailure
from harness.machine.ranks import Ranks
from harness.model.transformer import ModelConfig, Transformer

ALONE = Ranks(0, 1, torch.device("cpu"))
STEPS, EXAMPLES = 3, 6


def perceptron(seed: int, examples: int = EXAMPLES) -> Perceptron:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(examples, 4, generator=generator, dtype=torch.float64)
    return Perceptron(inputs, torch.arange(examples) % 2)


def token_losses(call, examples):
    nats = F.cross_entropy(call(examples).flatten(0, 1), examples.flatten(), reduction="none")
    return nats.view_as(examples).mean(dim=1)


def transformer(architecture: str, heads: int, tied: bool, seed: int) -> ModuleLearner:
    torch.manual_seed(3)
    shape = ModelConfig(architecture=architecture, width=8, layers=2, heads=heads, context=5, smear=heads - 1)
    model = Transformer(shape, 7).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 0.0, 0.3)
    if tied:
        model.blocks[1].qkv.weight = model.blocks[0].qkv.weight
    generator = torch.Generator().manual_seed(seed)
    return ModuleLearner(model, torch.randint(7, (EXAMPLES, 5), generator=generator), token_losses, rows=4)


MODELS = {
    "perceptron": perceptron,
    "modern": lambda seed: transformer("modern", 2, False, seed),
    "published": lambda seed: transformer("published", 1, False, seed),
    "tied": lambda seed: transformer("modern", 1, True, seed),
}


def policy() -> torch.Tensor:
    generator = torch.Generator().manual_seed(9)
    return torch.rand(STEPS, EXAMPLES, generator=generator, dtype=torch.float64).softmax(dim=1)


def both_objectives(model) -> list:
    desired = model(1)
    return [Desired(desired, desired.num_examples), Prequential(model(0))]


@pytest.mark.parametrize("name", MODELS)
def test_the_gradient_is_that_of_central_differences(name):
    for objective in both_objectives(MODELS[name]):
        training = Training(MODELS[name](0), objective, 0.2, ALONE)
        found = training.gradient(policy(), training.run(policy()))
        direction = torch.randn(STEPS, EXAMPLES, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
        # So short that no unit of a squared ReLU crosses 0, where the second derivative jumps.
        step = 1e-6
        rise = training.run(policy() + step * direction).total - training.run(policy() - step * direction).total
        slope = rise / (2 * step)
        assert float((found * direction).sum()) == pytest.approx(slope, rel=1e-6)


@pytest.mark.parametrize("stride", [2, 3, 9])
def test_states_that_are_computed_again_change_no_bit(stride):
    objective = both_objectives(perceptron)[0]
    kept, again = (Training(perceptron(0), objective, 0.2, ALONE, each) for each in (1, stride))
    first, second = kept.run(policy()), again.run(policy())
    assert torch.equal(kept.gradient(policy(), first), again.gradient(policy(), second))
    assert len(second.kept) == -(-STEPS // stride)


def test_the_perceptron_in_closed_form_is_that_of_automatic_differentiation():
    closed, labels = perceptron(0), torch.arange(EXAMPLES) % 2
    inputs = closed.signed * (2 * labels - 1)[:, None]
    module = torch.nn.Linear(4, 1, bias=False).double()

    def losses(call, examples):
        logits, labels = call(examples[:, :4])[:, 0], examples[:, 4]
        return F.binary_cross_entropy_with_logits(logits, labels, reduction="none")

    learner = ModuleLearner(module, torch.cat([inputs, labels[:, None]], dim=1), losses)
    agree(closed, learner, torch.arange(4, dtype=torch.float64))


def test_softmax_regression_in_closed_form_is_that_of_automatic_differentiation():
    generator = torch.Generator().manual_seed(1)
    inputs, labels = torch.randn(EXAMPLES, 4, generator=generator, dtype=torch.float64), torch.arange(EXAMPLES) % 3

    def losses(call, examples):
        return F.cross_entropy(call(examples[:, :5]), examples[:, 5].long(), reduction="none")

    rows = torch.cat([inputs, torch.ones(EXAMPLES, 1), labels[:, None]], dim=1)
    learner = ModuleLearner(torch.nn.Linear(5, 3, bias=False).double(), rows, losses)
    agree(SoftmaxRegression(inputs, labels, 3), learner, torch.arange(15, dtype=torch.float64))


def agree(closed: Learner, learner: Learner, direction: torch.Tensor) -> None:
    state, weights = learner.start(), policy()[0]
    assert torch.allclose(closed.losses(state), learner.losses(state), atol=1e-12)
    assert torch.allclose(closed.gradient(state, weights), learner.gradient(state, weights), atol=1e-12)
    for mine, other in zip(
        closed.adjoint(state, weights, direction), learner.adjoint(state, weights, direction), strict=True
    ):
        assert torch.allclose(mine, other, atol=1e-12)


def test_the_projection_is_the_nearest_point_of_the_simplex():
    generator = np.random.default_rng(0)
    for _ in range(100):
        values = generator.normal(scale=generator.choice([0.1, 1, 10]), size=6)
        found = project(torch.from_numpy(values)).numpy()
        total = {"type": "eq", "fun": lambda x: x.sum() - 1, "jac": np.ones_like}
        options = {"bounds": [(0, None)] * 6, "constraints": total, "options": {"ftol": 1e-15, "maxiter": 300}}
        programme = minimize(
            lambda x, at=values: ((x - at) ** 2).sum(),
            np.full(6, 1 / 6),
            jac=lambda x, at=values: 2 * (x - at),
            **options,
        )
        assert found.sum() == pytest.approx(1, abs=1e-12) and (found >= 0).all()
        assert found == pytest.approx(programme.x, abs=1e-5)
        assert ((found - values) ** 2).sum() <= programme.fun + 1e-9


def test_what_fits_into_memory_is_the_most_that_does():
    for recompute in (False, True):
        most = most_steps(10**7, 1000, 64, 2, recompute)
        assert memory_bytes(most, 1000, 64, 2, recompute) <= 10**7 < memory_bytes(most + 1, 1000, 64, 2, recompute)
    assert most_steps(10, 1000, 64, 1, False) == 0
    assert most_steps(10**7, 1000, 64, 1, True) > most_steps(10**7, 1000, 64, 1, False)


def test_a_rate_that_diverges_is_named_with_the_step():
    with pytest.raises(RunFailure, match=r"learning_rate=0\.5: .* the loss is inf after 2 steps; lower it"):
        check_costs(torch.tensor([0.0, 1.0, float("inf")]), 0.5, 9.0)


@pytest.mark.parametrize("architecture", ["modern", "published"])
def test_everything_is_computed_on_the_device_of_the_examples(architecture):
    # Nothing of the meta device can be mixed with a tensor of the host.
    model = Transformer(ModelConfig(architecture=architecture, width=8, layers=1, heads=2, context=5, smear=1), 7)
    examples, weights = (torch.zeros(size, device="meta") for size in ((EXAMPLES, 5), (EXAMPLES,)))
    learner = ModuleLearner(model.to("meta"), examples.long(), token_losses, rows=4)
    state = learner.start()
    desired = Desired(learner, EXAMPLES)
    found = [
        *learner.adjoint(state, weights, state),
        learner.gradient(state, weights),
        learner.losses(state),
        desired.cost(1, state, weights),
        desired.of_state(state),
    ]
    assert all(tensor.is_meta for tensor in found)


def test_learners_are_of_the_protocol():
    learner: Learner = perceptron(0)
    assert learner.start().shape == (4,)
