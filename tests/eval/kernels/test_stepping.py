"""Both stepping models: the same bits however many tokens, lanes and threads, and files that stay as they are."""

import hashlib
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch

from eval.codec.container import read_sections
from eval.codec.range_coder import RangeEncoder
from eval.kernels.float_steps import power_of_e
from eval.kernels.products import Matrix, Room
from eval.kernels.vectors import WIDTH, load, store
from eval.offline.archive import QuantisedModel, write_archive
from eval.offline.chunks import encode_chunks
from eval.predict.devices import choose_devices
from eval.predict.float_torch import TorchFloatModel
from eval.predict.predictor import Predictor
from harness.config.codes import PREDICTORS, EvalConfig
from harness.errors import UsageError
from harness.machine.jit import unlocked
from tests.support import archives
from tests.support.archives import RANDOM, TEXT, refusal, repacked, silent
from tests.support.portable import (
    ARCHITECTURES,
    CHUNK_BYTES,
    EXTREMES,
    SETTINGS,
    extreme_model,
    make_model,
    plain_model,
)

LENGTH = 24


def sparse(model: QuantisedModel) -> QuantisedModel:
    """The model with three of ten weights."""
    rng = np.random.default_rng(3)
    kept = {name: q * (rng.random(q.shape) < 0.3) for name, q in model.integers.items()}
    return replace(model, integers=kept)


MODELS = {
    "dense": make_model,
    "sparse": lambda architecture: sparse(make_model(architecture)),
}
CASES = [*product(PREDICTORS, ARCHITECTURES, MODELS)]


def rows_of(predictor: Predictor, tokens: np.ndarray) -> np.ndarray:
    """What a predictor says of `tokens` (lanes, length), token by token: (lanes, length, vocabulary)."""
    predictor.start()
    inputs = np.pad(tokens[:, :-1], ((0, 0), (1, 0)), constant_values=predictor.model.begin)
    return np.stack([predictor.step(column) for column in inputs.T], axis=1)


def some_tokens(lanes: int, length: int = LENGTH) -> np.ndarray:
    return np.random.default_rng(4).integers(0, 256, (lanes, length))


@pytest.mark.parametrize(("predictor", "architecture", "kind"), CASES)
def test_reading_gives_the_bits_of_stepping(monkeypatch, predictor, architecture, kind):
    stepping, tokens = MODELS[kind](architecture).stepping(predictor, LENGTH), some_tokens(37)
    wanted = rows_of(Predictor(stepping, 20, 2, LENGTH, 1), tokens)
    # Five positions at a time: the last part is shorter.
    monkeypatch.setattr("eval.predict.predictor._MAX_NUMBERS", 5 * 32 * 256)
    for threads in (1, 2):
        found = np.zeros_like(wanted)
        parts = []

        def keep(lanes, positions, rows, found=found, parts=parts):
            found[lanes, positions] = rows
            parts.append(rows.shape[1])

        Predictor(stepping, 20, 2, LENGTH, threads).read(tokens, keep)
        assert np.array_equal(found, wanted)
        assert sorted(set(parts)) == [4, 5]


@pytest.mark.parametrize(("predictor", "architecture", "kind"), CASES)
def test_threads_change_no_bit(predictor, architecture, kind):
    stepping, tokens = MODELS[kind](architecture).stepping(predictor, LENGTH), some_tokens(100)
    one, two = (rows_of(Predictor(stepping, 30, 4, LENGTH, threads), tokens) for threads in (1, 2))
    assert np.array_equal(one, two)


