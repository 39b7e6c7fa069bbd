"""The text in its order, by a sent model and an adaptive mixture: one file, decoded by a fresh process."""

import json
from pathlib import Path

import numpy as np
import pytest

from eval.adaptive import in_order
from eval.codec.container import read_sections
from eval.offline.archive import read_archive, write_archive
from eval.offline.archive_head import IN_ORDER
from harness.errors import UsageError
from launch.main import main
from tests.support.archives import RANDOM, TEXT, make_model, refusal, repacked, settings, silent
from tests.support.processes import python, result_of

CONTEXT = 32
CONFIG = """
name: run
corpus: {kind: files, path: text.txt, heldout_bytes: 500}
model: {width: 16, layers: 1, heads: 1, context: 64}
train: {batch_sequences: 16, finetune_epochs: 0, precision: fp32}
eval: {lanes: 8, chunk_bytes: 64}
"""
LONG = bytes(np.random.default_rng(2).permutation(list(TEXT)).tolist()) * 20


def write(path, text, model=None):
    return write_archive(path, text, model or make_model(context=CONTEXT), settings(), 1, silent, IN_ORDER)


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    (folder / "text.txt").write_bytes(TEXT * 30)
    (folder / "config.yaml").write_text(CONFIG)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["train", "config.yaml"]) == 0
    return folder / "runs" / "run"


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("in-order") / "a.cl"
    write(path, LONG)
    return path.read_bytes()


@pytest.mark.parametrize("text", [b"", b"a", TEXT[:17], RANDOM, LONG], ids=len)
def test_texts_of_any_length_come_back_and_the_parts_add_up(tmp_path, text):
    path = tmp_path / "a.cl"
    report = write(path, text)
    assert read_archive(path, 1, silent) == text
    parts = report.header_bytes + report.model_bytes + report.tokenizer_bytes + report.data_bytes
    assert report.total_bytes == parts + report.checksum_bytes == path.stat().st_size
    assert abs(report.quantised_data_bits / 8 - report.data_bytes) <= 8


def test_a_fresh_process_decodes_it(tmp_path, archive):
    path, output = tmp_path / "a.cl", tmp_path / "out"
    path.write_bytes(archive)
    done = result_of(
        python("-m", "launch", "decompress", path, "-o", output, "--threads", "2", "--quiet", cwd=tmp_path)
    )
    assert done.returncode == 0, done.stderr
    assert output.read_bytes() == LONG


def test_what_was_read_helps_later(tmp_path):
    """The same 150 bytes twenty times: all but the first cost little, which chunks that share nothing cannot do."""
    once, often = (write(tmp_path / f"{len(text)}.cl", text) for text in (LONG[: len(TEXT)], LONG))
    assert often.data_bytes < 6 * once.data_bytes


def test_noise_takes_its_own_size_and_little_more(tmp_path):
    noise = np.random.default_rng(5).bytes(2000)
    assert write(tmp_path / "a.cl", noise).data_bytes < 2000 + 16 * 4


def test_a_mixture_that_learns_otherwise_is_refused(tmp_path, archive, monkeypatch):
    path = tmp_path / "a.cl"
    path.write_bytes(archive)
    new_mixture = in_order.new_mixture

    def broken(num_tokens, lanes):
        mixture = new_mixture(num_tokens, lanes)
        mixture.state.joint.weights[0, 0, 0] += np.float32(1e-3)
        mixture.state.alone.weights[:] *= np.float32(1.01)
        return mixture

    monkeypatch.setattr(in_order, "new_mixture", broken)
    assert "computes other probabilities" in refusal(path)
    # Were the digest of the probe blind to it, the text itself would tell.
    monkeypatch.setattr("eval.offline.archive.mixture_sha256", lambda: "blind")
    monkeypatch.setattr(in_order, "new_mixture", new_mixture)
    write(path, LONG)
    assert read_archive(path, 1, silent) == LONG
    monkeypatch.setattr(in_order, "new_mixture", broken)
    refusal(path)


