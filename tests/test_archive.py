"""Archives: what was coded comes back from the file alone, adds up, and nothing hostile gets further than one line."""

import resource
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from eval.codec.container import pack_json, pack_sections, read_sections, unpack_json
from eval.offline.archive import QuantisedModel, cache_bytes_per_lane, read_archive, write_archive
from eval.weights.codec import quantise
from harness.config.codes import EvalConfig
from harness.data.tokenizer import ByteTokenizer, TokenizerConfig, train_tokenizer
from harness.errors import RunFailure, UsageError
from harness.model.transformer import ModelConfig, Transformer

CHUNK_BYTES, LANES = 16, 2
TEXT = (b"The chunks of this text are coded side by side, each from its own begin symbol. " * 2)[:150]


def silent(done: int, total: int) -> None:
    """No progress."""


def make_model(tokenizer=None, architecture="modern", context=CHUNK_BYTES, seed=0) -> QuantisedModel:
    """A tiny model whose probabilities are far from flat."""
    tokenizer = tokenizer or ByteTokenizer()
    config = ModelConfig(architecture=architecture, width=16, layers=1, heads=2, context=context)
    rng = np.random.default_rng(seed)
    weights = {}
    for name, parameter in Transformer(config, tokenizer.vocab_size).named_parameters():
        values = rng.laplace(size=tuple(parameter.shape)).astype(np.float32) * 0.4
        weights[name] = np.where(rng.random(values.shape) < 0.5, values, np.float32(0))
    steps = {name: np.float32(0.05) for name in weights}
    return fitting(QuantisedModel(config, tokenizer, quantise(weights, steps), steps))


def fitting(model: QuantisedModel, text: bytes = TEXT) -> QuantisedModel:
    """The model with symbols of `text` made likely: chunks that a model lengthens would be stored."""
    integers = {name: q.copy() for name, q in model.integers.items()}
    for name, q in integers.items():
        if name.endswith(("qkv.weight", "up.weight")):
            q[:, 0] = 0
        elif name in ("norm.weight", "norm.bias"):
            q //= 4
            q[0] = 20 if name == "norm.weight" else 0
    integers["embed.weight"][:, 0] = 240
    integers["head.weight"][np.unique(model.tokenizer.encode(text)), 0] += 40
    return replace(model, integers=integers)


def settings(blocks=100, chunk_bytes=CHUNK_BYTES, lanes=LANES) -> EvalConfig:
    """Settings with memory for at most so many blocks of a model made by `make_model`."""
    per_lane = cache_bytes_per_lane(make_model().config, chunk_bytes, "float")
    return EvalConfig(chunk_bytes=chunk_bytes, lanes=lanes, max_cache_bytes=blocks * lanes * per_lane)


def write(path: Path, text: bytes, model=None, config=None, threads=1):
    return write_archive(path, text, model or make_model(), config or settings(), threads, silent)


@pytest.fixture(scope="module")
def sentencepiece():
    """A tokenizer of 300 symbols."""
    config = TokenizerConfig(kind="sentencepiece", vocab_size=300)
    return train_tokenizer(config, iter([TEXT, b"another document, with other words in it"]))


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> bytes:
    """A file that holds TEXT in several waves of two blocks."""
    path = tmp_path_factory.mktemp("archive") / "a.cl"
    write(path, TEXT, config=settings(blocks=2))
    return path.read_bytes()


def repacked(archive: bytes, path: Path, change) -> Path:
    """`archive` at `path`, rightly signed, after `change(head, sections)`."""
    path.write_bytes(archive)
    sections = read_sections(path)
    head = unpack_json(sections["HEAD"], path)
    change(head, sections)
    sections["HEAD"] = pack_json(head)
    path.write_bytes(pack_sections(sections))
    return path


def refusal(path: Path) -> str:
    """The one line, naming the file, with which reading it is refused."""
    with pytest.raises(UsageError) as caught:
        read_archive(path, 1, silent)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert message.isprintable()
    return message


def flag_bits(num_chunks: int) -> float:
    """What it takes to say that none of so many chunks is stored."""
    return float(np.log2((np.arange(num_chunks) + 1) / (np.arange(num_chunks) + 0.5)).sum())


RANDOM = np.random.default_rng(9).bytes(100)
TEXTS = {
    "empty": b"",
    "one byte": b"\0",
    "last byte value": b"\xff",
    "one chunk": TEXT[:CHUNK_BYTES],
    "one chunk and a byte": TEXT[: CHUNK_BYTES + 1],
    "several waves": TEXT,
    "bytes that are no text": b"\xff\xfe\0 \xe2\x96\x81 \xe2\x96 \r\n" * 8,
}


@pytest.mark.parametrize(
    ("kind", "name"),
    [*product(["bytes", "sentencepiece"], TEXTS), ("published", "empty"), ("published", "several waves")],
)
def test_a_text_comes_back(tmp_path, name, kind, sentencepiece):
    model = make_model(
        tokenizer=sentencepiece if kind == "sentencepiece" else None,
        architecture="published" if kind == "published" else "modern",
    )
    path = tmp_path / "a.cl"
    report = write(path, TEXTS[name], model, settings(blocks=2))
    assert read_archive(path, 1, silent) == TEXTS[name]
    assert [file.name for file in tmp_path.iterdir()] == ["a.cl"]
    parts = report.header_bytes + report.model_bytes + report.tokenizer_bytes + report.data_bytes
    assert parts + report.checksum_bytes == report.total_bytes == path.stat().st_size
    assert (report.tokenizer_bytes > 0) == (kind == "sentencepiece")
    assert (report.data_bytes > 0) == bool(TEXTS[name])


