"""Steps of less than a batch, or than a sequence: every token once, whatever the schedule, on any number of ranks."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.data.batches import Batches
from harness.data.schedule import Phase, TrainConfig
from harness.data.steps import StepOrder
from harness.machine.ranks import Ranks
from harness.online.replay import ReplaySchedule

CONTEXT, ROWS = 8, 4
SCHEDULE = [[0, 2], [12, 4], [30, 8], [60, 16], [100, 32]]


class Text:
    """Tokens that are their own places."""

    def __init__(self, num_tokens: int):
        self.tokens = np.arange(num_tokens)
        self.num_tokens, self.raw_bytes, self.fingerprint = num_tokens, num_tokens, "f"
        self.inputs = None


def batches_of(config: TrainConfig, num_tokens: int, rank: int = 0, world_size: int = 1) -> Batches:
    ranks = Ranks(rank, world_size, torch.device("cpu"))
    return Batches(Text(num_tokens), config, CONTEXT, ROWS // world_size, 0, ranks)


def learnt(batch) -> np.ndarray:
    return np.concatenate([part.tokens[part.mask] for part in batch.micro_batches])


@st.composite
def schedules(draw):
    sizes = sorted(draw(st.sets(st.sampled_from([1, 2, 4, 8, 16, 24, 32]), min_size=1)))
    starts = sorted(draw(st.sets(st.integers(1, 200), min_size=len(sizes) - 1, max_size=len(sizes) - 1)))
    return [list(stage) for stage in zip([0, *starts], sizes, strict=True)]


@settings(deadline=None)
@given(
    schedule=schedules(),
    num_tokens=st.integers(1, 300),
    order=st.sampled_from(["shuffled", "interleaved", "sequential"]),
)
def test_every_token_is_learnt_once_in_every_epoch(schedule, num_tokens, order):
    config = TrainConfig(batch_sequences=ROWS, batch_schedule=schedule, order=order)
    assert not config.problems() and not config.schedule_problems(CONTEXT)
    batches = batches_of(config, num_tokens)
    steps, two = batches.order.steps_per_epoch, batches.order.steps(2)
    for epoch, numbers in enumerate((range(steps), range(steps, two))):
        read = [batches.of_step(step) for step in numbers]
        assert {batch.epoch for batch in read} == {epoch}
        assert sorted(np.concatenate([learnt(batch) for batch in read])) == list(range(num_tokens))
        assert [batch.num_tokens for batch in read] == [len(learnt(batch)) for batch in read]
        assert min(batch.num_tokens for batch in read) > 0
    assert batches.order.epoch_of(steps - 1) == 0 and batches.order.epoch_of(steps) == 1


@settings(deadline=None)
@given(
    schedule=schedules(),
    num_tokens=st.integers(1, 1000),
    overlap=st.integers(1, 20),
    order=st.sampled_from(["interleaved", "streams"]),
)
def test_sequences_are_given_what_is_before_them_where_earlier_steps_have_read_it(schedule, num_tokens, overlap, order):
    config = TrainConfig(batch_sequences=ROWS, batch_schedule=schedule if order == "interleaved" else [], order=order)
    batches, whole = (batches_of(config, num_tokens) for _ in range(2))
    batches.overlap, known, given_rows = overlap, set(), 0
    for step in range(batches.order.steps_per_epoch):
        batch, alone = batches.of_step(step), whole.of_step(step)
        for part, plain in zip(batch.micro_batches, alone.micro_batches, strict=True):
            assert np.array_equal(part.tokens[:, part.given :], plain.tokens) and plain.given == 0
            assert np.array_equal(part.mask[:, part.given :], plain.mask) and not part.mask[:, : part.first].any()
            assert part.first == part.given + plain.first and part.given <= overlap
            for sequence, row in zip(part.sequences, part.tokens[:, : part.given].tolist(), strict=True):
                start = sequence * CONTEXT
                assert row == list(range(start - part.given, start)) and known.issuperset(row)
                given_rows += part.given > 0
        known.update(learnt(batch).tolist())
    assert num_tokens < 600 or given_rows > 0.4 * (num_tokens // CONTEXT)


def test_a_schedule_is_followed_and_parts_of_a_sequence_see_what_is_before_them():
    batches = batches_of(TrainConfig(batch_sequences=ROWS, batch_schedule=SCHEDULE, order="sequential"), 200)
    sizes = [batches.of_step(step).num_tokens for step in range(batches.order.steps_per_epoch)]
    assert sizes == [2] * 8 + [4] * 4 + [8] * 4 + [16] * 3 + [32] * 2 + [24]
    part = batches.of_step(1).micro_batches[0]
    assert part.first == 2 and part.tokens.tolist() == [[0, 1, 2, 3]]
    assert part.mask.tolist() == [[False, False, True, True]]


def test_a_step_is_shared_among_ranks_and_one_without_a_row_takes_part():
    config = TrainConfig(batch_sequences=ROWS, batch_schedule=SCHEDULE)
    whole = batches_of(config, 203)
    parts = [batches_of(config, 203, rank, 2) for rank in range(2)]
    for step in range(whole.order.steps_per_epoch):
        own = [batches.of_step(step) for batches in parts]
        assert {len(batch.micro_batches) for batch in own} == {1}
        assert {batch.num_tokens for batch in own} == {whole.of_step(step).num_tokens}
        assert sorted(np.concatenate([learnt(batch) for batch in own])) == sorted(learnt(whole.of_step(step)))
        rows = [int(batch.micro_batches[0].mask.any(axis=1).sum()) for batch in own]
        assert rows[0] - rows[1] in (0, 1)


def test_progress_goes_by_tokens():
    order = StepOrder(TrainConfig(batch_sequences=ROWS, batch_schedule=SCHEDULE), 200, CONTEXT, "f", 0)
    phase = Phase("main", 0, order.steps(1))
    moments = [order.moment(step, phase) for step in range(phase.num_steps)]
    assert moments[0].begun == 0 and moments[-1].done == 1 and moments[-1].tokens == 200
    assert [moment.done for moment in moments[:-1]] == [moment.begun for moment in moments[1:]]
    assert [order.tokens_left(step, phase.num_steps) for step in (0, 1, 8, phase.num_steps)] == [200, 198, 184, 0]
    assert moments[8].tokens == 20 and moments[8].batch == 4 / 32 and moments[-2].batch == 1
    later = Phase("finetune", phase.end_step, 3)
    assert order.moment(later.first_step, later).begun == 0 and order.moment(later.first_step, later).is_finetuning


def test_replays_read_whole_sequences_that_were_read_in_their_own_row():
    config = TrainConfig(batch_sequences=ROWS, batch_schedule=SCHEDULE, replays=3)
    batches = batches_of(config, 203)
    replays, sent = ReplaySchedule(config, batches), [set() for _ in range(ROWS)]
    for step in range(batches.order.steps_per_epoch):
        reading = batches.order.reading(step)
        for row, sequence in enumerate(reading.ids):
            if reading.end == CONTEXT or reading.end >= batches.sequences.lengths(reading.ids)[row]:
                sent[row].add(int(sequence))
        for batch in replays.replays(step):
            (part,) = batch.micro_batches
            assert len(part.sequences) == min(batches.order.rows_of(step), sum(map(bool, sent)))
            for row, sequence in enumerate(part.sequences):
                assert int(sequence) in sent[row] and part.first == 0


@pytest.mark.parametrize(
    "schedule",
    [
        [[0]],
        [[0, 8, 9]],
        [[0, 8], [0, 16]],
        [[5, 8]],
        [[0, 16], [9, 8]],
        [[0, 3]],
        [[0, 12]],
        [[0, 0]],
        [[-1, 8]],
        [[i, 8] for i in range(65)],
    ],
)
def test_bad_schedules_are_refused_in_one_line(schedule):
    config = TrainConfig(batch_sequences=ROWS, batch_schedule=schedule)
    (line,) = [*config.problems(), *config.schedule_problems(CONTEXT)]
    assert line.startswith("train.batch_schedule=[[") and "must be at most 64 pairs" in line


def test_no_step_is_larger_than_a_full_batch():
    config = TrainConfig(batch_sequences=ROWS, batch_schedule=[[0, 16], [50, 1000]])
    assert not config.problems() + config.schedule_problems(CONTEXT)
    order = batches_of(config, 200).order
    assert [batches_of(config, 200).of_step(step).num_tokens for step in range(9)] == [16] * 4 + [32] * 4 + [8]
    assert config.step_sizes(CONTEXT) == [16, 32] and order.updates(12) == {16: 5, 32: 7}
    assert batches_of(replace(config, replays=1), 200).order.updates(12) == {16: 10, 32: 11}
    ending = batches_of(replace(config, replays=2, replays_until=33), 200).order
    assert [ending.replays_after(step) for step in (0, 2, 3, 8, 9)] == [2, 2, 0, 0, None]
    assert ending.updates(12) == {16: 11, 32: 7}


@pytest.mark.parametrize("setting", [{"order": "streams"}, {"replay": "streams", "replays": 1}, {"retrain_at": [0.5]}])
def test_schedules_are_refused_where_they_have_no_meaning(setting):
    (line,) = TrainConfig(batch_sequences=ROWS, batch_schedule=SCHEDULE, **setting).problems()
    assert line.startswith("train.batch_schedule")


@pytest.mark.parametrize("other", [{}, {"order": "sequential"}, {"order": "interleaved", "shares": "uniform"}])
def test_an_overlap_is_refused_where_nothing_before_a_sequence_is_known(other):
    (line,) = TrainConfig(**other).sequence_problems(CONTEXT, overlap=4)
    assert line.startswith("model.overlap=4: sequences that follow what was read are those of train.order=interleaved")
