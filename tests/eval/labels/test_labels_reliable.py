"""Runs and files of labels: stopped, on two ranks, of labels that say nothing, and of wrong inputs."""

import importlib.util
import math

import numpy as np
import pytest

from eval.labels.evaluate import label_codes
from tests.support.labels import labelled_set, settings
from tests.support.online import killed_now_and_then, run
from tests.support.ranks import assert_same_run, finish

OFTEN = ("train.checkpoint_minutes=1e-9", "train.epochs=4")


@pytest.fixture(scope="module")
def labels(tmp_path_factory):
    return labelled_set(tmp_path_factory.mktemp("set") / "set.npz")


def test_killed_runs_and_senders_of_labels_end_with_the_same_bits(labels, tmp_path):
    job = settings(tmp_path, labels, *OFTEN)
    assert run("train", *job, "name=whole") == 0
    killed_now_and_then(["train", *job, "name=killed"], tmp_path / "killed" / "checkpoints", 1, seed=1)
    assert_same_run(tmp_path / "killed", tmp_path / "whole")

    whole, file = tmp_path / "whole.clo", tmp_path / "file.clo"
    short = [*job, "online.segment_steps=1", "online.ema=0.9", "--quiet"]
    assert run("send", *short, "-o", whole) == 0
    killed_now_and_then(["send", *short, "--force", "-o", file], tmp_path / "file.clo.part" / "checkpoints", 1, seed=2)
    assert file.read_bytes() == whole.read_bytes()


def test_two_ranks_and_one_write_the_same_ledger(labels, tmp_path):
    job = settings(tmp_path, labels, "train.micro_batch_sequences=10")
    assert run("train", *job, "name=alone") == 0
    for status, _, errors in finish(2, *job, "name=two"):
        assert status == 0, errors
    assert_same_run(tmp_path / "two", tmp_path / "alone")


def test_no_code_of_labels_that_say_nothing_is_shorter_than_uniform(tmp_path):
    path, shape, count, classes = "digits", "1x8x8", 1797 - 40, 10
    if not importlib.util.find_spec("sklearn"):
        path, count, classes = labelled_set(tmp_path / "set.npz", num_rows=1040), 1000, 4
    few = ("model.subspace=30", "optimizer.learning_rate=0.05")
    for name, more, count_codes in (("all", (), 4), ("few", few, 4), ("posterior", ("rule.kind=variational",), 3)):
        own = (f"name={name}", "corpus.shuffle=true", f"model.inputs={shape}", "train.replays=1", "train.epochs=2")
        assert run("train", *settings(tmp_path, path, *own, *more)) == 0
        codes = label_codes(tmp_path / name)
        # A code that says a label with delta bits less than it must is right with a chance of 2^-delta.
        assert len(codes) == count_codes
        assert min(code.length.total_bits for code in codes) > count * math.log2(classes) - 20


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"x": np.zeros((9, 8, 8), np.uint8)}, "without y"),
        ({"y": np.zeros(9, np.uint8)}, "without x"),
        ({"x": np.zeros((9, 8, 8), np.uint8), "y": np.zeros(8, np.uint8)}, "y has shape (8,) for 9 inputs"),
        ({"x": np.zeros((9, 8, 8), np.uint8), "y": np.full(9, 256)}, "from 0 to 255"),
        ({"x": np.zeros((9, 70_000), np.uint8), "y": np.zeros(9, np.uint8)}, "below 65,536"),
    ],
)
def test_a_set_that_is_none_ends_every_command_with_a_line(tmp_path, capsys, content, words):
    path = tmp_path / "set.npz"
    np.savez(path, **content)
    for command in (("train",), ("send", "-o", tmp_path / "x.clo", "--quiet")):
        name, *more = command
        assert run(name, *settings(tmp_path, path, "corpus.heldout_bytes=1"), *more) == 2
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists() and not (tmp_path / "x.clo").exists()
