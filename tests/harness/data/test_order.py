"""The order of the sequences is a pure function that visits everything once per epoch and never changes."""

import tracemalloc

import numpy as np
import pytest

from harness.data.order import SequenceOrder, Sequences
from harness.data.shards import write_shard
from harness.data.tokenizer import ByteTokenizer

FINGERPRINT = "0123456789abcdef" * 4


def epoch(order: SequenceOrder, number: int = 0) -> np.ndarray:
    start = number * order.steps_per_epoch
    return np.concatenate([order.batch(step) for step in range(start, start + order.steps_per_epoch)])


def test_the_order_of_a_small_case_is_the_recorded_one():
    # Changing these values changes every code length ever measured and breaks every resumed run.
    order = SequenceOrder(10, 4, FINGERPRINT, seed=1)
    assert [order.batch(step).tolist() for step in range(6)] == [
        [0, 3, 9, 5],
        [6, 2, 8, 4],
        [1, 7],
        [6, 3, 7, 9],
        [1, 8, 2, 0],
        [5, 4],
    ]
    assert SequenceOrder(12_000_000, 4, FINGERPRINT, seed=0).batch(2_999_999).tolist() == [
        4708551,
        703269,
        8634190,
        46508,
    ]


@pytest.mark.parametrize("num_sequences", [1, 2, 3, 4, 5, 16, 17, 63, 64, 65, 1000, 4097])
def test_every_sequence_is_read_exactly_once_in_each_epoch(num_sequences):
    order = SequenceOrder(num_sequences, 7, FINGERPRINT, seed=3)
    for number in range(3):
        assert sorted(epoch(order, number).tolist()) == list(range(num_sequences))


def test_the_last_batch_of_an_epoch_is_short_and_not_dropped():
    order = SequenceOrder(10, 4, FINGERPRINT, seed=0)
    assert [len(order.batch(step)) for step in range(6)] == [4, 4, 2, 4, 4, 2]
    assert [order.epoch_of(step) for step in range(6)] == [0, 0, 0, 1, 1, 1]
    assert order.batch(0).dtype == np.int64


def test_steps_of_a_fraction_of_epochs_are_rounded_up_from_the_decimal():
    order = SequenceOrder(100, 1, FINGERPRINT, seed=0)
    # As binary floats, 1.1 * 100 and 0.07 * 100 are above 110 and 7.
    assert [order.steps(epochs) for epochs in (1, 1.1, 0.07, 0.001, 23)] == [100, 110, 7, 1, 2300]


def test_epochs_seeds_and_fingerprints_give_different_orders_and_a_step_is_reproducible():
    order = SequenceOrder(1000, 10, FINGERPRINT, seed=0)
    others = [epoch(order, 1), epoch(SequenceOrder(1000, 10, FINGERPRINT, 1)), epoch(SequenceOrder(1000, 10, "x", 0))]
    for other in others:
        # Two unrelated permutations agree at one place on average.
        assert (epoch(order) == other).sum() < 10
    assert np.array_equal(SequenceOrder(1000, 10, FINGERPRINT, 0).batch(57), order.batch(57))
    # The batch size only cuts the same order differently.
    assert np.array_equal(epoch(SequenceOrder(1000, 32, FINGERPRINT, 0)), epoch(order))


def test_the_order_mixes():
    num_sequences, bins, epochs = 5000, 20, 20
    order = SequenceOrder(num_sequences, num_sequences, FINGERPRINT, seed=0)
    counts = np.zeros((bins, bins))
    for number in range(epochs):
        ids = epoch(order, number)
        np.add.at(counts, (np.arange(num_sequences) * bins // num_sequences, ids * bins // num_sequences), 1)
    expected = epochs * num_sequences / bins**2
    chi_square = ((counts - expected) ** 2 / expected).sum()
    degrees = (bins - 1) ** 2
    assert abs(chi_square - degrees) < 5 * np.sqrt(2 * degrees)
    # Neighbours in the order are not neighbours in the text.
    assert abs(np.corrcoef(ids[:-1], ids[1:])[0, 1]) < 0.05
    assert (np.diff(ids) == 1).sum() < 10


def test_a_batch_of_twelve_million_sequences_needs_no_memory_for_them():
    tracemalloc.start()
    batch = SequenceOrder(12_000_000, 128, FINGERPRINT, seed=0).batch(93_000)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(set(batch.tolist())) == 128
    assert peak_bytes < 1_000_000


def test_impossible_sizes_and_steps_are_refused():
    for sizes in ((0, 1), (1, 0)):
        with pytest.raises(ValueError):
            SequenceOrder(*sizes, FINGERPRINT, 0)
    with pytest.raises(ValueError):
        SequenceOrder(1, 1, FINGERPRINT, 0).batch(-1)


def test_sequences_cover_every_token_once_and_pad_only_the_tail(tmp_path):
    data = bytes(range(1, 24))
    shard = write_shard(tmp_path / "s", iter([data[:9], data[9:]]), ByteTokenizer())
    sequences = Sequences(shard, 5)
    assert sequences.num_sequences == 5
    tokens, mask = sequences.read(np.array([4, 0, 2]))
    assert tokens.dtype == np.int64 and mask.dtype == bool
    assert tokens.tolist() == [[21, 22, 23, 0, 0], [1, 2, 3, 4, 5], [11, 12, 13, 14, 15]]
    assert mask.tolist() == [[True] * 3 + [False] * 2, [True] * 5, [True] * 5]
    tokens, mask = sequences.read(np.arange(5))
    assert tokens[mask].tolist() == list(data)
    assert [part.shape for part in sequences.read(np.array([], dtype=np.int64))] == [(0, 5), (0, 5)]
    for outside in (-1, 5):
        with pytest.raises(IndexError):
            sequences.read(np.array([outside]))