@pytest.mark.parametrize("length", [512, 513])
def test_full_chunks_of_512_bytes_come_back(tmp_path, length):
    path, text = tmp_path / "a.cl", (TEXT * 4)[:length]
    write(path, text, make_model(context=512), settings(chunk_bytes=512))
    assert read_archive(path, 1, silent) == text


def test_the_same_file_and_text_whatever_the_threads(tmp_path):
    files = []
    for threads in (1, 2, 3):
        path = tmp_path / f"{threads}.cl"
        write(path, TEXT + RANDOM, config=settings(blocks=7), threads=threads)
        files.append(path.read_bytes())
    assert files[0] == files[1] == files[2]
    for threads in (1, 2, 3):
        assert read_archive(path, threads, silent) == TEXT + RANDOM


def test_the_data_take_the_loss_of_the_rebuilt_model_first_bytes_included(tmp_path):
    model = make_model()
    report = write(tmp_path / "a.cl", TEXT, model)
    nats_sum = 0.0
    with torch.no_grad():
        for start in range(0, len(TEXT), CHUNK_BYTES):
            chunk = torch.tensor(list(TEXT[start : start + CHUNK_BYTES]))
            logits = model.transformer().eval()(chunk[None])[0]
            nats_sum += F.cross_entropy(logits.double(), chunk, reduction="sum").item()
    assert report.ideal_data_bits - flag_bits(10) == pytest.approx(nats_sum / np.log(2), rel=1e-5)
    assert report.quantised_data_bits == pytest.approx(report.ideal_data_bits, rel=1e-3)
    assert -64 <= 8 * report.data_bytes - report.quantised_data_bits <= 2e-4 * report.quantised_data_bits + 64


def test_chunks_are_coded_independently_of_each_other(tmp_path, sentencepiece):
    model = make_model(sentencepiece)

    def bits(text):
        report = write(tmp_path / "a.cl", text, model)
        return report.quantised_data_bits - flag_bits(-(-len(text) // CHUNK_BYTES))

    first, second, other = (TEXT[at : at + CHUNK_BYTES] for at in (0, CHUNK_BYTES, 3 * CHUNK_BYTES))
    assert bits(first) != pytest.approx(bits(other), rel=1e-3)
    assert bits(first + second) == pytest.approx(bits(first) + bits(second), rel=1e-6)
    assert bits(other + second) == pytest.approx(bits(other) + bits(second), rel=1e-6)


@pytest.mark.parametrize("kind", ["bytes", "sentencepiece"])
def test_what_the_model_lengthens_is_stored(tmp_path, kind, sentencepiece):
    path, noise = tmp_path / "a.cl", np.random.default_rng(1).bytes(40 * CHUNK_BYTES + 5)
    model, config = make_model(sentencepiece if kind == "sentencepiece" else None), settings(blocks=2)
    # All of it: a flag for all chunks together, and a word or two of the coder's own.
    report = write(path, noise, model, config)
    assert read_archive(path, 1, silent) == noise
    assert len(noise) <= report.data_bytes <= len(noise) + 8
    # Some of it, between chunks that are not: at most a flag each, and the others as long as alone.
    mixed = b"".join(
        TEXT[:CHUNK_BYTES] + noise[at : at + CHUNK_BYTES] for at in range(0, 10 * CHUNK_BYTES, CHUNK_BYTES)
    )
    alone = write(path, TEXT[:CHUNK_BYTES] * 10, model, config).quantised_data_bits - flag_bits(10)
    report = write(path, mixed, model, config)
    assert read_archive(path, 1, silent) == mixed
    assert report.quantised_data_bits <= alone + 8 * 10 * CHUNK_BYTES + 20 + 3


def test_progress_ends_at_the_whole_text(tmp_path):
    seen = []
    path = tmp_path / "a.cl"
    config = settings(blocks=2)
    for least, work in (
        (3, lambda report: write_archive(path, TEXT, make_model(), config, 1, report)),
        (10, lambda report: read_archive(path, 1, report)),
    ):
        seen.clear()
        work(lambda done, total: seen.append((done, total)))
        done = [pair[0] for pair in seen]
        assert done == sorted(done)
        assert seen[-1] == (len(TEXT), len(TEXT))
        # A writer reads each block of a wave at once, a reader a position of it at a time.
        assert len(set(done)) >= least


def test_a_file_that_cannot_be_written_leaves_the_earlier_one(tmp_path):
    path = tmp_path / "a.cl"
    path.write_bytes(b"earlier")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(RunFailure, match="not written"):
            write(path, TEXT)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == b"earlier"
    assert [file.name for file in tmp_path.iterdir()] == ["a.cl"]
    with pytest.raises(RunFailure, match="not written"):
        write(tmp_path / "missing" / "a.cl", TEXT)


def test_a_model_with_the_smallest_probabilities_codes_any_bytes(tmp_path):
    # Weights 40 times as large make probabilities that underflow in float32.
    model = make_model()
    model = replace(model, steps={name: np.float32(40 * step) for name, step in model.steps.items()})
    path = tmp_path / "a.cl"
    report = write(path, RANDOM + b"\xff" * 50, model)
    assert read_archive(path, 1, silent) == RANDOM + b"\xff" * 50
    assert np.isfinite([report.ideal_data_bits, report.quantised_data_bits]).all()
    # No byte costs more than the 24 bits of the coder's tables.
    assert report.data_bytes <= 3 * (len(RANDOM) + 50) + 8
