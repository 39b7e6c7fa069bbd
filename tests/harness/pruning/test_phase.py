"""Pruning in whole runs: methods, rounds, resuming between them, and what is said and reported."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from harness.config.run import load_config
from harness.errors import RunFailure, UsageError
from harness.run.checkpoint import committed_checkpoints
from harness.train import train_run
from tests.support.ranks import assert_same_run, write_config

FIRST, SECOND, LAST, END = 10, 14, 17, 20
ROUNDS = ("prune.rounds=3", "train.checkpoint_minutes=1e-9", "train.keep_checkpoints=100")
LAYERWISE = ("prune.kind=layerwise", "prune.steps=30", "prune.alpha=0.01", "prune.sample_sequences=4")


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    """A job of ten steps and ten of fine-tuning."""
    return write_config(tmp_path_factory.mktemp("prune"), epochs=1)


def train(config: Path, name: str, *overrides: str) -> Path:
    """On one rank, in this process."""
    train_run(load_config(config, [f"name={name}", *overrides]))
    return config.parent / "runs" / name


def metrics(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def in_rounds(config) -> Path:
    return train(config, "in-rounds", *ROUNDS)


def test_each_round_prunes_further_and_the_grid_comes_last(in_rounds):
    nonzeros = [line["nonzeros"] for line in metrics(in_rounds)]
    assert len(nonzeros) == END
    assert nonzeros[FIRST - 1] > nonzeros[FIRST] > nonzeros[SECOND] > nonzeros[LAST]
    states = {
        step: json.loads((in_rounds / f"checkpoints/step-{step:08d}/state.json").read_text())
        for step in range(1, END + 1)
        if (in_rounds / f"checkpoints/step-{step:08d}").exists()
    }
    assert {step: s["prunings"] for step, s in states.items() if step in (FIRST, SECOND, LAST, END)} == {
        FIRST: 0, SECOND: 1, LAST: 2, END: 3,
    }  # fmt: skip
    assert [bool(s["grid_steps"]) for step, s in sorted(states.items())] == [False] * LAST + [True] * (END - LAST)
    weights = load_file(in_rounds / "weights.safetensors")
    for name, step in states[END]["grid_steps"].items():
        multiples = weights[name] / step
        torch.testing.assert_close(multiples, multiples.round(), rtol=0, atol=1e-3)


@pytest.mark.parametrize("step", [FIRST, SECOND, LAST + 1])
def test_a_run_that_goes_on_before_between_or_after_prunings_ends_with_the_same_bits(config, in_rounds, tmp_path, step):
    directory = tmp_path / "in-rounds"
    shutil.copytree(in_rounds, directory)
    (directory / "DONE").unlink()
    (directory / "weights.safetensors").unlink()
    for checkpoint in committed_checkpoints(directory):
        if int(checkpoint.name.split("-")[1]) > step:
            shutil.rmtree(checkpoint)
    train(config, "in-rounds", *ROUNDS, f"runs_dir={tmp_path}")
    assert_same_run(directory, in_rounds)
    assert metrics(directory)[-1]["nonzeros"] == metrics(in_rounds)[-1]["nonzeros"]


def test_layers_are_pruned_in_rounds(config, capsys):
    run_dir = train(config, "by-layers", *LAYERWISE, "prune.rounds=2", "train.finetune_epochs=0.4")
    said = capsys.readouterr().out
    for text in ("prune 1 of 2: layerwise, alpha 0.01, keeps ", "prune 2 of 2: without influence", "nats/token on 4"):
        assert text in said
    blocks = [w for name, w in load_file(run_dir / "weights.safetensors").items() if name.startswith("blocks")]
    assert 0.02 < sum(int(w.count_nonzero()) for w in blocks) / sum(w.numel() for w in blocks) < 0.8
    nonzeros = [line["nonzeros"] for line in metrics(run_dir)]
    assert nonzeros[9] > nonzeros[10] > nonzeros[12]


@pytest.mark.parametrize("kind", ["tamade", "layerwise", "feedback"])
def test_tensors_that_are_not_regularised_are_not_pruned(config, kind):
    settings = ("prune.kind=tamade", "prune.rounds=1") if kind == "tamade" else LAYERWISE
    run_dir = train(config, f"only-{kind}", "rule.tensors=[matrices]", *settings)
    zeros = {name: int((w == 0).sum()) for name, w in load_file(run_dir / "weights.safetensors").items()}
    assert zeros["embed.weight"] == zeros["head.weight"] == 0
    assert sum(zeros.values()) > 0


def test_accuracy_may_drop_by_the_tolerance(config, capsys):
    settings = ("prune.measure=accuracy", "prune.tolerance=0.03", "prune.rounds=1", "train.finetune_epochs=0")
    train(config, "accuracy", *settings)
    said = capsys.readouterr().out
    before, after = map(float, re.search(r"; accuracy ([\d.]+)% -> ([\d.]+)% of the next tokens", said).groups())
    assert after >= before - 3
    # A model that has learnt next to nothing predicts more bytes with fewer weights.
    assert after < before or "the accuracy gets better with a larger threshold" in said


def test_a_run_whose_weights_all_go_ends_with_a_remedy(config):
    with pytest.raises(RunFailure, match=r"no weight survives; lower rule\.alpha or prune\.alpha") as caught:
        train(config, "nothing-left", *LAYERWISE, "prune.alpha=1e9")
    assert "\n" not in str(caught.value) and not (config.parent / "runs/nothing-left/DONE").exists()


def test_a_tolerated_loss_of_everything_ends_the_run(config):
    settings = ("rule.kind=rl1", "rule.coupling=decoupled", "rule.alpha=1e6")
    with pytest.raises(RunFailure, match=r"no weight survives; lower rule\.alpha or prune\.tolerance"):
        train(config, "all-zero", *settings)


def test_steps_of_a_grid_are_those_of_the_last_pruning(in_rounds):
    with safe_open(in_rounds / "weights.safetensors", framework="numpy") as file:
        assert json.loads(file.metadata()["grid_steps"])


def test_a_longer_text_gets_a_finer_grid(config):
    steps = {}
    for text in ("heldout", "train"):
        settings = (
            "corpus.subset_bytes=20300",
            "train.batch_sequences=32",
            "prune.rounds=1",
            "train.epochs=8",
            "train.finetune_epochs=0.1",
            "optimizer.learning_rate=0.02",
        )
        run_dir = train(config, f"for-{text}", f"prune.text={text}", *settings)
        with safe_open(run_dir / "weights.safetensors", framework="numpy") as file:
            steps[text] = json.loads(file.metadata()["grid_steps"])
    assert steps["train"].keys() == steps["heldout"].keys()
    assert all(step <= steps["heldout"][name] for name, step in steps["train"].items())
    assert any(step < 0.9 * steps["heldout"][name] for name, step in steps["train"].items())


def test_more_rounds_than_steps_are_refused_and_leave_nothing(config):
    with pytest.raises(UsageError, match=r"prune\.rounds=11: fine-tuning has 10 steps"):
        train(config, "too-many", "prune.rounds=11")
    with pytest.raises(UsageError, match=r"prune\.rounds=2: fine-tuning is what alternates"):
        train(config, "too-many", "train.finetune_epochs=0")
    assert not (config.parent / "runs/too-many").exists()
