"""TAMADE: the largest threshold that the loss tolerates, and what is said where the loss does not rise with it."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from harness.config.pruning import PruneConfig
from harness.config.run import load_config
from harness.data.schedule import TrainConfig, plan_phases
from harness.data.steps import StepOrder
from harness.errors import RunFailure, UsageError
from harness.pruning.tamade import tamade

FULL = torch.linspace(0.01, 1.0, 100)


def make_layer() -> nn.Linear:
    layer = nn.Linear(100, 1, bias=True)
    with torch.no_grad():
        layer.weight.copy_(FULL[None])
        layer.bias.fill_(1e-9)
    return layer


def config(**settings) -> PruneConfig:
    return PruneConfig(kind="tamade", **settings)


def test_threshold_is_the_one_of_the_closed_form():
    layer = make_layer()
    # Loss 1 + sum of the pruned weights: 2 % tolerate 0.02, so 0.01 falls and 0.02 (sum 0.03) stays.
    found = tamade(layer, lambda: 1.0 + float((FULL - layer.weight.detach()[0]).sum()), config())
    assert found.threshold == pytest.approx(0.02, abs=2e-7)
    assert layer.weight.count_nonzero() == 99 and layer.weight[0, 0] == 0
    assert found.loss_after == pytest.approx(1.01) and found.loss_before == 1.0
    assert not found.warnings


def test_tolerance_zero_keeps_what_matters_and_drops_what_does_not():
    layer = make_layer()
    found = tamade(layer, lambda: float(2 - layer.weight[0, 50:].sum()), config(tolerance=0.0))
    assert found.threshold == pytest.approx(0.51, abs=2e-7) and layer.weight.count_nonzero() == 50


def test_accuracy_is_tolerated_to_drop_in_points():
    layer = make_layer()
    # An error rate of 0.4 + 0.001 a pruned weight: 2 points are 20 weights; 2 % of it would be 8.
    found = tamade(layer, lambda: 0.4 + 0.001 * int((layer.weight == 0).sum()), config(measure="accuracy"))
    assert layer.weight.count_nonzero() == 80 and found.loss_after == pytest.approx(0.42)


def by_halves(layer: nn.Linear, loss: Callable[[], float], tolerance: float, resolution: float) -> tuple[float, int]:
    """The published search: threshold and number of evaluations."""
    limit, low, high, evaluations = (1 + tolerance) * loss(), 0.0, float(FULL.max()), 1
    while high - low > resolution:
        middle, evaluations = (low + high) / 2, evaluations + 1
        with torch.no_grad():
            layer.weight.copy_(FULL * FULL.ge(middle))
        low, high = (middle, high) if loss() <= limit else (low, middle)
    return low, evaluations


@pytest.mark.parametrize("tolerance", [0.0, 0.003, 0.02, 0.9])
@pytest.mark.parametrize("resolution", [1e-7, 0.3])
def test_where_the_loss_rises_the_scan_changes_no_bit_and_costs_16_evaluations_at_most(tolerance, resolution):
    layer = make_layer()

    def loss() -> float:
        return 30.0 + float((FULL - layer.weight.detach()[0]).sum())

    threshold, evaluations = by_halves(layer, loss, tolerance, resolution)
    layer = make_layer()
    found = tamade(layer, loss, config(tolerance=tolerance, resolution=resolution))
    assert found.threshold == threshold and not found.warnings
    assert evaluations <= found.evaluations <= evaluations + 16


def test_a_valley_above_a_refused_threshold_is_used_and_reported():
    layer = make_layer()

    def loss() -> float:
        gone = layer.weight[0] == 0
        return 2.0 if (gone[4] and not gone[19]) or gone[39] else 1.0  # refused in (0.05, 0.2] and above 0.4

    found = tamade(layer, loss, config())
    assert found.threshold == pytest.approx(0.4, abs=2e-7)
    refused, falls = found.warnings
    assert "not tolerated at the threshold 0.0625 (2, limit 1.02) but is at the larger 0.4 (1); the largest" in refused
    assert falls.startswith("the loss gets better with a larger threshold, from 2 at 0.0625 to 1 at ")


def test_a_loss_that_falls_with_the_threshold_is_reported_but_for_rounding():
    layer = make_layer()
    falls = tamade(layer, lambda: 2.0 - 0.1 * bool((layer.weight == 0).any()), config(measure="accuracy")).warnings
    assert len(falls) == 1 and "the accuracy gets better with a larger threshold" in falls[0]
    layer = make_layer()
    assert not tamade(layer, lambda: 2.0 - 1e-6 * bool((layer.weight == 0).any()), config()).warnings


def test_a_bias_is_never_pruned():
    layer = make_layer()
    tamade(layer, lambda: 1.0, config(tolerance=0.5, resolution=1e-3))
    assert layer.bias.item() == pytest.approx(1e-9)


def test_a_loss_that_is_not_finite_stops_the_run():
    with pytest.raises(RunFailure, match="nan"):
        tamade(make_layer(), lambda: float("nan"), config())


def test_a_resolution_finer_than_numbers_are_ends_the_search_all_the_same():
    layer = make_layer()
    found = tamade(
        layer, lambda: 1.0 + float((FULL - layer.weight.detach()[0]).sum()), config(tolerance=0.05, resolution=1e-30)
    )
    assert found.threshold == pytest.approx(0.03) and found.evaluations < 100


def test_every_bad_value_is_named_at_once(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(
        "prune: {kind: magnitude, measure: bits, tolerance: 1.5, resolution: 0, alpha: -1, steps: 0, rounds: 0, "
        "grid: 17, text: all, sample_sequences: 0}\n"
    )
    with pytest.raises(UsageError) as caught:
        load_config(path)
    keys = [
        "kind",
        "measure",
        "text",
        "tolerance",
        "resolution",
        "alpha",
        "rounds",
        "grid",
        "steps",
        "sample_sequences",
    ]
    found = [line.split("=")[0] for line in str(caught.value).splitlines()]
    assert sorted(found) == sorted(f"prune.{key}" for key in keys)


def test_nothing_is_left_to_protect_where_all_of_the_accuracy_may_go():
    assert not config(measure="accuracy", tolerance=0.99).problems() and not config(tolerance=1).problems()
    (line,) = config(measure="accuracy", tolerance=1).problems()
    assert line.startswith("prune.tolerance=1: ") and "less than 1" in line


def test_fine_tuning_is_shared_out_in_equal_stretches():
    train = TrainConfig(epochs=2, finetune_epochs=1.1)
    order = StepOrder(train, num_tokens=10 * 8 * 4, context=4, fingerprint="", seed=0)
    phases = plan_phases(train, order, prunings=3)
    assert [(p.name, p.first_step, p.num_steps, p.prunings) for p in phases] == [
        ("main", 0, 20, 0), ("finetune", 20, 4, 1), ("finetune", 24, 4, 2), ("finetune", 28, 3, 3),
    ]  # fmt: skip
    with pytest.raises(UsageError, match=r"prune\.rounds=12: fine-tuning has 11 steps"):
        plan_phases(train, order, prunings=12)
