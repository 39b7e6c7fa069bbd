"""Parts in shares: every sequence once, as close to the shares as whole sequences come, and nothing left to chance."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.data import ado
from harness.data.batches import Batches, make_batches
from harness.data.mixture import Mixture
from harness.data.parts import Parts
from harness.data.schedule import TrainConfig
from harness.laws.power_law import Fit, fit_power_law
from harness.machine.ranks import Ranks

CONTEXT, ROWS = 8, 4
SCHEDULE = [[0, 2], [12, 4], [30, 8], [60, 16], [100, 32]]


class Text:
    """Tokens that are their own places, in parts."""

    def __init__(self, sizes: list[int]):
        self.num_tokens = self.raw_bytes = sum(sizes)
        self.tokens, self.fingerprint = np.arange(self.num_tokens), "f"
        self.inputs = None
        names = tuple("abcdefgh"[: len(sizes)])
        self.parts = Parts(names, np.cumsum([0, *sizes[:-1]]))


def batches_of(text: Text, rank: int = 0, world_size: int = 1, **train: object) -> Batches:
    config = TrainConfig(batch_sequences=ROWS, **train)
    return make_batches(text, config, CONTEXT, ROWS // world_size, 0, Ranks(rank, world_size, torch.device("cpu")))


def read(batches: Batches, losses=lambda step, parts: np.ones(parts.shape)) -> list[np.ndarray]:
    """Sequences of each step of the first epoch; `losses` of a step's rows (n,) by their part are what is observed."""
    steps = []
    for step in range(batches.order.steps_per_epoch):
        batch = batches.of_step(step)
        steps.append(np.concatenate([part.sequences[part.mask.any(axis=1)] for part in batch.micro_batches]))
        if batches.adaptive:
            nats = [losses(step, batches.parts.of_sequences(part.sequences, CONTEXT)) for part in batch.micro_batches]
            pairs = zip(nats, batch.micro_batches, strict=True)
            batches.adaptive.observe(batch, [(np.where(part.mask, n[:, None], 0), 0.0) for n, part in pairs])
    return steps


def falling(step: int, parts: np.ndarray) -> np.ndarray:
    """Losses that fall at different speeds."""
    return 1 + (parts + 1) * (step + 1.0) ** -0.4


SHARES = st.sampled_from(["natural", "uniform", "[5, 1, 2]", "[[0, 1, 1, 1], [100, 1, 8, 1]]", "ado"])


@settings(deadline=None, max_examples=60)
@given(
    sizes=st.lists(st.integers(8, 300), min_size=3, max_size=3),
    shares=SHARES,
    last=st.sampled_from([[], ["b"], ["c", "a"]]),
    schedule=st.sampled_from([[], SCHEDULE]),
    order=st.sampled_from(["shuffled", "sequential"]),
)
def test_every_sequence_is_read_once_whatever_the_shares(sizes, shares, last, schedule, order):
    batches = batches_of(Text(sizes), shares=shares, last=last, batch_schedule=schedule, order=order, ado_start=40)
    steps = read(batches, falling)
    tokens = [batches.of_step(step).num_tokens for step in range(len(steps))]
    assert sum(tokens) == sum(sizes) and min(tokens) > 0
    whole = np.concatenate([ids for ids, _ in itertools.groupby(np.concatenate(steps).tolist())] and steps)
    assert sorted(set(whole.tolist())) == list(range(batches.sequences.num_sequences))
    again = [batches.of_step(step).micro_batches[0].sequences for step in range(len(steps))]
    assert all(np.isin(ids, np.append(first, 0)).all() for ids, first in zip(again, steps, strict=True))
    if last:
        parts = batches.parts.of_sequences(whole, CONTEXT)
        held = np.isin(parts, batches.parts.indices(last))
        # The last sequence of the text is the last one of all.
        assert (np.diff(held[whole < batches.sequences.num_sequences - 1].astype(int)) >= 0).all()


def counts_of(text: Text, shares: str, positions: int) -> np.ndarray:
    mixture = batches_of(text, shares=shares).order.first_epoch
    parts = text.parts.of_sequences(mixture.read_at(0, positions), CONTEXT)
    return np.cumsum(parts[:, None] == np.arange(len(text.parts.names)), axis=0)


