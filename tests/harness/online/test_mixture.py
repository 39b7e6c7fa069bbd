"""Experts of the online code: every bound that theory promises, on the code that sender, receiver and ledger share."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import betaln, gammaln

from harness.online.mixture import Mixture
from harness.units import bits_from_nats

TEXT = np.frombuffer(b"the cat sat on the mat; the cat ate the rat; and the rat sat on the cat. " * 20, dtype=np.uint8)


def mixture(experts, vocab_size=256, tokens=4096, lanes=1, tables=0, order=4) -> Mixture:
    return Mixture(tables, list(experts), order, vocab_size, tokens, lanes)


def coded_bits(mix: Mixture, tokens: np.ndarray, tables: np.ndarray | None = None) -> np.ndarray:
    """Bits (lanes,) of `tokens` (lanes, length), coded as one sequence a lane."""
    lanes, length = tokens.shape
    if tables is None:
        tables = np.zeros((0, lanes, length, mix.vocab_size), dtype=np.float32)
    mix.start(np.arange(lanes) * length)
    probabilities = mix.bit_probabilities(tables, tokens, np.ones(tokens.shape, dtype=bool))
    return bits_from_nats(mix.nats_of(probabilities, tokens).sum(axis=1))


def member_bits(mix: Mixture) -> np.ndarray:
    return bits_from_nats(mix.state.nats)


@pytest.mark.parametrize("vocab_size", [2, 256, 300, 1024])
def test_the_uniform_code_is_exact(vocab_size):
    mix = mixture(["uniform"], vocab_size)
    tokens = np.random.default_rng(0).integers(vocab_size, size=(1, 200))
    assert coded_bits(mix, tokens)[0] == pytest.approx(200 * math.log2(vocab_size), rel=1e-9)


@given(bits=st.lists(st.booleans(), min_size=1, max_size=80))
@settings(max_examples=30, deadline=None)
def test_sequential_laplace_and_kt_codes_have_their_closed_forms(bits):
    ones, n = sum(bits), len(bits)
    tokens = np.array([bits], dtype=np.int64)
    laplace, kt = mixture(["frequencies"], 2), mixture(["frequencies"], 2)
    laplace.state.counts[:] = 1
    expected = (math.log(n + 1) + math.log(math.comb(n, ones))) / math.log(2)
    assert coded_bits(laplace, tokens)[0] == pytest.approx(expected, abs=1e-9)
    kt_bits = coded_bits(kt, tokens)[0]
    assert kt_bits == pytest.approx(-(betaln(ones + 0.5, n - ones + 0.5) - betaln(0.5, 0.5)) / math.log(2), abs=1e-9)
    share = ones / n
    best = -sum(count * math.log2(p) for count, p in ((ones, share), (n - ones, 1 - share)) if count)
    assert kt_bits <= best + 0.5 * math.log2(n) + 1 + 1e-9


@given(
    tokens=st.lists(st.integers(0, 6), min_size=1, max_size=60),
    a=st.sampled_from([0.5, 1.0, 0.1]),
    seed=st.integers(0, 9),
)
@settings(max_examples=30, deadline=None)
def test_the_dirichlet_code_is_its_evidence_and_does_not_depend_on_the_order(tokens, a, seed):
    symbols, n, counts = 7, len(tokens), np.bincount(tokens, minlength=7)
    evidence = gammaln(symbols * a) - gammaln(n + symbols * a) + (gammaln(counts + a) - gammaln(a)).sum()
    for sequence in (np.array(tokens), np.random.default_rng(seed).permutation(tokens)):
        mix = mixture(["frequencies"], symbols)
        mix.state.counts[:] = a
        assert coded_bits(mix, sequence[None])[0] == pytest.approx(-evidence / math.log(2), abs=1e-9)


def random_tables(rng: np.random.Generator, tables: int, lanes: int, length: int, vocab_size: int) -> np.ndarray:
    return rng.dirichlet(np.full(vocab_size, 0.2), size=(tables, lanes, length)).astype(np.float32)


@given(seed=st.integers(0, 1000), tables=st.integers(1, 4), vocab_size=st.sampled_from([2, 5, 256]))
@settings(max_examples=25, deadline=None)
def test_the_mixture_is_at_most_its_prior_longer_than_each_member(seed, tables, vocab_size):
    rng = np.random.default_rng(seed)
    mix = mixture(["uniform", "frequencies"], vocab_size, lanes=2, tables=tables)
    tokens = rng.integers(vocab_size, size=(2, 50))
    total = coded_bits(mix, tokens, random_tables(rng, tables, 2, 50, vocab_size)).sum()
    prior_bits = 2 * (1 + math.log2(tables + 2))
    assert total <= member_bits(mix).min() + prior_bits + 1e-6


@given(start=st.integers(0, 1000), length=st.integers(1, 200), order=st.integers(1, 6), is_text=st.booleans())
@settings(max_examples=15, deadline=None)
def test_the_full_mixture_is_at_most_its_prior_longer_than_each_member(start, length, order, is_text):
    rng = np.random.default_rng(start)
    tokens = TEXT[start : start + 2 * length].astype(np.int64) if is_text else rng.integers(256, size=2 * length)
    mix = mixture(["uniform", "frequencies", "ngram", "network"], tokens=2 * length, lanes=2, tables=2, order=order)
    total = coded_bits(mix, tokens.reshape(2, length), random_tables(rng, 2, 2, length, 256)).sum()
    assert total <= member_bits(mix).min() + 2 * (1 + math.log2(6)) + 1e-6


def test_the_adaptive_members_of_the_full_mixture_learn_a_text():
    tokens = TEXT[None, :1200].astype(np.int64)
    mix = mixture(["uniform", "frequencies", "ngram", "network"], tables=1)
    total = coded_bits(mix, tokens, np.full((1, 1, 1200, 256), 1 / 256, dtype=np.float32))[0]
    assert len(member_bits(mix)) == 5
    assert total <= member_bits(mix).min() + 1 + math.log2(5) + 1e-6
    assert member_bits(mix)[3:].max() < 0.5 * member_bits(mix)[2]


def strategies(experts: int, length: int):
    """Prior and experts by time of every strategy that switches at times 1 to length - 1, as far as it matters."""
    for times in itertools.chain.from_iterable(itertools.combinations(range(1, length), r) for r in range(length)):
        for used in itertools.product(range(experts), repeat=len(times) + 1):
            # pi_T(t_i | t_i > t_{i-1}) = t_{i-1} / (t_i (t_i + 1)), where t_0 counts as 1 - and pi_T(t > t_0) as 1.
            prior, last = 1 / experts, 0
            for time in times:
                prior *= (last + 1) / (time * (time + 1)) / experts
                last = time
            # After the last switch: either that was all, or the next one comes after the end.
            later = (last + 1) / length
            ended = 0.5 ** (len(times) + 1)
            yield prior * (ended + ended * later), times, used


def test_the_switch_is_the_sum_over_all_strategies():
    rng, experts, length = np.random.default_rng(1), 2, 6
    tables = random_tables(rng, experts, 1, length, 3)
    tokens = rng.integers(3, size=(1, length))
    mix = mixture([], 3, tables=experts)
    total = coded_bits(mix, tokens, tables)[0]
    probabilities = np.take_along_axis(tables[:, 0].astype(np.float64), tokens[0][None, :, None], axis=2)[..., 0]
    evidence = prior_sum = 0.0
    for prior, times, used in strategies(experts, length):
        expert_at = np.repeat(used, np.diff([0, *times, length]))
        weight = prior
        prior_sum += prior
        bits = -math.log2(weight) - np.log2(probabilities[expert_at, np.arange(length)]).sum()
        assert total <= bits + 1e-6
        evidence += weight * np.prod(probabilities[expert_at, np.arange(length)])
    assert prior_sum == pytest.approx(1)
    assert total == pytest.approx(-math.log2(evidence), abs=1e-5)


@given(seed=st.integers(0, 10**6))
@settings(max_examples=10, deadline=None)
def test_random_bytes_are_never_shorter_than_themselves(seed):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(256, size=(4, 2000))
    mix = mixture(["uniform", "frequencies", "ngram", "network"], tokens=8000, lanes=4, tables=1, order=6)
    tables = random_tables(rng, 1, 4, 2000, 256)
    total = coded_bits(mix, tokens, tables).sum()
    assert 8 * 8000 - 20 <= total <= 8 * 8000 + 4 * (1 + math.log2(5)) + 1
    assert member_bits(mix).min() >= 8 * 8000 - 20


def test_symbols_decoded_bit_by_bit_are_those_coded_at_once():
    rng, lanes, length = np.random.default_rng(0), 3, 40
    tokens = TEXT[: lanes * length].reshape(lanes, length).astype(np.int64)
    mask = np.ones(tokens.shape, dtype=bool)
    mask[2, 25:] = False
    tables = random_tables(rng, 1, lanes, length, 256)
    experts = ["uniform", "frequencies", "ngram", "network"]
    sender, receiver = (mixture(experts, lanes=lanes, tables=1) for _ in range(2))
    for mix in (sender, receiver):
        mix.start(np.arange(lanes) * length)
    probabilities = sender.bit_probabilities(tables, tokens, mask)
    for position in range(length):
        active = mask[:, position]
        bits = receiver.bits_of(tokens[active, position])
        pairs = receiver.start_symbols(tables[:, :, position], active)
        for depth in range(8):
            assert np.array_equal(pairs[:, 1], probabilities[active, position, depth])
            last = depth == 7
            pairs = (receiver.end_symbols if last else receiver.next_bits)(np.ascontiguousarray(bits[:, depth]))
        assert np.array_equal(pairs, tokens[active, position])
    for name, array in sender.arrays().items():
        assert np.array_equal(array, receiver.arrays()[name]), name


def test_bits_that_no_sender_codes_make_a_symbol_all_the_same():
    # 300 symbols take nine bits; a damaged stream can say 511.
    mix = mixture(["uniform", "frequencies"], 300)
    mix.start(np.array([0]))
    mix.start_symbols(np.zeros((0, 1, 300), dtype=np.float32), np.array([True]))
    ones = np.ones(1, dtype=np.int64)
    for _ in range(8):
        mix.next_bits(ones)
    assert 0 <= mix.end_symbols(ones)[0] < 300


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0])
def test_a_table_that_is_no_distribution_leaves_the_mixture_sound(value):
    mix = mixture(["uniform", "ngram", "network"], tables=1)
    tokens = TEXT[None, :200].astype(np.int64)
    assert 0 < coded_bits(mix, tokens, np.full((1, 1, 200, 256), value, dtype=np.float32))[0] < 8 * 200 + 10
    assert all(np.isfinite(array).all() for array in mix.arrays().values())


@pytest.mark.parametrize("byte", [0, 255])
def test_a_long_run_of_one_byte_stays_within_what_floats_can_tell(byte):
    mix = mixture(["ngram", "network"], tables=1, tokens=60_000)
    tokens = np.full((1, 60_000), byte, dtype=np.int64)
    tables = np.broadcast_to(np.float32(1 / 256), (1, 1, 60_000, 256))
    assert coded_bits(mix, tokens, np.ascontiguousarray(tables))[0] < 0.01 * 60_000
    probabilities = mix.state.ngram.probabilities
    assert probabilities.min() > 1e-5 and probabilities.max() < 1 - 1e-5
    assert all(np.isfinite(array).all() for array in mix.arrays().values())


def test_a_mixture_goes_on_from_its_arrays():
    tokens = TEXT[None, :400].astype(np.int64)
    experts = ["frequencies", "ngram", "network"]
    first, second = (mixture(experts, tables=1) for _ in range(2))
    tables = np.full((1, 1, 400, 256), 1 / 256, dtype=np.float32)
    coded_bits(first, tokens, tables)
    second.load({name: array.copy() for name, array in first.arrays().items()})
    again = TEXT[None, 400:800].astype(np.int64)
    assert coded_bits(first, again, tables) == coded_bits(second, again, tables)
    with pytest.raises((KeyError, ValueError)):
        mixture(["uniform"], tables=1).load(first.arrays())


def test_what_other_ranks_have_coded_is_learnt_and_costs_nothing():
    tokens, others = TEXT[None, :600].astype(np.int64), TEXT[None, 600:1200].astype(np.int64)
    tables, mask = np.full((1, 1, 600, 256), 1 / 256, dtype=np.float32), np.ones((1, 600), dtype=bool)
    alone, told = (mixture(["frequencies", "ngram", "network"], tables=1) for _ in range(2))
    told.learn_sequences(np.array([600]), tables, others, mask)
    assert not member_bits(told).any() and told.state.switch.times == 0
    assert coded_bits(told, tokens, tables)[0] < 0.7 * coded_bits(alone, tokens, tables)[0]


def test_text_is_coded_in_any_order_of_its_places():
    # A place may be known before and after the one that is coded, as with shuffled sequences.
    mix = mixture(["ngram"])
    for start in (64, 192, 0, 128, 256):
        mix.start(np.array([start]))
        tokens = TEXT[None, start : start + 64].astype(np.int64)
        mix.bit_probabilities(np.zeros((0, 1, 64, 256), dtype=np.float32), tokens, np.ones((1, 64), dtype=bool))
    assert np.array_equal(mix.state.ngram.history[:320], TEXT[:320])
