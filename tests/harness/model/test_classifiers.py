"""Classifiers and subspaces: sizes, what starts uniform, orthonormal columns, and what zeros make dead."""

import numpy as np
import pytest
import torch

from harness.model.classifiers import made_up_inputs
from harness.model.subspace import initial_weights, projection
from harness.model.transformer import CLASSIFIERS, ModelConfig, make_model
from harness.pruning.structure import find_live_units


def config(architecture, **more):
    return ModelConfig(architecture=architecture, context=1, **more)


def test_the_sizes_are_the_published_ones():
    sizes = {"softmax": 7850, "mlp": 266_610, "lenet5": 431_080}
    assert {name: make_model(config(name), 10, 0).num_parameters for name in sizes} == sizes
    assert make_model(config("resnet18", inputs="3x32x32"), 10, 0).num_parameters == 11_172_170


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_every_classifier_starts_uniform_and_rows_do_not_depend_on_each_other(name):
    torch.manual_seed(0)
    model = make_model(config(name, inputs="1x16x16"), 10, 0)
    inputs = made_up_inputs(3, (1, 16, 16))
    assert model(inputs).shape == (3, 1, 10) and not model(inputs).any()
    torch.nn.init.normal_(model.head.weight)
    assert torch.allclose(model(inputs)[:1], model(inputs[:1]), atol=1e-4)
    assert model.flops_per_token() >= 6 * model.head.weight.numel()


def test_the_columns_of_a_subspace_are_orthonormal_and_its_start_is_exact():
    columns, factors = projection(1000, 30, seed=5)
    matrix = np.zeros((1000, 30))
    matrix[np.arange(1000), columns] = factors
    assert np.allclose(matrix.T @ matrix, np.eye(30), atol=1e-6)
    start = initial_weights("layers.1.weight", (50, 40), seed=5)
    assert abs(start.std() / np.sqrt(2 / 40) - 1) < 0.05
    # The same on every machine: these are the bits.
    assert start.ravel()[:3].tobytes() == initial_weights("layers.1.weight", (50, 40), seed=5).ravel()[:3].tobytes()
    model = make_model(config("mlp", subspace=30), 10, 5)
    assert model.num_parameters == 30
    before = model.weights()["layers.1.weight"].clone()
    with torch.no_grad():
        model.coordinates.add_(1.0)
    assert model(made_up_inputs(2, (1, 28, 28))).shape == (2, 1, 10)
    assert (model.weights()["layers.1.weight"] - before).abs().min() > 0


@pytest.mark.parametrize("name", ["mlp", "lenet5"])
def test_weights_without_influence_can_be_zeroed_without_a_change(name):
    torch.manual_seed(1)
    model = make_model(config(name, inputs="1x16x16", hidden="12x10"), 4, 0)
    with torch.no_grad():
        for p in model.parameters():
            p.normal_().mul_(torch.rand(p.shape) < (0.2 if p.dim() > 1 else 0.5))
        first, second = [p for n, p in model.named_parameters() if n.endswith("weight")][:2]
        first[0].zero_()
        dict(model.named_parameters())["layers.1.bias" if name == "mlp" else "layers.0.bias"][0] = 0
        second[3].zero_()
    inputs = made_up_inputs(20, (1, 16, 16))
    before, live = model(inputs), find_live_units({n: p != 0 for n, p in model.named_parameters()})
    dead = sum(int(((p != 0) & ~live[n]).sum()) for n, p in model.named_parameters())
    assert dead > 0
    with torch.no_grad():
        for n, p in model.named_parameters():
            p.mul_(live[n])
    assert torch.equal(model(inputs), before)