@pytest.mark.parametrize("weights", [[1, 1], [5, 3, 2], [1, 2, 3, 4, 5, 6, 7, 8], [97, 1, 1, 1]])
def test_counts_are_less_than_a_sequence_from_their_shares(weights):
    counts = counts_of(Text([8000] * len(weights)), str(weights), 900)
    wanted = np.arange(1, 901)[:, None] * np.array(weights) / sum(weights)
    assert np.abs(counts - wanted).max() < 1


def test_natural_shares_are_those_of_the_text_and_other_parts_take_what_one_leaves():
    sizes = [800, 1600, 3200]
    counts = counts_of(Text(sizes), "[1, 1, 1]", 699)
    assert counts[-1].tolist() == [100, 200, 399]
    assert np.abs(np.diff(counts[300:499, 1:], axis=1)).max() <= 1 and (counts[300:, 0] == 100).all()


def test_shares_follow_their_schedule():
    counts = counts_of(Text([8000, 8000]), "[[0, 9, 1], [800, 1, 9]]", 200)
    assert counts[99].tolist() == [90, 10] and counts[199].tolist() == [100, 100]


def test_ranks_share_out_the_rows_of_a_mixture():
    whole = batches_of(Text([200, 90, 31]), shares="uniform")
    parts = [batches_of(Text([200, 90, 31]), rank, 2, shares="uniform") for rank in range(2)]
    for one, *own in zip(read(whole), *map(read, parts), strict=True):
        assert sorted(one) == sorted(np.concatenate(own))


def test_untrained_rows_are_coded_and_counted_apart():
    batches = batches_of(Text([203, 90]), untrained=["b"])
    for step in range(batches.order.steps_per_epoch):
        batch = batches.of_step(step)
        (part,) = batch.micro_batches
        is_b = part.tokens[:, 0] >= 203
        # A sequence belongs to the part in which it begins.
        assert (part.untrained == (is_b & part.mask.any(axis=1))).all() or not part.mask.any(axis=1).all()
        assert batch.num_untrained == int(part.mask[part.untrained].sum())


# What ADO chooses


def test_equal_laws_of_equal_parts_leave_the_shares_as_they_are():
    natural = np.full(4, 0.25)
    slopes = np.full(4, ado.learning_speed(Fit(1.9, 0.5, 0.35, 1e4), 5e4))
    assert np.allclose(ado.preferred_shares(natural, natural, slopes), natural, rtol=1e-12)
    assert ado.preferred_shares(np.array([0.7, 0.3]), natural[:2], np.zeros(2)).tolist() == [0.7, 0.3]


@given(st.lists(st.floats(1e-9, 1), min_size=2, max_size=8), st.integers(0, 2**32))
def test_no_share_is_below_the_floor_before_they_are_normalised(sizes, seed):
    natural = np.array(sizes) / sum(sizes)
    history, slopes = np.random.default_rng(seed).random((2, len(sizes)))
    shares = ado.preferred_shares(natural, history, slopes)
    assert math.isclose(shares.sum(), 1, rel_tol=1e-12)
    assert shares.min() >= 0.01 / (1 + 0.01 * len(sizes)) * (1 - 1e-12)
    assert np.allclose(ado.preferred_shares(np.full(200, 1 / 200), np.ones(200), np.arange(200.0)), 1 / 200)


def test_shares_are_a_tenth_of_the_moment_and_a_running_mean_of_all_before():
    text = Text([4000, 4000])
    batches = batches_of(text, shares="ado", ado_start=40, ado_every=20)
    seen = []
    preferred = ado.preferred_shares

    def noted(*given: np.ndarray) -> np.ndarray:
        seen.append(preferred(*given))
        return seen[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ado, "preferred_shares", noted)
        read(batches, falling)
    mixture = batches.adaptive
    assert len(seen) == mixture._num_updates == batches.order.steps_per_epoch - 40
    mean = (mixture.natural + sum(seen)) / (len(seen) + 1)
    assert np.allclose(mixture._mean, mean, rtol=1e-12)
    before = (mixture.natural + sum(seen[:-1])) / len(seen)
    assert np.allclose(mixture.shares(), 0.1 * seen[-1] + 0.9 * before, rtol=1e-12)


def test_what_falls_faster_is_read_more():
    text = Text([8000, 8000])
    steps = read(batches_of(text, shares="ado", ado_start=40), falling)
    part = text.parts.of_sequences(np.concatenate(steps), CONTEXT)
    assert part[: 40 * ROWS].mean() == 0.5 and part[40 * ROWS : 300 * ROWS].mean() > 0.53


