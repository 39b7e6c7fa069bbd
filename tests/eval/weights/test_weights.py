"""The weights section: exact, small, and refused where it is not what an encoder makes."""

import hashlib
import lzma
import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from eval.weights.codec import LARGEST_MAGNITUDE, decode_weights, encode_weights, quantise, rebuild
from eval.weights.unit_order import largest_first
from harness.errors import UsageError
from harness.model.transformer import ModelConfig, Transformer

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


def section_bytes(**tensors):
    return len(encode_weights(tensors, dict.fromkeys(tensors, np.float32(1))))


def values_of(rng, shape):
    return np.rint(rng.laplace(size=shape) * 2).astype(np.int64)


def spread(dense, rows, columns, shape=(512, 512)):
    """`dense` at the crossings of some rows and columns of a tensor of zeros."""
    integers = np.zeros(shape, dtype=np.int64)
    integers[np.ix_(rows, columns)] = dense
    return integers


def test_dead_rows_and_columns_in_a_block_take_a_few_bytes():
    dense = values_of(np.random.default_rng(5), (256, 256))
    for lines in (slice(0, 256), slice(256, 512), slice(0, 512, 2)):
        lines = np.arange(512)[lines]
        assert section_bytes(w=spread(dense, lines, lines)) <= section_bytes(w=dense) + 8


def test_dead_lines_anywhere_take_a_bit_each():
    rng = np.random.default_rng(5)
    dense = values_of(rng, (256, 256))
    rows, columns = (np.sort(rng.permutation(512)[:256]) for _ in range(2))
    assert section_bytes(w=spread(dense, rows, columns)) <= section_bytes(w=dense) + 1024 / 8 + 16


@pytest.mark.parametrize("share", [0.1, 0.01])
def test_few_dead_lines_take_what_their_positions_hold(share):
    rng = np.random.default_rng(6)
    dense = values_of(rng, (512, 512))
    holed = dense.copy()
    holed[rng.random(512) < share] = 0
    num_live = int(holed.any(axis=1).sum())
    positions = -(share * np.log2(share) + (1 - share) * np.log2(1 - share)) * 512 / 8
    kept = section_bytes(w=holed[holed.any(axis=1)])
    assert num_live < 512
    assert section_bytes(w=holed) <= kept + 1.3 * positions + 8


def test_a_tensor_of_zeros_takes_three_bytes():
    zeros = np.zeros((512, 512), dtype=np.int64)
    assert section_bytes(a=zeros, b=zeros) - section_bytes(a=zeros) <= 4 + 3
    assert section_bytes(a=zeros) <= 4 + 3 + 6


def test_a_unit_that_is_dead_in_one_tensor_costs_nothing_in_the_next():
    rng = np.random.default_rng(7)
    live = np.sort(rng.permutation(512)[:256])
    up = spread(values_of(rng, (256, 64)), live, np.arange(64), (512, 64))
    down = spread(values_of(rng, (64, 256)), np.arange(64), live, (64, 512))
    linked = section_bytes(**{"blocks.0.up.weight": up, "blocks.0.down.weight": down})
    unlinked = section_bytes(first=up, second=down)
    assert linked < unlinked - 512 / 8 * 0.8


def test_scales_of_rows_and_columns_shorten_the_section():
    """Both scales are learnt: the section comes near the entropy that is left when they are known."""
    rng = np.random.default_rng(8)
    scales = np.exp2(rng.normal(size=(512, 1)) + rng.normal(size=(1, 512)) + 2)
    integers = np.rint(rng.normal(size=(512, 512)) * scales).astype(np.int64)
    gaussian_bits = np.log2(scales * np.sqrt(2 * np.pi * np.e) + 1).mean()
    assert 8 * section_bytes(w=integers) / integers.size < 1.05 * gaussian_bits
    assert 8 * section_bytes(w=integers) / integers.size < 0.9 * entropy_bits(integers)


@pytest.mark.parametrize("spread_of_values", [0.3, 2.0, 300.0])
def test_values_without_structure_take_little_more_than_their_entropy(spread_of_values):
    integers = np.rint(np.random.default_rng(9).normal(size=(256, 512)) * spread_of_values).astype(np.int64)
    assert 8 * section_bytes(w=integers) / integers.size < 1.01 * gaussian_entropy(spread_of_values) + 0.01


def entropy_bits(integers):
    """Empirical entropy of single values."""
    share = np.unique(integers, return_counts=True)[1] / integers.size
    return float(-(share * np.log2(share)).sum())


def gaussian_entropy(deviation):
    """Entropy in bits of a rounded Gaussian."""
    reach = int(8 * deviation) + 2
    edges = (np.arange(-reach, reach + 2) - 0.5) / deviation
    chances = np.diff([0.5 * (1 + math.erf(edge / math.sqrt(2))) for edge in edges])
    chances = chances[chances > 0]
    return float(-(chances * np.log2(chances)).sum())


def test_the_stream_is_the_same_on_every_machine():
    """Integer arithmetic alone: these digests hold for any processor."""
    rng = np.random.default_rng(10)
    shapes = {"embed.weight": (20, 16), "blocks.0.qkv.weight": (48, 16), "blocks.0.out.weight": (16, 16), "b": (300,)}
    integers = {name: rng.integers(-4, 5, shape) * rng.integers(-9, 10, shape) // 8 for name, shape in shapes.items()}
    payload = encode_weights(integers, dict.fromkeys(shapes, np.float32(0.5)))
    assert hashlib.sha256(payload).hexdigest()[:16] == "daed37eb7cbe7704"


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
    for last in set(range(0, 256, 5)) - {payload[-1]}:
        assert outcome(payload[:-1] + bytes([last]), {"w": shape}) is None


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


@pytest.mark.parametrize("architecture", ["modern", "published"])
def test_units_in_the_order_of_their_sizes_compute_the_same_in_fewer_bytes(architecture):
    torch.manual_seed(0)
    config = ModelConfig(architecture=architecture, width=32, layers=2, heads=2, context=16)
    model = Transformer(config, 50).eval()
    weights = {}
    for name, p in model.named_parameters():
        weights[name] = np.asarray(torch.randn(p.shape), dtype=np.float32)
        if p.ndim == 2:
            # Units of many sizes, a third of them dead.
            sizes = np.random.default_rng(1).permutation(np.geomspace(0.05, 2, p.shape[0])) * (
                np.arange(len(p)) % 3 > 0
            )
            weights[name] *= sizes[:, None].astype(np.float32)
    ordered = largest_first(weights, config.heads)
    assert any(not np.array_equal(ordered[name], weights[name]) for name in weights)
    tokens = torch.randint(0, 50, (3, 16))
    outputs = []
    for tensors in (weights, ordered):
        model.load_state_dict({name: torch.from_numpy(tensor) for name, tensor in tensors.items()})
        with torch.inference_mode():
            outputs.append(model(tokens).double())
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-3)
    steps = dict.fromkeys(weights, np.float32(0.25))
    shorter, longer = (len(encode_weights(quantise(tensors, steps), steps)) for tensors in (ordered, weights))
    assert shorter < longer
    assert all(np.array_equal(ordered[name], again) for name, again in largest_first(ordered, 2).items())
