"""The range coder: symbols come back, and the stream takes what its frequencies say."""

import numpy as np
import pytest

from eval.codec.range_coder import MAX_TABLE, Known, RangeDecoder, RangeEncoder
from harness.errors import UsageError

ROWS = 200
ALPHABETS = [2, 256, 257, 300, 4096, 32000]


def softmax(logits):
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return (exponentials / exponentials.sum(axis=1, keepdims=True)).astype(np.float32)


def drawn(rng, probabilities):
    """One symbol of each row's distribution."""
    cumulative = np.cumsum(probabilities, axis=1, dtype=np.float64)
    wanted = rng.random((len(probabilities), 1)) * cumulative[:, -1:]
    return (cumulative > wanted).argmax(axis=1)


def encoded(*batches):
    encoder = RangeEncoder()
    for symbols, probabilities in batches:
        encoder.encode(symbols, probabilities)
    return encoder, encoder.stream()


def rows_of(kind, alphabet, rng):
    """Probabilities (ROWS, alphabet) of one kind."""
    if kind == "smooth":
        return softmax(rng.normal(size=(ROWS, alphabet)))
    if kind == "peaked":
        return softmax(rng.normal(size=(ROWS, alphabet)) * 20)
    if kind == "one-hot":
        rows = np.zeros((ROWS, alphabet), dtype=np.float32)
        rows[np.arange(ROWS), rng.integers(0, alphabet, ROWS)] = 1
        return rows
    if kind == "half zero":
        return softmax(rng.normal(size=(ROWS, alphabet))) * (rng.random((ROWS, alphabet)) < 0.5).astype(np.float32) + (
            np.arange(alphabet) == 0
        ).astype(np.float32)
    # Everything but the first symbols is so small that it vanishes beside them, down to the smallest floats.
    magnitudes = 10.0 ** rng.uniform(-45, -9, size=(ROWS, alphabet))
    magnitudes[:, : alphabet // 2] = rng.random((ROWS, alphabet // 2))
    return magnitudes.astype(np.float32)


@pytest.mark.parametrize("alphabet", ALPHABETS)
@pytest.mark.parametrize("kind", ["smooth", "peaked", "one-hot", "half zero", "vanishing"])
def test_any_symbols_come_back_whatever_their_probabilities(alphabet, kind):
    rng = np.random.default_rng(alphabet)
    probabilities = rows_of(kind, alphabet, rng)
    symbols = rng.integers(0, alphabet, ROWS)
    # The ends of the alphabet, likely or not, are where cumulative sums round.
    symbols[:40], symbols[40:80] = alphabet - 1, 0
    encoder, stream = encoded((symbols, probabilities))
    assert np.array_equal(RangeDecoder(stream).decode(probabilities), symbols)
    assert np.isfinite(encoder.ideal_bits)
    assert abs(8 * len(stream) - encoder.quantised_bits) <= 64 + 2e-4 * encoder.quantised_bits


@pytest.mark.parametrize("alphabet", [3, 16, 256, 257, 300, 4096])
@pytest.mark.parametrize("kind", ["smooth", "one-hot", "half zero", "vanishing"])
def test_intervals_of_known_symbols_make_the_stream_of_their_tables(alphabet, kind):
    rng = np.random.default_rng(alphabet)
    table = rows_of(kind, alphabet, rng).reshape(4, 50, alphabet)
    symbols, active = rng.integers(0, alphabet, (4, 50)), rng.random((50, 4)) < 0.8
    symbols[:, :10], symbols[:, 10:20] = 0, alphabet - 1
    known, encoder, plain = Known.empty(50, 4, alphabet), RangeEncoder(), RangeEncoder()
    for part in (slice(0, 1), slice(1, 33), slice(33, 50)):
        known.keep(slice(2, 4), part, symbols[2:4, part], table[2:4, part])
        known.keep(slice(0, 2), part, symbols[:2, part], table[:2, part])
    encoder.encode_known(known, active)
    for position, lanes in enumerate(active):
        plain.encode(symbols[lanes, position], table[lanes, position])
    assert encoder.stream() == plain.stream()
    assert encoder.quantised_bits == plain.quantised_bits
    assert encoder.ideal_bits == pytest.approx(plain.ideal_bits, rel=1e-12)


@pytest.mark.parametrize("alphabet", [2, 16, 179, 256])
def test_a_last_symbol_that_rounds_away_can_be_coded(alphabet):
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.full(alphabet, 0.3), 2000).astype(np.float32)
    probabilities *= rng.random((2000, 1), dtype=np.float32)
    probabilities[:, -1] = 1e-12
    symbols = np.full(2000, alphabet - 1)
    _, stream = encoded((symbols, probabilities))
    assert np.array_equal(RangeDecoder(stream).decode(probabilities), symbols)


def test_several_batches_and_empty_ones_share_one_stream():
    rng = np.random.default_rng(1)
    small, large = softmax(rng.normal(size=(50, 256))), softmax(rng.normal(size=(50, 1000)))
    first, second = drawn(rng, small), drawn(rng, large)
    nothing = (np.zeros(0, dtype=np.int64), small[:0])
    _, stream = encoded((first, small), nothing, (second, large))
    decoder = RangeDecoder(stream)
    assert np.array_equal(decoder.decode(small), first)
    assert len(decoder.decode(small[:0])) == 0
    assert np.array_equal(decoder.decode(large), second)
    assert encoded()[1] == b""


def test_the_stream_takes_the_bits_of_its_frequencies():
    rng = np.random.default_rng(2)
    probabilities = softmax(rng.normal(size=(20_000, 256)) * 3)
    encoder, stream = encoded(*((drawn(rng, probabilities), probabilities) for _ in range(25)))
    assert encoder.quantised_bits > 1e6
    assert -64 <= 8 * len(stream) - encoder.quantised_bits <= 2e-4 * encoder.quantised_bits + 64
    assert encoder.quantised_bits == pytest.approx(encoder.ideal_bits, rel=1e-4)


def test_two_digits_cost_less_than_a_thousandth():
    rng = np.random.default_rng(3)
    probabilities = softmax(rng.normal(size=(3000, 4096)) * 2)
    encoder, stream = encoded(*((drawn(rng, probabilities), probabilities) for _ in range(2)))
    assert probabilities.shape[1] > MAX_TABLE
    assert 8 * len(stream) <= 1.001 * encoder.ideal_bits + 64
    assert encoder.quantised_bits == pytest.approx(encoder.ideal_bits, rel=1e-3)


def test_random_bytes_are_not_compressed():
    rng = np.random.default_rng(4)
    symbols = rng.integers(0, 256, 20_000)
    for probabilities in (np.ones((20_000, 256), dtype=np.float32), softmax(rng.normal(size=(20_000, 256)))):
        _, stream = encoded((symbols, probabilities))
        assert 8 * len(stream) >= 8 * len(symbols) - 20


def test_a_stream_that_cannot_be_is_refused():
    probabilities = np.full((1000, 256), 1 / 256, dtype=np.float32)
    with pytest.raises(UsageError, match="data section"):
        RangeDecoder(b"\xff" * 4000).decode(np.tile(np.float32([0.3, 0.3, 0.4]), (8000, 1)))
    with pytest.raises(UsageError, match="data section"):
        RangeDecoder(b"abc")
    with pytest.raises(UsageError, match="data section"):
        RangeDecoder(b"\0" * 8).decode(probabilities * np.float32("nan"))
