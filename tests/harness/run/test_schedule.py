"""Runs whose first steps are parts of a sequence: the same bits however they are shared out and stopped."""

from pathlib import Path

import numpy as np
import pytest

from harness.config.run import load_config
from harness.corpus.prepared import open_data
from harness.data.order import Sequences
from harness.run.checkpoint import committed_checkpoints
from harness.run.ledger import read_online_code
from launch.main import main
from tests.support.ranks import CONTEXT, SUBSET_BYTES, Ranks, assert_same_run, finish, rows, write_config

SCHEDULE = [[0, 16], [188, 64], [750, 128]]
FIRST_STEPS = 12 + 9 + 14
SETTINGS = ("prune.kind=none", "rule.kind=none")


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    return write_config(
        tmp_path_factory.mktemp("schedule"), batch_schedule=SCHEDULE, epochs=1.5, replays=1, replays_until=1000
    )


@pytest.fixture(scope="module")
def whole(config) -> Path:
    """The run of two ranks; each has a part of the largest steps only, the others are the first one's."""
    for status, _, errors in finish(2, config, "name=whole", *SETTINGS):
        assert status == 0, errors
    return config.parent / "runs" / "whole"


def test_the_ledger_holds_every_token_once_in_steps_of_the_schedule(config, whole):
    train = open_data(load_config(config)).train
    code = read_online_code(whole, Sequences(train, CONTEXT).num_sequences, train.num_tokens)
    assert len(code.step_raw_bytes) == FIRST_STEPS and code.step_raw_bytes.sum() == SUBSET_BYTES
    assert set(code.step_raw_bytes[:12]) == {16}
    assert set(code.step_raw_bytes[12:21]) <= {CONTEXT, SUBSET_BYTES % CONTEXT}
    ledger = rows(whole).filter(np.array(rows(whole)["epoch"]) == 0)
    assert ledger.num_rows == 12 + 9 + 28


@pytest.mark.parametrize("backend", [(), ("backend.name=deepspeed", "backend.zero_stage=2")], ids=["ddp", "zero2"])
def test_a_killed_run_goes_on_to_the_same_bits(config, whole, backend):
    name = f"killed{len(backend)}"
    settings = (f"name={name}", "train.checkpoint_minutes=1e-9", *SETTINGS, *backend)
    directory = whole.with_name(name)
    with Ranks(2, config, *settings) as job:
        job.wait_until(lambda: any(int(path.name.split("-")[1]) >= 5 for path in committed_checkpoints(directory)))
        job.kill()
    for status, _, errors in finish(2, config, *settings):
        assert status == 0, errors
    assert_same_run(directory, whole)


def test_one_rank_with_two_micro_batches_is_two_ranks_with_one(config, whole):
    settings = ("name=alone", "train.micro_batch_sequences=2", *SETTINGS)
    assert main(["train", str(config), *settings]) == 0
    assert_same_run(whole.with_name("alone"), whole)


def test_a_schedule_of_full_batches_is_none(config):
    for name, schedule in (("full", "[[0,256]]"), ("none", "[]")):
        overrides = [f"name={name}", f"train.batch_schedule={schedule}", *SETTINGS]
        assert main(["train", str(config), *overrides]) == 0
    assert_same_run(config.parent / "runs" / "full", config.parent / "runs" / "none")
