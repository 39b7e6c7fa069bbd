"""Files of this format version decode from now on: on any processor, or are refused in a line where floats differ."""

from dataclasses import asdict

import pytest
import torch

from eval.codec.container import VERSION
from eval.teacher.archive import read_archive as read_targets
from eval.teacher.archive import target_bytes
from harness.data.shards import open_shard
from harness.run.checkpoint import FORMAT_VERSION, committed_checkpoints, read_rank_state, read_state
from harness.run.ledger import ledger_damage, read_online_code
from harness.units import bits_from_nats
from launch.main import main
from tests.golden.make import FOLDER, IDENTITY, NATS, TARGETS, TEXT, WEIGHTS


def test_a_portable_archive_decodes_everywhere(tmp_path):
    assert main(["decompress", str(FOLDER / "portable.cl"), "-o", str(tmp_path / "out"), "--quiet"]) == 0
    assert (tmp_path / "out").read_bytes() == TEXT


def test_targets_decode_everywhere():
    assert target_bytes(read_targets(FOLDER / "targets.cl")) == target_bytes(TARGETS)


@pytest.mark.parametrize("name", ["float.cl", "online.clo"])
def test_floats_decode_or_are_refused_in_a_line(capsys, tmp_path, name):
    command = "receive" if name.endswith(".clo") else "decompress"
    status = main([command, str(FOLDER / name), "-o", str(tmp_path / "out"), "--quiet"])
    told = capsys.readouterr().err
    if status == 0:
        assert (tmp_path / "out").read_bytes() == TEXT
    else:
        # Sources that decide bits are among what an online code names; another processor is named by both.
        assert status == 2 and told.startswith(f"codelength: {FOLDER / name}: ") and told.count("\n") == 1
        assert "computes" in told or "in the sender's setting" in told
        assert not list(tmp_path.iterdir())


def test_shard_ledger_and_checkpoint_are_read():
    shard = open_shard(FOLDER / "text.tokens")
    shard.verify()
    assert shard.tokens.tobytes() == TEXT and shard.document_offsets.tolist() == [0, 100]
    code = read_online_code(FOLDER, 2, 12)
    assert code.aulc_bits == pytest.approx(bits_from_nats(float(NATS.sum()))) and code.raw_bytes == 12
    (checkpoint,) = committed_checkpoints(FOLDER)
    state, own = read_state(checkpoint, IDENTITY, "make it again"), read_rank_state(checkpoint, 0)
    assert ledger_damage(FOLDER, 0, asdict(state)) == ""
    assert state.step == 3 and own["step"] == 3 and own["text"] == "kept"
    assert torch.equal(own["weights"], WEIGHTS["weights"])


def test_the_versions_are_those_of_the_golden_files():
    """Who raises one runs `python -m tests.golden.make`, and tells docs/formats.md what the earlier one is read by."""
    assert (VERSION, FORMAT_VERSION) == (5, 5)
