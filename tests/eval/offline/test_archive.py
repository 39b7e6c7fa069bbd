"""Archives: what was coded comes back from the file alone, adds up, and nothing hostile gets further than one line."""

import resource
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from eval.offline.archive import read_archive, write_archive
from harness.errors import RunFailure
from tests.support.archives import (
    CHUNK_BYTES,
    RANDOM,
    TEXT,
    flag_bits,
    make_model,
    settings,
    silent,
    write,
)

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
