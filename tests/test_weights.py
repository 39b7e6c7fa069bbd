"""The weights section: exact, small, and refused where it is not what an encoder makes."""

import lzma

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from eval.weights import LARGEST_MAGNITUDE, decode_weights, encode_weights, quantise, rebuild
from harness.errors import UsageError

MEASURED_SHAPE = (512, 1024)
DRAWS = {
    "laplace": lambda rng: rng.laplace(size=MEASURED_SHAPE),
    "gaussian": lambda rng: rng.normal(size=MEASURED_SHAPE),
}


def sparse_weights(kind, share_of_zeros):
    """Float32 weights, the smallest of them zero."""
    weights = DRAWS[kind](np.random.default_rng(0)).astype(np.float32)
    weights[np.abs(weights) < np.quantile(np.abs(weights), share_of_zeros)] = 0
    return weights


@st.composite
def tensors(draw):
    """Integers of any density, with dead rows and columns and now and then a huge value."""
    shape = draw(
        st.sampled_from([(1,), (7,), (300,), (1, 1), (1, 40), (40, 1), (3, 5), (30, 17), (65, 128), (2, 3, 4)])
    )
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    density = draw(st.sampled_from([0.0, 0.01, 0.1, 0.5, 0.9, 1.0]))
    spread = draw(st.sampled_from([0.6, 3.0, 40.0, 1e5]))
    values = np.clip(np.rint(rng.laplace(size=shape) * spread), -LARGEST_MAGNITUDE, LARGEST_MAGNITUDE).astype(np.int64)
    values[rng.random(shape) > density] = 0
    if draw(st.booleans()):
        values[rng.random(shape[0]) < 0.5] = 0
        values[..., rng.random(shape[-1]) < 0.5] = 0
    if draw(st.booleans()):
        values.flat[rng.integers(values.size)] = draw(
            st.sampled_from([-LARGEST_MAGNITUDE, LARGEST_MAGNITUDE, -15, 16, 31, 32, 2**19 - 1])
        )
    return values


positive_float32 = st.floats(width=32, min_value=np.float32(1e-38), max_value=np.float32(1e30))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(tensors(), positive_float32), max_size=4))
@example([])
@example([(np.zeros((1, 1), dtype=np.int64), 1.0)])
@example([(np.full((4, 4), -LARGEST_MAGNITUDE), 1.0), (np.full(3, LARGEST_MAGNITUDE), 2.0**-20)])
def test_integers_and_steps_come_back_exactly(listed):
    integers = {f"tensor {index}": values.copy() for index, (values, _) in enumerate(listed)}
    steps = {name: np.float32(step) for name, (_, step) in zip(integers, listed, strict=True)}
    payload = encode_weights(integers, steps)
    for (values, _), unchanged in zip(listed, integers.values(), strict=True):
        assert np.array_equal(values, unchanged)
    decoded, grid = decode_weights(payload, {name: values.shape for name, values in integers.items()})
    assert list(decoded) == list(integers)
    assert all(np.array_equal(decoded[name], integers[name]) for name in integers)
    assert grid == steps
    assert all(np.asarray(step).dtype == np.float32 for step in grid.values())


def test_rebuilt_weights_are_within_half_a_step_and_zeros_stay_zero():
    weights = {"w": sparse_weights("laplace", 0.5)}
    steps = {"w": np.float32(0.1)}
    rebuilt = rebuild(quantise(weights, steps), steps)["w"]
    assert rebuilt.dtype == np.float32
    assert np.abs(rebuilt - weights["w"]).max() <= 0.05 + 1e-6
    assert not rebuilt[weights["w"] == 0].any()


@pytest.mark.parametrize("kind", DRAWS)
def test_a_nonzero_weight_takes_at_most_ten_bits_at_ninety_percent_zeros(kind):
    weights = {"w": sparse_weights(kind, 0.9)}
    steps = {"w": np.float32(DRAWS[kind](np.random.default_rng(0)).std() / 4)}
    integers = quantise(weights, steps)
    payload = encode_weights(integers, steps)
    assert len(payload) <= 1.3 * np.count_nonzero(integers["w"])


def test_the_section_is_smaller_than_int8_with_xz():
    weights = {"w": sparse_weights("laplace", 0.9)}
    steps = {"w": np.float32(np.abs(weights["w"]).max() / 127)}
    integers = quantise(weights, steps)
    int8 = integers["w"].astype(np.int8)
    assert np.array_equal(int8, integers["w"])
    dense = lzma.compress(int8.tobytes(), preset=9 | lzma.PRESET_EXTREME)
    assert len(encode_weights(integers, steps)) < 0.9 * len(dense)


def test_positions_of_dead_rows_and_columns_are_nearly_free():
    rng = np.random.default_rng(5)
    scattered = np.where(rng.random((256, 256)) < 0.25, 1, 0)
    gathered = np.zeros((256, 256), dtype=np.int64)
    gathered[::2, ::2] = 1

    def position_bytes(integers):
        return len(encode_weights({"w": integers}, {"w": np.float32(1)})) - np.count_nonzero(integers) / 8

    assert position_bytes(gathered) < 0.2 * position_bytes(scattered)


def test_a_finer_grid_costs_one_bit_per_octave_and_nonzero():
    weights = {"w": sparse_weights("laplace", 0.9)}
    lengths = []
    for log2_step in (-2, -4, -6, -8):
        steps = {"w": np.float32(2.0**log2_step)}
        integers = quantise(weights, steps)
        lengths.append(8 * len(encode_weights(integers, steps)) / np.count_nonzero(integers["w"]))
    assert all(1.9 < bits < 2.2 for bits in np.diff(lengths))


def outcome(payload, shapes):
    """The decoded integers, or None where the payload is refused."""
    try:
        return decode_weights(payload, shapes)[0]
    except UsageError as error:
        assert str(error).startswith("weights section: ")
        return None


@pytest.mark.parametrize("shape", [(20, 64), (5,)])
def test_a_payload_of_another_length_is_refused(shape):
    rng = np.random.default_rng(6)
    payload = encode_weights({"w": np.rint(rng.laplace(size=shape) * 2).astype(np.int64)}, {"w": np.float32(0.5)})
    for length in range(len(payload)):
        assert outcome(payload[:length], {"w": shape}) is None
    for tail in (b"\0", b"\0" * 8, b"\xff" * 8):
        assert outcome(payload + tail, {"w": shape}) is None


def test_bad_steps_and_noise_are_refused():
    rng = np.random.default_rng(7)
    shape = (20, 64)
    payload = encode_weights({"w": np.rint(rng.laplace(size=shape) * 2).astype(np.int64)}, {"w": np.float32(0.5)})
    for step in (0, -1, np.nan, np.inf):
        assert outcome(np.float32(step).tobytes() + payload[4:], {"w": shape}) is None
    for _ in range(150):
        assert outcome(payload[:4] + rng.bytes(4 * int(rng.integers(0, 40))), {"w": shape}) is None
    # A changed sign is a valid stream; nothing else than integers or a refusal may come of any change.
    for at in range(4, len(payload), 3):
        outcome(payload[:at] + bytes([payload[at] ^ 0x55]) + payload[at + 1 :], {"w": shape})


def test_a_payload_for_other_shapes_is_refused():
    payload = encode_weights({"w": np.arange(24).reshape(4, 6)}, {"w": np.float32(1)})
    for shapes in ({}, {"w": (6, 4)}, {"w": (4, 7)}, {"w": (4, 6), "v": (1,)}):
        assert outcome(payload, shapes) is None
