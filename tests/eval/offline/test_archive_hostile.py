"""Archives that are damaged, foreign or made to mislead: a line each, before anything is allocated."""

import resource
import time

import numpy as np
import pytest
import torch

from eval.codec.container import pack_sections, read_sections
from eval.offline.archive import read_archive
from harness.errors import UsageError
from tests.support.archives import (
    CHUNK_BYTES,
    TEXT,
    make_model,
    refusal,
    repacked,
    settings,
    silent,
    write,
)


def test_damaged_and_foreign_files_are_refused(tmp_path, archive):
    path = tmp_path / "a.cl"
    rng = np.random.default_rng(0)
    for at in [0, 9, 11, 15, *rng.integers(0, len(archive), 40), len(archive) - 1]:
        path.write_bytes(archive[:at] + bytes([archive[at] ^ 1 << int(rng.integers(8))]) + archive[at + 1 :])
        refusal(path)
        path.write_bytes(archive[:at])
        refusal(path)
    path.write_bytes(pack_sections({"HEAD": b"", "PART": b""}))
    refusal(path)


def test_other_arithmetic_is_refused_with_both_environments(tmp_path, archive):
    def other_machine(head, sections):
        head["predictor_sha256"] = "0" * 64
        head["environment"] = {"torch": "1.2.3", "cpu": "ABACUS\n\x1b[31m"}

    message = refusal(repacked(archive, tmp_path / "a.cl", other_machine))
    assert "torch 1.2.3, cpu ABACUS[31m" in message
    assert f"here torch {torch.__version__}, numpy {np.__version__}, constriction " in message


def test_other_weights_or_other_data_are_refused(tmp_path, archive):
    other_path = tmp_path / "other.cl"
    write(other_path, TEXT, make_model(seed=1), settings(blocks=2))
    other = read_sections(other_path)
    noise = np.random.default_rng(3).bytes(400)
    changes = {
        "weights of another model": lambda head, s: s.update(MODL=other["MODL"]),
        "no weights": lambda head, s: s.update(MODL=b""),
        "weights cut": lambda head, s: s.update(MODL=s["MODL"][:-8]),
        "weights of noise": lambda head, s: s.update(MODL=s["MODL"][: 4 * 14] + noise),
        "steps of noise": lambda head, s: s.update(MODL=b"\xff" * 56 + s["MODL"][56:]),
        "huge steps": lambda head, s: s.update(MODL=np.full(10, 3e38, "<f4").tobytes() + s["MODL"][40:]),
        "data of another model": lambda head, s: s.update(DATA=other["DATA"]),
        "no data": lambda head, s: s.update(DATA=b""),
        "data cut": lambda head, s: s.update(DATA=s["DATA"][:-8]),
        "data of an odd length": lambda head, s: s.update(DATA=s["DATA"][:-1]),
        "data of noise": lambda head, s: s.update(DATA=noise),
        "data of ones": lambda head, s: s.update(DATA=b"\xff" * 400),
        "data and a word": lambda head, s: s.update(DATA=s["DATA"] + bytes(4)),
        "data and much more": lambda head, s: s.update(DATA=s["DATA"] + noise * 3),
        "data of a longer text": lambda head, s: head.update(raw_bytes=head["raw_bytes"] - 1),
        "data of a shorter text": lambda head, s: head.update(raw_bytes=head["raw_bytes"] + 1),
        "a tokenizer too many": lambda head, s: s.update(TOKN=b"abc"),
    }
    for name, change in changes.items():
        message = refusal(repacked(archive, tmp_path / "a.cl", change))
        # Not the machine is to blame, and nobody waits for the end of a text that is not there.
        assert "this machine" not in message or name == "weights of another model", message


HOSTILE = {
    "width": [0, -16, 3, 10**5, 10**9, 2**70, 16.0, "16", None, [16], True],
    "layers": [0, -1, 10**5, 10**9, 1.5, "2", None],
    "heads": [0, -2, 3, 10**9, 2.0, None],
    "context": [0, -1, CHUNK_BYTES - 1, 10**400, 32.0, None],
    "architecture": ["", "unknown\nlines", 1, None, ["modern"]],
    "raw_bytes": [-1, 10**12, 10**30, 333.0, "333", None, True, float("inf"), float("nan")],
    "chunk_bytes": [0, -32, CHUNK_BYTES + 1, 10**12, "32", None],
    "lanes": [0, -2, 10**9, 10**12, 2.0, None],
    "blocks": [0, -2, 10**9, 10**12, 2.0, None],
    "predictor": ["", "words\nand lines", "Float", None, 1, ["float"]],
    "tokenizer": ["", "words\nand lines", "sentencepiece", None, 1],
    "sha256": [None, 1, "", "0" * 64],
    "predictor_sha256": [None, 1, ""],
    "environment": [None, 1, "text", []],
    "model": [None, 1, "text", [], {}, {"width": 16}],
}


@pytest.mark.parametrize("key", HOSTILE)
def test_hostile_headers_are_refused_before_anything_is_allocated(tmp_path, archive, key):
    def place(head):
        return head["model"] if key in head["model"] else head

    def without(head, sections):
        del place(head)[key]

    kib_before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    refusal(repacked(archive, tmp_path / "a.cl", without))
    for value in HOSTILE[key]:
        refusal(repacked(archive, tmp_path / "a.cl", lambda head, _, value=value: place(head).update({key: value})))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - kib_before < 100_000
    assert time.monotonic() - start < 10


def test_a_context_that_no_chunk_needs_costs_nothing(tmp_path, archive):
    def widen(head, _):
        head["model"].update(context=10**11)

    assert read_archive(repacked(archive, tmp_path / "a.cl", widen), 1, silent) == TEXT


MISLEADING = {
    "raw_bytes": 4 * 10**9,
    "layers": 500,
    "blocks": 40,
    "lanes": 4097,
}


@pytest.mark.parametrize("key", MISLEADING)
def test_sizes_that_the_file_cannot_hold_are_refused(tmp_path, archive, key):
    def mislead(head, _):
        (head["model"] if key in head["model"] else head).update({key: MISLEADING[key]})

    assert "malformed header" in refusal(repacked(archive, tmp_path / "a.cl", mislead))


def test_memory_that_is_not_allowed_is_not_taken(tmp_path, archive):
    path = tmp_path / "a.cl"
    path.write_bytes(archive)
    with pytest.raises(UsageError, match=r"max-memory allows 0\.1 GB"):
        read_archive(path, 1, silent, 100_000_000)
    assert read_archive(path, 1, silent, 1_000_000_000) == TEXT


def test_an_unknown_key_of_the_model_is_refused(tmp_path, archive):
    refusal(repacked(archive, tmp_path / "a.cl", lambda head, _: head["model"].update(dropout=0.1)))


def test_an_archive_too_large_for_this_machine_says_so(tmp_path, archive):
    message = refusal(repacked(archive, tmp_path / "a.cl", lambda head, _: head["model"].update(width=10**6)))
    assert "GB of memory to decode" in message
