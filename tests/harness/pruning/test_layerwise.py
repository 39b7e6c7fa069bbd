"""Layerwise pruning: near the best mask there is, in units that mean the same in every layer."""

import itertools
from functools import partial

import pytest
import torch
from torch import Tensor

from harness.model.transformer import ModelConfig, Transformer
from harness.pruning.layerwise import prune_layers, sparse_fit


def make_layer(correlation: float, seed: int) -> tuple[Tensor, Tensor]:
    """Weights (3, 6) and second moments (6, 6) of correlated inputs."""
    torch.manual_seed(seed)
    mix = torch.eye(6, dtype=torch.float64) + correlation * torch.randn(6, 6, dtype=torch.float64)
    x = torch.randn(4000, 6, dtype=torch.float64) @ mix
    return torch.randn(3, 6).pow(3), x.T @ x / len(x)


def cost(weights: Tensor, sparse: Tensor, moments: Tensor, alpha: float) -> float:
    """Error relative to the mean square of an output, and the price of the weights."""
    error, square = (weights - sparse).double(), output_square(weights, moments)
    return float(((error @ moments) * error).sum() / square) + alpha * int(sparse.count_nonzero())


def output_square(weights: Tensor, moments: Tensor) -> Tensor:
    return ((weights.double() @ moments) * weights).sum() / len(weights)


def best(weights: Tensor, moments: Tensor, alpha: float) -> Tensor:
    """The best of all masks, with the weights of least squares; outputs do not depend on one another."""
    price, rows = alpha * output_square(weights, moments), []
    for row in weights.double():
        candidates = []
        for mask in itertools.product([False, True], repeat=len(row)):
            kept, fitted = torch.tensor(mask), torch.zeros_like(row)
            if kept.any():
                fitted[kept] = torch.linalg.solve(moments[kept][:, kept], (moments @ row)[kept])
            candidates.append(fitted)
        rows.append(min(candidates, key=lambda f, row=row: (row - f) @ moments @ (row - f) + price * f.count_nonzero()))
    return torch.stack(rows).float()


@pytest.mark.parametrize(("correlation", "worst"), [(0.0, 1.001), (0.3, 1.1), (1.0, 1.15)])
@pytest.mark.parametrize("alpha", [0.01, 0.1])
def test_the_cost_is_near_that_of_the_best_of_all_masks(correlation, worst, alpha):
    for seed in range(4):
        weights, moments = make_layer(correlation, seed)
        found, optimum = sparse_fit(weights, moments, alpha, 500), best(weights, moments, alpha)
        assert cost(weights, optimum, moments, alpha) - 1e-6 <= cost(weights, found, moments, alpha)
        assert cost(weights, found, moments, alpha) <= worst * cost(weights, optimum, moments, alpha)
        if correlation == 0.0:
            assert torch.equal(found != 0, optimum != 0)


def test_with_uncorrelated_inputs_a_weight_stays_where_it_is_worth_its_price():
    torch.manual_seed(0)
    weights, squares = torch.randn(20, 30), torch.rand(30).double() + 0.1
    worth = weights.square() * squares
    worth = worth / (worth.sum() / 20)
    alpha = 0.02
    found = sparse_fit(weights, torch.diag(squares), alpha, 300)
    clear = (worth / alpha).log().abs() > 0.01
    assert torch.equal((found != 0)[clear], (worth > alpha)[clear]) and clear.float().mean() > 0.95
    torch.testing.assert_close(found[found != 0], weights[found != 0], rtol=0.02, atol=1e-3)


def test_alpha_means_the_same_whatever_the_size_of_weights_and_inputs():
    weights, moments = make_layer(0.5, 0)
    found = sparse_fit(weights, moments, 0.05, 300)
    scaled = sparse_fit(8 * weights, moments / 16, 0.05, 300)
    torch.testing.assert_close(scaled / 8, found, rtol=1e-3, atol=1e-4)


def test_zeros_stay_zero_and_a_layer_without_output_becomes_zero():
    weights, moments = make_layer(0.5, 1)
    weights[:, 2] = 0
    assert not sparse_fit(weights, moments, 1e-6, 100)[:, 2].any()
    assert not sparse_fit(weights, 0 * moments, 1e-6, 100).any()


def test_the_layer_that_is_used_last_is_pruned_first():
    torch.manual_seed(0)
    model = Transformer(ModelConfig(width=8, layers=2, heads=1, context=4), 5)
    used, asked = [], []
    layers = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    for layer in layers:
        torch.nn.init.normal_(layer.weight)
        layer.register_forward_pre_hook(lambda own, _: used.append(own))
    model(torch.zeros(1, 4, dtype=torch.long))
    assert set(used) == set(layers)

    def moments(layer: torch.nn.Linear) -> Tensor:
        asked.append(layer)
        return torch.eye(layer.in_features, dtype=torch.float64)

    states = []
    fit = partial(sparse_fit, alpha=0.5, steps=50)
    prune_layers(model, moments, lambda weights: weights, lambda: states.append(count(layers)), fit)
    # After each, one more layer is sparse, and the others are as they were.
    before = [layer.weight.numel() for layer in layers]
    changed = [{layers[i] for i, (a, b) in enumerate(zip(before, now, strict=True)) if a != b} for now in states]
    assert changed == [set(asked[: i + 1]) for i in range(len(asked))]


def count(layers: list[torch.nn.Linear]) -> list[int]:
    return [int(layer.weight.count_nonzero()) for layer in layers]