@pytest.mark.parametrize(("predictor", "architecture"), [*product(PREDICTORS, ARCHITECTURES)])
def test_other_lanes_change_no_bit_where_no_product_is_torchs(predictor, architecture):
    stepping, tokens = MODELS["sparse"](architecture).stepping(predictor, LENGTH), some_tokens(90)
    wanted = rows_of(Predictor(stepping, 90, 1, LENGTH, 1), tokens)
    assert np.array_equal(rows_of(Predictor(stepping, 16, 6, LENGTH, 1), tokens), wanted)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_gpus_compute_with_gives_the_same_integers_and_nearly_the_same_floats(architecture):
    model, tokens = make_model(architecture), some_tokens(40)
    compiled = model.stepping("portable", LENGTH)
    wanted = rows_of(Predictor(compiled, 16, 3, LENGTH, 1), tokens)
    # Blocks in turn on two devices, as far as integers tell.
    mixed = Predictor(plain_model(model, LENGTH).to("cpu"), 16, 3, LENGTH, 2, others=[compiled])
    assert np.array_equal(rows_of(mixed, tokens), wanted)
    found = np.zeros_like(wanted)
    mixed.read(tokens, lambda lanes, positions, rows: found.__setitem__((lanes, positions), rows))
    assert np.array_equal(found, wanted)
    weights = list(model.transformer().named_parameters())
    floats = TorchFloatModel(model.config, 256, weights, "cpu")
    found = rows_of(Predictor(floats, 16, 3, LENGTH, 1), tokens)
    compiled = rows_of(Predictor(model.stepping("float", LENGTH), 16, 3, LENGTH, 1), tokens)
    np.testing.assert_allclose(found, compiled, rtol=2e-3, atol=1e-6)


def test_a_device_that_is_not_there_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    path, model = tmp_path / "a.cl", archives.make_model()
    with pytest.raises(UsageError, match=r"eval\.device=cuda: this machine has no GPU"):
        archives.write(path, TEXT, model, replace(archives.settings(), device="cuda"))
    assert EvalConfig(device="tpu").problems() == ["eval.device=tpu: unknown; use one of auto, cpu, cuda"]
    archives.write(path, TEXT, model)
    foreign = repacked(path.read_bytes(), path, lambda head, _: head["environment"].update(device="Abacus 9"))
    assert "device Abacus 9; here is no GPU" in refusal(foreign)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_devices("auto", 10**9) == choose_devices("cuda", 1) == ["cuda:0", "cuda:1"]
    assert choose_devices("auto", 10**6) == choose_devices("cpu", 10**9) == ["cpu"]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 1.0])
def test_products_are_those_of_matrices(dtype, share):
    rng = np.random.default_rng(0)
    matrix = (rng.normal(size=(30, 20)) * (rng.random((30, 20)) < share)).astype(dtype)
    for lanes in (16, 64, 144):
        x = rng.normal(size=(3, 20, lanes)).astype(dtype)
        wanted = np.matmul(matrix.astype(np.float64), x.astype(np.float64))
        np.testing.assert_allclose(Matrix(matrix).times(x, Room()), wanted, rtol=1e-5, atol=1e-5)


@unlocked
def exponentials(x, y):
    for at in range(0, len(x), WIDTH):
        store(power_of_e(load(np.float32(0), x, at)), y, at)


def test_powers_of_e_are_right_to_the_last_bits():
    x = np.concatenate([np.linspace(-87, 0, 99_984), [-np.inf, -200, -88, -87, -1e-30, 0, *[-1] * 10]]).astype(
        np.float32
    )
    found = np.empty_like(x)
    exponentials(x, found)
    wanted = np.exp(np.maximum(x, -87).astype(np.float64))
    assert np.abs(found / wanted - 1).max() < 1.5e-7
    assert found[-11] == 1


@pytest.mark.parametrize(("architecture", "kind"), [*product(ARCHITECTURES, EXTREMES)])
@pytest.mark.parametrize("length", [40, 1025])
def test_compiled_integers_are_those_of_plain_operations(architecture, kind, length):
    model = extreme_model(architecture, kind, width=16 if length > 40 else 32, context=1025)
    plain, compiled = plain_model(model, length), model.stepping("portable", length)
    tokens = np.random.default_rng(2).integers(0, 256, (16, 40))
    tokens[0] = 7
    with torch.no_grad():
        wanted = plain.step(tokens, plain.new_cache(16, length))
    cache = compiled.new_cache(16, length)
    # Several tokens at a time or one make no difference.
    parts = [compiled.step(np.ascontiguousarray(part), cache) for part in np.split(tokens, [1, 2, 7, 30], axis=1)]
    assert np.array_equal(np.concatenate(parts, axis=1), wanted)
    assert cache.layers[0][0].dtype == (np.int16 if architecture != "published" and length == 40 else np.float32)


FILES = {
    ("modern", 16): "08709c42b4bc988cb9b79719234a199df43c3831055c1288e240af2846d8bc67",
    ("modern", 1100): "a54e095e42d3592a843b0ac349d43dfc41e251c06f3d5a102b99c0061852072e",
    ("published", 16): "42560fac6ce90127a82d188ead370331e3ebf1c18b92674669ed3e4ba06df273",
    ("published", 1100): "8b7a905d5611001f10d839f03e54303a1053a613cac44a200eaf672c9fc2435b",
}


