"""TAMADE: the largest threshold that the loss tolerates."""

import pytest
import torch
from torch import nn

from harness.errors import RunFailure
from harness.sparsity.prune import tamade


def make_layer() -> nn.Linear:
    layer = nn.Linear(100, 1, bias=True)
    with torch.no_grad():
        layer.weight.copy_(torch.linspace(0.01, 1.0, 100)[None])
        layer.bias.fill_(1e-9)
    return layer


def test_threshold_is_the_one_of_the_closed_form():
    layer, full = make_layer(), torch.linspace(0.01, 1.0, 100)
    # Loss 1 + sum of the pruned weights: 2 % tolerate 0.02, so 0.01 falls and 0.02 (sum 0.03) stays.
    report = tamade(layer, lambda: 1.0 + float((full - layer.weight[0]).sum()), 0.02, 1e-7)
    assert report.threshold == pytest.approx(0.02, abs=2e-7)
    assert layer.weight.count_nonzero() == 99 and layer.weight[0, 0] == 0
    assert report.loss_after <= 1.02 * report.loss_before
    assert report.nonzeros == 100


def test_tolerance_zero_keeps_what_matters_and_drops_what_does_not():
    layer = make_layer()
    report = tamade(layer, lambda: float(2 - layer.weight[0, 50:].sum()), 0.0, 1e-7)
    assert report.threshold == pytest.approx(0.51, abs=2e-7) and layer.weight.count_nonzero() == 50


def test_a_bias_is_never_pruned():
    layer = make_layer()
    tamade(layer, lambda: 1.0, 0.5, 1e-3)
    assert layer.bias.item() == pytest.approx(1e-9)


def test_a_loss_that_is_not_finite_stops_the_run():
    with pytest.raises(RunFailure, match="nan"):
        tamade(make_layer(), lambda: float("nan"), 0.02, 1e-7)
