"""What is learnt between new batches: only what was sent, evenly, and the same for any number of ranks."""

import math

import numpy as np
import pytest
import torch

from harness.data.batches import Batches
from harness.data.order import ORDERS, SequenceOrder
from harness.data.schedule import TrainConfig
from harness.errors import UsageError
from harness.machine.ranks import Ranks
from harness.online.replay import ReplaySchedule

ROWS, CONTEXT = 4, 8


class Text:
    """Tokens that say which sequence they belong to."""

    def __init__(self, sequences: int):
        self.tokens = np.repeat(np.arange(sequences), CONTEXT)
        self.num_tokens, self.raw_bytes, self.fingerprint = len(self.tokens), len(self.tokens), "f"
        self.inputs = None


def lessons(config: TrainConfig, sequences: int = 200, rank: int = 0, world_size: int = 1) -> ReplaySchedule:
    ranks = Ranks(rank, world_size, torch.device("cpu"))
    batches = Batches(Text(sequences), config, CONTEXT, ROWS // world_size, 0, ranks)
    return ReplaySchedule(config, batches)


def read(batch) -> np.ndarray:
    return np.concatenate([micro_batch.sequences for micro_batch in batch.micro_batches])


@pytest.mark.parametrize("kind", ORDERS)
@pytest.mark.parametrize("sequences", [1, 3, 4, 5, 33, 64])
def test_every_order_reads_each_sequence_once(kind, sequences):
    order = SequenceOrder(sequences, 4, "f", 0, kind)
    batches = [order.batch(step) for step in range(order.steps_per_epoch)]
    assert sorted(np.concatenate(batches)) == list(range(sequences))
    assert all(len(batch) == 4 for batch in batches[:-1])


def test_sequential_and_streams_are_what_they_say():
    sequential, streams = (SequenceOrder(10, 4, "f", 0, kind) for kind in ("sequential", "streams"))
    assert [sequential.batch(step).tolist() for step in range(3)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    # Rows read 0-2, 3-5, 6-7 and 8-9: each a part of the text, the longer ones first.
    assert [streams.batch(step).tolist() for step in range(3)] == [[0, 3, 6, 8], [1, 4, 7, 9], [2, 5]]


@pytest.mark.parametrize("replay", ["uniform", "streams"])
@pytest.mark.parametrize("order", ORDERS)
def test_replays_read_only_what_was_sent_in_its_own_row(order, replay):
    found = lessons(TrainConfig(batch_sequences=ROWS, replays=3, replay=replay, order=order), sequences=42)
    sent = [set() for _ in range(ROWS)]
    for step in range(found.batches.order.steps_per_epoch):
        for row, sequence in enumerate(found.batches.order.reading(step).ids):
            sent[row].add(int(sequence))
        replays = found.replays(step)
        assert len(replays) == 3
        for replay_batch in replays:
            assert replay_batch.epoch == 1 and replay_batch.num_tokens == ROWS * CONTEXT
            for row, sequence in enumerate(read(replay_batch)):
                assert int(sequence) in sent[row]


@pytest.mark.parametrize("replay", ["uniform", "streams"])
def test_every_place_of_the_past_is_replayed_as_often(replay):
    replays = 400
    found = lessons(TrainConfig(batch_sequences=ROWS, replays=replays, replay=replay, order="sequential"))
    for step in range(12):
        rows = [read(batch) // ROWS for batch in found.replays(step)]
        counts = np.bincount(np.concatenate(rows), minlength=step + 1)
        expected = replays * ROWS / (step + 1)
        assert len(counts) == step + 1
        assert np.abs(counts - expected).max() < 5 * math.sqrt(expected) + 1


def test_readers_of_streams_go_on():
    found = lessons(TrainConfig(batch_sequences=ROWS, replays=50, replay="streams", order="sequential"))
    before = np.array([read(batch) // ROWS for batch in found.replays(29)])
    after = np.array([read(batch) // ROWS for batch in found.replays(30)])
    assert np.mean(after == before + 1) > 0.9 and set(np.unique(after[after != before + 1])) <= {0}


@pytest.mark.parametrize("replay", ["uniform", "streams"])
def test_replays_follow_from_the_step_alone_and_not_from_the_number_of_ranks(replay):
    config = TrainConfig(batch_sequences=ROWS, replays=2, replay=replay)
    whole, again = lessons(config), lessons(config)
    for step in range(20):
        whole.replays(step)
    parts = [lessons(config, rank=rank, world_size=2) for rank in range(2)]
    for step in (20, 7):
        expected = [read(batch) for batch in whole.replays(step)]
        assert np.array_equal(expected, [read(batch) for batch in again.replays(step)])
        # Rows are dealt out in turn.
        both = zip(*(p.replays(step) for p in parts), strict=True)
        shared = [np.stack([read(a), read(b)], axis=1).ravel() for a, b in both]
        assert np.array_equal(expected, shared)


def test_a_block_code_learns_from_all_that_was_read_before_and_nowhere_else():
    config = TrainConfig(batch_sequences=ROWS, retrain_at=[0.1, 0.5], retrain_epochs=2)
    found = lessons(config)
    steps = [step for step in range(50) if found.training(step)]
    assert steps == [4, 24]
    reads = []
    real = found.batches.of_sequences
    found.batches.of_sequences = lambda ids, epoch: reads.append(len(ids)) or real(ids, epoch)
    training = found.training(24)
    next(training)
    # What is to be learnt from is read when its step comes: all of it at once would be many times the text.
    assert len(reads) == 1
    training = list(found.training(24))
    assert len(training) == 50 and [round(50 * moment.done) for _, moment in training] == list(range(1, 51))
    seen = np.bincount(np.concatenate([read(batch) for batch, _ in training]), minlength=200)
    sent = np.concatenate([found.batches.order.reading(step).ids for step in range(25)])
    assert (seen[sent] == 2).all() and seen.sum() == 2 * len(sent)


@pytest.mark.parametrize(
    "settings",
    [
        {"replays": -1},
        {"replays": 100_000},
        {"replay": "backwards"},
        {"order": "random"},
        {"retrain_at": [0.5, 0.2]},
        {"retrain_at": [0.0]},
        {"retrain_at": [0.5], "replays": 1},
        {"retrain_at": [0.5], "epochs": 2.0},
        {"retrain_epochs": math.nan},
    ],
)
def test_bad_lessons_are_refused_by_name(settings):
    (problem,) = TrainConfig(**settings).problems()
    assert problem.startswith(f"train.{list(settings)[-1]}=")
    with pytest.raises((UsageError, ValueError)):
        SequenceOrder(1, 1, "f", 0, "random")