def test_damaged_and_misleading_files_are_refused_in_a_line(tmp_path, archive):
    path = tmp_path / "a.cl"
    for at in (0, 9, 60, len(archive) // 2, len(archive) - 1):
        path.write_bytes(archive[:at] + bytes([archive[at] ^ 4]) + archive[at + 1 :])
        refusal(path)
        path.write_bytes(archive[:at])
        refusal(path)
    changes = {
        "cut": lambda head, s: s.update(FLOW=s["FLOW"][:-8]),
        "none": lambda head, s: s.update(FLOW=b""),
        "odd": lambda head, s: s.update(FLOW=s["FLOW"][:-1]),
        "longer": lambda head, s: s.update(FLOW=s["FLOW"] + bytes(4)),
        "noise": lambda head, s: s.update(FLOW=np.random.default_rng(3).bytes(400)),
        "shorter text": lambda head, s: head.update(raw_bytes=head["raw_bytes"] - 1),
        "longer text": lambda head, s: head.update(raw_bytes=head["raw_bytes"] + 1),
        "endless text": lambda head, s: head.update(raw_bytes=1 << 39),
        "other lanes": lambda head, s: head.update(lanes=head["lanes"] // 2),
        "no lanes": lambda head, s: head.update(lanes=0),
        "many lanes": lambda head, s: head.update(lanes=1 << 30),
        "blocks": lambda head, s: head.update(blocks=2),
        "window": lambda head, s: head.update(chunk_bytes=1 << 30),
        "portable": lambda head, s: head.update(predictor="portable"),
        "both": lambda head, s: s.update(DATA=s["FLOW"]),
        "as chunks": lambda head, s: s.update(DATA=s.pop("FLOW")),
    }
    for name, change in changes.items():
        message = refusal(repacked(archive, path, change))
        # Not the machine is to blame where the stream is no such text.
        assert name not in ("cut", "none", "odd", "longer", "noise") or "this machine" not in message, (name, message)


def test_memory_is_checked_before_any_is_taken(tmp_path, archive):
    path = tmp_path / "a.cl"
    path.write_bytes(archive)
    with pytest.raises(UsageError, match=r"a\.cl: .*memory"):
        read_archive(path, 1, silent, 100_000_000)
    assert read_archive(path, 1, silent, 2_000_000_000) == LONG
    assert set(read_sections(path)) == {"HEAD", "TOKN", "MODL", "FLOW"}


@pytest.mark.parametrize("setting", ["eval.predictor=portable", "eval.ideal=true"])
def test_what_cannot_be_coded_so_is_refused_in_a_line(finished_run, capsys, setting):
    assert main(["eval", str(finished_run), "eval.adaptive=true", setting, "--quiet"]) == 2
    told = capsys.readouterr().err
    assert told.startswith("codelength: eval.adaptive=true: ") and told.count("\n") == 1
    assert f"eval.{'predictor=float' if 'portable' in setting else 'ideal=false'}" in told


def test_eval_writes_it_decodes_it_and_tells_it_in_table_and_json(finished_run, capsys):
    assert main(["eval", str(finished_run), "eval.adaptive=true", "--quiet"]) == 0
    file, table = finished_run / "offline" / "adaptive.cl", (finished_run / "table.md").read_text()
    row = next(line for line in table.splitlines() if "+ adaptive" in line)
    size = file.stat().st_size
    assert "whole file, in order" in row and f"{size:,}" in row and "decoded" in row
    assert json.loads((finished_run / "report.json").read_text())["adaptive"]["total_bytes"] == size
    capsys.readouterr()
    assert main(["table", str(finished_run), "--format", "json"]) == 0
    (record,) = json.loads(capsys.readouterr().out)
    assert record["adaptive_total_bytes"] == size and record["adaptive_verified"] is True
    assert main(["eval", str(finished_run), "eval.ideal=true", "--quiet"]) == 0
    assert not file.exists() and "adaptive" not in (finished_run / "table.md").read_text()