def test_the_future_changes_no_earlier_batch():
    first = read(batches_of(Text([2000, 2000, 900]), shares="ado", ado_start=40), falling)

    def poisoned(step: int, parts: np.ndarray) -> np.ndarray:
        return falling(step, parts) if step < 90 else 50.0 * (parts == 1)

    other = read(batches_of(Text([2000, 2000, 900]), shares="ado", ado_start=40), poisoned)
    equal = [np.array_equal(*pair) for pair in zip(first, other, strict=True)]
    assert all(equal[:91]) and not all(equal)


def test_a_mixture_that_was_saved_goes_on_as_it_would_have():
    text, settings = Text([2000, 2000, 901]), {"shares": "ado", "ado_start": 40, "batch_schedule": [[0, 2], [60, 32]]}
    whole = batches_of(text, **settings)
    states, adaptive = [], whole.adaptive

    def saving(step: int, parts: np.ndarray) -> np.ndarray:
        return falling(step, parts)

    steps = []
    for step in range(whole.order.steps_per_epoch):
        states.append(whole.state())
        batch = whole.of_step(step)
        steps.append(batch.micro_batches[0].sequences)
        nats = saving(step, text.parts.of_sequences(steps[-1], CONTEXT))[:, None]
        adaptive.observe(batch, [(np.where(batch.micro_batches[0].mask, nats, 0), 0.0)])
    for begin in (0, 3, 57, 100, len(steps) - 1):
        resumed = batches_of(text, **settings)
        resumed.load(states[begin])
        for step in range(begin, len(steps)):
            batch = resumed.of_step(step)
            assert np.array_equal(batch.micro_batches[0].sequences, steps[step]), (begin, step)
            nats = falling(step, text.parts.of_sequences(steps[step], CONTEXT))[:, None]
            resumed.adaptive.observe(batch, [(np.where(batch.micro_batches[0].mask, nats, 0), 0.0)])


# The law


def test_the_slope_of_a_law_is_its_derivative():
    law = Fit(1.9, 0.7, 0.35, 3e4)
    for tokens in (2e4, 1e5, 3e6):
        step = tokens * 1e-5
        difference = -(law.at(tokens + step) - law.at(tokens - step)) / (2 * step)
        assert math.isclose(ado.learning_speed(law, tokens), difference, rel_tol=1e-6)


@pytest.mark.parametrize(
    ("noise", "floor", "exponent", "slope"),
    [(0.0, 1e-9, 1e-9, 1e-9), (0.01, 0.022, 0.006, 0.013), (0.03, 0.068, 0.022, 0.042)],
)
def test_a_law_is_recovered_from_noisy_losses(noise, floor, exponent, slope):
    generator, tokens = np.random.default_rng(0), 2048.0 * np.arange(1, 601)
    truth = 1.9 + 30 * tokens**-0.35
    fits = [fit_power_law(tokens, truth * (1 + noise * generator.standard_normal(600))) for _ in range(40)]
    speed = 0.35 * (truth[-1] - 1.9) / tokens[-1]
    assert abs(np.mean([fit.floor for fit in fits]) - 1.9) < floor
    assert abs(np.mean([fit.exponent for fit in fits]) - 0.35) < exponent
    assert abs(np.mean([ado.learning_speed(fit, tokens[-1]) for fit in fits]) / speed - 1) < slope


def test_losses_that_do_not_fall_have_no_slope():
    tokens = 2048.0 * np.arange(1, 601)
    assert ado.learning_speed(fit_power_law(tokens, np.full(600, 5.545)), tokens[-1]) < 1e-18
    rising = fit_power_law(tokens, 5 + tokens / tokens[-1])
    assert rising.scale == 0 and math.isclose(rising.floor, 5.5, rel_tol=1e-2)


# What an order is worth


def test_a_sum_over_all_orders_lies_a_name_of_an_order_below_the_best_one_at_most():
    """Of labelled examples, coded by counts: -log2 of the sum over orders of 2^-length."""
    labels, lengths = [0, 0, 0, 0, 1, 1, 1], []
    for order in itertools.permutations(range(7)):
        counts, bits = [1.0, 1.0], 0.0
        for index in order:
            label = labels[index]
            bits -= math.log2(counts[label] / sum(counts))
            counts[label] += 1
        lengths.append(bits)
    together = -math.log2(sum(2**-bits for bits in lengths))
    name = math.log2(math.factorial(7))
    assert min(lengths) - name - 1e-9 <= together <= min(lengths)
    assert isinstance(batches_of(Text([80, 80]), shares="uniform").order.first_epoch, Mixture)
