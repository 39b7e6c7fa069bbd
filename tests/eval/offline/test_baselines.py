"""Other compressors: what is counted decodes, and the settings are the strong ones."""

import bz2
import importlib.util
import lzma
import random
from dataclasses import replace
from pathlib import Path

import pytest

from eval.offline.baselines import BASELINES, measure
from harness.errors import RunFailure

WORDS = ["the", "code", "of", "a", "text", "is", "as", "long", "as", "its", "model", "finds", "it", "surprising", "."]


def prose(num_bytes: int) -> bytes:
    rng = random.Random(7)
    return " ".join(rng.choice(WORDS) + str(rng.randrange(40)) for _ in range(num_bytes // 4)).encode()[:num_bytes]


def wiki_mini() -> bytes:
    """About 150 kB of the wikitext that gensim ships, or nothing where it is not installed."""
    spec = importlib.util.find_spec("gensim")
    if spec is None or spec.origin is None:
        pytest.skip("gensim is not installed")
    name = "enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
    with bz2.open(Path(spec.origin).parent / "test" / "test_data" / name) as file:
        return file.read(150_000)


INPUTS = {
    "empty": b"",
    "one byte": b"\0",
    "text with a tail": prose(5 * 512 + 13),
    "random": random.Random(3).randbytes(3000),
    "a run": b"a" * 40_000,
    "large": prose(150_000),
}


INSTALLED = [baseline for baseline in BASELINES if baseline.is_installed]
TRAINING = prose(60_000)


@pytest.mark.parametrize("baseline", INSTALLED, ids=lambda b: b.name)
@pytest.mark.parametrize("data", INPUTS.values(), ids=INPUTS.keys())
def test_what_is_counted_decodes(baseline, data):
    for training in (b"", TRAINING)[: 1 + baseline.learns]:
        streams = list(baseline.streams(data, training=training))
        assert baseline.decode(b"".join(streams)) == data
        assert measure(data, names=[baseline.name], training=training) == {baseline.name: sum(map(len, streams))}


@pytest.mark.parametrize("baseline", [b for b in INSTALLED if b.convention == "chunk"], ids=lambda b: b.name)
@pytest.mark.parametrize("chunk_bytes", [1, 100, 40_000])
def test_chunks_of_any_size_decode(baseline, chunk_bytes):
    # Beyond 32 kB a decoder of PPMd is called more than once, beyond 4 kB every decoder is.
    data = prose(900) if chunk_bytes < 500 else prose(50_000) + random.Random(4).randbytes(50_000)
    assert measure(data, chunk_bytes, [baseline.name], TRAINING)[baseline.name] > 0


def test_a_dictionary_is_counted_and_pays_for_itself():
    text = prose(100_000)
    (baseline,) = [b for b in BASELINES if b.learns]
    training, held_out = text[:80_000], text[80_000:]
    dictionary, *chunks = baseline.streams(held_out, training=training)
    assert len(chunks) == -(-len(held_out) // 512) and len(dictionary) > 100
    sizes = measure(held_out, names=["zstd_chunk", baseline.name], training=training)
    assert sizes[baseline.name] == len(dictionary) + sum(map(len, chunks)) < 0.9 * sizes["zstd_chunk"]
    # Where it would not, as for text of another kind or for very little, it is left out: one byte says so.
    for data in (random.Random(5).randbytes(20_000), held_out[:512]):
        dictionary, *_ = baseline.streams(data, training=training)
        assert len(dictionary) == 1


def test_without_the_extra_packages_nothing_is_missed(monkeypatch):
    extras = {"bzip3_whole", "zpaq_whole"}
    assert {b.name for b in BASELINES if b.module} == extras
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert measure(b"text" * 40).keys() == {b.name for b in BASELINES} - extras


def test_a_stream_that_does_not_decode_is_no_baseline(monkeypatch):
    broken = replace(BASELINES[0], decode=lambda stream: b"something else")
    monkeypatch.setattr("eval.offline.baselines.BASELINES", (broken,))
    with pytest.raises(RunFailure, match="does not decode"):
        measure(b"text")


@pytest.mark.parametrize("seed", [10, 14, 22])
def test_ppmd_keeps_the_byte_that_one_large_call_loses(seed):
    """pyppmd writes these wrongly when they are fed in one call: a byte is lost after 32 kB of output."""
    assert measure(random.Random(seed).randbytes(33_500), names=["ppmd_whole"])["ppmd_whole"] > 33_500


def test_every_chunk_is_coded_alone():
    """A chunk seen before costs what it cost the first time, a repetition pays only without chunks."""
    block = random.Random(1).randbytes(512)
    once, often = measure(block), measure(block * 20)
    for baseline in INSTALLED:
        # A dictionary, here none, is there once.
        shared = int(baseline.learns)
        repetitions = (often[baseline.name] - shared) / (once[baseline.name] - shared)
        assert repetitions == 20 if baseline.convention == "chunk" else repetitions < 2


def test_the_tail_is_coded():
    assert measure(b"x" * 513)["lzma2_chunk"] > measure(b"x" * 512)["lzma2_chunk"]


def test_small_dictionaries_do_not_change_a_size():
    data = prose(5 * 512)
    chunks = [data[i : i + 512] for i in range(0, len(data), 512)]
    full = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME}]
    sizes = measure(data)
    assert sizes["lzma2_chunk"] == sum(len(lzma.compress(c, format=lzma.FORMAT_RAW, filters=full)) for c in chunks)
    assert sizes["lzma2_chunk_xz"] == sum(len(lzma.compress(c)) for c in chunks)


def test_the_container_of_the_published_convention_costs_56_bytes_a_chunk():
    data = prose(40 * 512)
    sizes = measure(data)
    assert sizes["lzma2_chunk_xz"] - sizes["lzma2_chunk"] == pytest.approx(56 * 40, abs=3 * 40)


def test_wikitext_costs_what_the_programs_are_known_to_need():
    data = wiki_mini()
    bits_per_byte = {name: 8 * size / len(data) for name, size in measure(data).items()}
    whole = ["ppmd_whole", "brotli_whole", "bz2_whole", "lzma2_whole", "zstd_whole"]
    assert min(whole, key=bits_per_byte.get) == "ppmd_whole"
    assert all(2.0 < bits_per_byte[name] < 3.0 for name in whole)
    assert 4.5 < bits_per_byte["lzma2_chunk"] < 6.0
    assert bits_per_byte["zstd_chunk"] < bits_per_byte["lzma2_chunk"] < bits_per_byte["lzma2_chunk_xz"]
    assert 3.5 < bits_per_byte["brotli_chunk"] < bits_per_byte["ppmd_chunk"] < bits_per_byte["zstd_chunk"]


def test_names_and_labels_are_unique():
    assert len({b.name for b in BASELINES}) == len({b.label() for b in BASELINES}) == len(BASELINES) == 13
    assert BASELINES[0].label() == "LZMA2 / 512 B chunk"
    assert BASELINES[0].label(64) == "LZMA2 / 64 B chunk"