@pytest.mark.parametrize(("architecture", "chunk_bytes"), FILES)
def test_weights_and_text_of_files_stay_as_they_are(tmp_path, architecture, chunk_bytes):
    path = tmp_path / "a.cl"
    if chunk_bytes == CHUNK_BYTES:
        text, model, lanes = TEXT + RANDOM, archives.fitting(make_model(architecture), TEXT), 3
    else:
        # Longer than float32 attention, and a short last chunk.
        model = archives.fitting(make_model(architecture, width=16, context=chunk_bytes), TEXT)
        text, lanes = (TEXT * 9)[: chunk_bytes + 31], 2
    write_archive(path, text, model, replace(SETTINGS, chunk_bytes=chunk_bytes, lanes=lanes), 2, silent)
    sections = read_sections(path)
    assert hashlib.sha256(sections["MODL"] + sections["DATA"]).hexdigest() == FILES[architecture, chunk_bytes]


@pytest.mark.parametrize("predictor", PREDICTORS)
@pytest.mark.parametrize("kind", [*ARCHITECTURES, "sentencepiece"])
def test_the_stream_is_that_of_position_by_position(kind, predictor, sentencepiece):
    words = kind == "sentencepiece"
    model = archives.fitting(make_model("modern" if words else kind, sentencepiece if words else None), TEXT)
    # Three waves; the last one has a short chunk.
    text = (TEXT * 2)[: 5 * CHUNK_BYTES * 2 + CHUNK_BYTES + 3]
    stepping = Predictor(model.stepping(predictor, CHUNK_BYTES), 3, 2, CHUNK_BYTES, 2)
    whole, single, flags = RangeEncoder(), RangeEncoder(), np.array([[0.5, 0.5]])
    encode_chunks(text, CHUNK_BYTES, model.tokenizer, stepping, whole, silent)
    for start in range(0, len(text), 6 * CHUNK_BYTES):
        wave = text[start : start + 6 * CHUNK_BYTES]
        texts = [wave[at : at + CHUNK_BYTES] for at in range(0, len(wave), CHUNK_BYTES)]
        chunks = [model.tokenizer.encode(chunk) for chunk in texts]
        stepping.start()
        previous, columns = np.full(len(chunks), stepping.model.begin), []
        for position in range(max(map(len, chunks))):
            rows = stepping.step(previous)
            previous = np.array([chunk[position] if len(chunk) > position else 0 for chunk in chunks])
            columns.append((previous, rows))
        stored = []
        for row, chunk in enumerate(chunks):
            alone = RangeEncoder()
            for symbols, rows in columns[: len(chunk)]:
                alone.encode(symbols[row : row + 1], rows[row : row + 1])
            stored.append(alone.quantised_bits > 8 * len(texts[row]))
            single.encode(np.array([stored[-1]], dtype=np.int64), flags)
            flags[0, int(stored[-1])] += 1
        for row in np.flatnonzero(stored):
            single.encode_bytes(texts[row])
        for position, (symbols, rows) in enumerate(columns):
            active = np.array([len(chunk) > position for chunk in chunks]) & ~np.array(stored)
            single.encode(symbols[active], rows[active])
    assert whole.stream() == single.stream()
    assert whole.quantised_bits == pytest.approx(single.quantised_bits, rel=1e-12)
    assert whole.ideal_bits == pytest.approx(single.ideal_bits, rel=1e-12 if predictor == "float" else 0)


def test_16_bits_of_keys_and_values_cost_next_to_nothing(tmp_path):
    model = archives.make_model(context=512)
    text = (TEXT * 4)[:512]
    report = write_archive(tmp_path / "a.cl", text, model, archives.settings(chunk_bytes=512), 1, silent)
    with torch.no_grad():
        logits = model.transformer().double()(torch.tensor(list(text))[None])[0]
    bits = torch.nn.functional.cross_entropy(logits, torch.tensor(list(text)), reduction="sum").item() / np.log(2)
    assert report.ideal_data_bits - archives.flag_bits(1) == pytest.approx(bits, rel=1e-6)
