"""A loss that has stopped falling is found, one that falls is not, whatever the noise."""

import json
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from harness.config.run import load_config
from harness.errors import Paused
from harness.optim.stopping import Convergence, StoppingConfig, epanechnikov
from harness.train import train_run
from tests.support.ranks import SUBSET_BYTES, assert_same_run, finish, rows, write_config


def steps_until_stop(losses, window_steps, tolerance) -> int | None:
    convergence = Convergence(StoppingConfig(window_steps=window_steps, tolerance=tolerance))
    for step, loss in enumerate(losses):
        convergence.add(loss)
        if convergence.is_reached:
            return step + 1
    return None


def test_weights_are_the_kernel_and_sum_to_one():
    assert epanechnikov(2) == pytest.approx([0.5, 0.5])
    assert epanechnikov(3) == pytest.approx([5 / 19, 9 / 19, 5 / 19])
    assert epanechnikov(1001).sum() == pytest.approx(1.0, rel=1e-12)


def test_a_falling_loss_goes_on_and_a_flat_one_stops_as_soon_as_the_window_is_full_of_it():
    falling = list(np.linspace(5, 3, 200))
    assert steps_until_stop(falling, 20, 0.0) is None
    assert steps_until_stop([3.0] * 50, 20, 0.0) == 20
    # The newer half must be flat all over, the older one no longer higher.
    assert steps_until_stop([*falling, *[3.0] * 100], 20, 0.0) == 200 + 19


def test_the_tolerance_is_a_share_of_the_loss():
    # Halves are 10 steps apart: the loss falls by 1 % of itself a half.
    losses = 5 * 0.99 ** (np.arange(300) / 10)
    assert steps_until_stop(losses, 20, 0.009) is None
    assert steps_until_stop(losses, 20, 0.011) == 20


def test_smoothing_sees_through_noise():
    rng = np.random.default_rng(0)
    noise = rng.normal(scale=0.1, size=2000)
    assert steps_until_stop(np.linspace(5, 1, 2000) + noise, 400, 0.0) is None
    stopped = steps_until_stop(3 + noise, 400, 0.0)
    assert stopped is not None and stopped < 1500


def test_without_a_window_nothing_stops():
    assert steps_until_stop([3.0] * 100, 0, 0.0) is None


def test_losses_that_are_not_numbers_stop():
    assert steps_until_stop([float("nan")] * 10, 4, 0.0) == 4


def test_bad_values_are_named():
    assert len(StoppingConfig(window_steps=3, tolerance=float("nan")).problems()) == 2
    assert len(StoppingConfig(window_steps=-2, tolerance=1.5).problems()) == 2


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    """Ten steps an epoch, three epochs, two rounds of five steps; a loss has converged that falls by less than half."""
    path = write_config(tmp_path_factory.mktemp("convergence"), epochs=3, checkpoint_minutes=1e-9)
    path.write_text(path.read_text() + "stopping: {window_steps: 4, tolerance: 0.5}\n")
    return path


def train(config: Path, name: str, *overrides: str) -> Path:
    train_run(load_config(config, [f"name={name}", *overrides]))
    return config.parent / "runs" / name


def logged_steps(run_dir: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def stopped_early(config) -> Path:
    return train(config, "early")


def test_phases_end_early_but_never_the_first_epoch(stopped_early):
    # Losses count from step 11 on; the window is full at 14. Rounds of fine-tuning begin at 30 and 35.
    assert logged_steps(stopped_early) == [*range(1, 15), *range(31, 35), *range(36, 40)]
    first_epoch = rows(stopped_early).filter(rows(stopped_early)["epoch"].to_numpy() == 0)
    assert first_epoch["num_tokens"].to_numpy().sum() == SUBSET_BYTES


def test_the_main_phase_waits_for_the_rule(config):
    run_dir = train(config, "later", "rule.warmup=0.5", "rule.ramp=0.2")
    # The rule has its full strength at step 21 of 30; the window is full of steps since then at 24.
    assert logged_steps(run_dir) == [*range(1, 25), *range(31, 35), *range(36, 40)]


def test_metrics_hold_the_steps_up_to_the_early_end(config):
    run_dir = train(config, "seldom", "train.log_every_steps=10")
    assert logged_steps(run_dir) == [10, 14, 34, 39]


def test_a_run_that_was_stopped_in_between_ends_early_at_the_same_step(config, stopped_early, capsys):
    run_dir = config.parent / "runs" / "halted"
    run_dir.mkdir(parents=True)
    saved = []
    while not (run_dir / "DONE").exists():
        # Saves after the next step, and again after each.
        (run_dir / "STOP").touch()
        with suppress(Paused):
            train(config, "halted")
        saved.append(sorted(path.name for path in (run_dir / "checkpoints").glob("*"))[-1:])
    assert len(saved) > 15 and "main: converged after step 14 of 30" in capsys.readouterr().out
    assert_same_run(run_dir, stopped_early)


def test_ranks_agree_on_when_to_stop(config, stopped_early):
    for status, _, errors in finish(2, config, "name=two", "train.micro_batch_sequences=2"):
        assert status == 0, errors
    assert logged_steps(config.parent / "runs" / "two") == logged_steps(stopped_early)


def test_a_block_training_stops_early(config):
    block = ("train.epochs=1", "train.retrain_at=[0.5]", "train.retrain_epochs=20", "prune.kind=none", "prune.rounds=1")
    tables = {}
    for window in (0, 4):
        window_steps = f"stopping.window_steps={window}"
        tables[window] = rows(train(config, f"block-{window}", *block, window_steps, "rule.kind=none", "rule.alpha=0"))
    # Before the training at half of the text both code alike, after it not: one has learnt for 4 steps, one for 100.
    same = np.array(tables[0]["code_nats_sum"]) == np.array(tables[4]["code_nats_sum"])
    step = np.array(tables[4]["step"])
    assert same[step < 5].all() and not same[step >= 5].any()
