"""What is read ahead and written late changes no bit, and loses nothing."""

import json
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from harness.data.batches import Ahead, MicroBatch
from harness.files import sha256
from harness.machine.ranks import Ranks as Peers
from harness.run.checkpoint import RunState, committed_checkpoints, read_rank_state
from harness.run.checkpoint_writer import CheckpointWriter
from harness.run.ledger import LedgerWriter, part_paths
from tests.support.ranks import Ranks, assert_same_run, finish, write_config

# The same program without any thread: read, recorded and saved at the moment that they are asked for.
AT_ONCE = """
import os, sys
import harness.data.batches, harness.run.checkpoint, harness.run.ledger
from concurrent.futures import Future
class AtOnce:
    def __init__(self, *_, **__): pass
    def shutdown(self, *_, **__): pass
    def submit(self, work, *arguments):
        future = Future()
        future.set_result(work(*arguments))
        return future
for module in (harness.data.batches, harness.run.checkpoint, harness.run.ledger):
    module.ThreadPoolExecutor = AtOnce
from harness.train import main
status = main(sys.argv[1:])
sys.stdout.flush(), sys.stderr.flush()
os._exit(status)
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    return write_config(tmp_path_factory.mktemp("ahead"), epochs=2, checkpoint_minutes=1e-9)


@pytest.mark.parametrize("count", [1, 2])
def test_a_run_without_threads_has_the_same_bits(config, count):
    for status, _, errors in finish(count, config, f"name=threads{count}"):
        assert status == 0, errors
    with Ranks(count, config, program=["-c", AT_ONCE, str(config), f"name=none{count}"]) as job:
        for status, _, errors in job.wait():
            assert status == 0, errors
    runs = config.parent / "runs"
    assert_same_run(runs / f"threads{count}", runs / f"none{count}")
    # Checkpoints too: what was copied for the thread is what the run held at that step.
    ours, theirs = (committed_checkpoints(runs / f"{name}{count}") for name in ("threads", "none"))
    assert [path.name for path in ours] == [path.name for path in theirs]
    for one, other in zip(ours, theirs, strict=True):
        first, second = (read_rank_state(path, 0)["learners"][0]["backend"]["partitions"] for path in (one, other))
        assert all(torch.equal(p, q) for p, q in zip(first, second, strict=True))


def test_steps_are_read_ahead_and_any_step_may_be_asked_for():
    asked: list[tuple[int, str]] = []

    def work(step: int) -> int:
        asked.append((step, threading.current_thread().name))
        return step * step

    read = Ahead(work)
    assert [read(step) for step in (3, 4, 9, 10)] == [9, 16, 81, 100]
    read.close()
    main_thread = threading.main_thread().name
    assert [step for step, thread in asked if thread == main_thread] == [3, 9]


def test_an_error_of_the_ledgers_thread_is_raised_by_the_next_call(tmp_path):
    ledger = LedgerWriter(tmp_path, 0)
    part = MicroBatch(np.arange(2), np.zeros((2, 4), dtype=np.int64), np.ones((2, 4), dtype=bool))
    ledger.append(0, 0, part, np.zeros((1, 4), dtype=np.float32), np.ones(2))
    with pytest.raises(IndexError):
        ledger.flush()
    ledger.close()


def test_rows_are_complete_whenever_they_are_flushed(tmp_path):
    ledger = LedgerWriter(tmp_path, 0)
    part = MicroBatch(np.arange(2), np.zeros((2, 4), dtype=np.int64), np.ones((2, 4), dtype=bool))
    for step in range(50):
        ledger.append(step, 0, part, np.full((2, 4), step, dtype=np.float32), np.ones(2))
        if step == 20:
            assert [rows for rows, _ in ledger.flush()] == [42]
    assert len(ledger.flush()) == 2 and len(part_paths(tmp_path)) == 2
    ledger.close()


def test_a_checkpoint_holds_the_moment_it_was_started_at(tmp_path):
    weights = torch.zeros(1000)
    writer = CheckpointWriter(tmp_path, Peers(0, 1, torch.device("cpu")), keep=2)
    state = RunState(step=1, identity={})
    path = writer.start(state, {"weights": weights, "numbers": [1, 2.5, None]})
    assert not committed_checkpoints(tmp_path)
    weights.fill_(1)
    state.step = 7
    deadline = time.monotonic() + 30
    while not writer.is_written:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    writer.finish()
    writer.close()
    assert committed_checkpoints(tmp_path) == [path] and path.name == "step-00000001"
    own = read_rank_state(path, 0)
    assert not own["weights"].any() and own["numbers"] == [1, 2.5, None]
    digests = json.loads((path / "COMMITTED").read_text())
    assert digests == {name: sha256(path / name) for name in ("rank-00000.pt", "state.json")}
