"""The main job as `make demo` does it: what it prints, and what report.json claims."""

import hashlib
import json
from pathlib import Path

import pytest

from harness.lock import locked
from tests.support.commands import HELDOUT_BYTES, SMALL, SUBSET_BYTES, run_command
from tests.support.kinds import unlabelled

KEYS = {
    "data": {"corpus", "train_bytes", "eval_split", "raw_bytes"},
    "online": {"aulc_bits", "ideal_bits", "tokens", "bits_per_byte", "above_final_bits", "code_bytes"},
    "offline": {
        "method", "parameters", "nonzeros", "model_bytes", "data_bytes", "header_bytes", "total_bytes",
        "bits_per_byte", "ideal_data_bits", "verified", "sha256", "encode_seconds", "decode_seconds",
        "dead_rows", "dead_columns", "dead_heads", "dead_units", "dead_channels", "dead_weights",
    },
    "projected": {"dataset_bytes", "total_bytes"},
    "conventions": {"paper_model_bytes", "csr_model_bytes", "dense_float32_bytes"},
    "baselines": {
        "lzma2_chunk", "lzma2_chunk_xz", "zstd_chunk", "zstd_chunk_dictionary", "brotli_chunk", "ppmd_chunk",
        "lzma2_whole", "zstd_whole", "bz2_whole", "brotli_whole", "ppmd_whole",
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def report(demo_run) -> dict:
    return json.loads((demo_run / "report.json").read_text())


def test_the_report_has_every_key(report):
    assert {"run", "config_sha256"} <= report.keys()
    for section, keys in KEYS.items():
        assert keys <= report[section].keys(), section


def test_progress_names_step_rate_total_speed_and_time_left(demo):
    last = [line for line in demo.stderr.splitlines() if "bits/byte" in line and "left" in line][-1]
    for part in ("finetune", "step", "online", "tokens/s", "MFU"):
        assert part in last


def test_the_archive_decodes_to_the_held_out_bytes(report, demo_run, tmp_path):
    done = run_command(f"codelength decompress {demo_run}/offline/archive.cl -o {tmp_path}/out", tmp_path)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "out").read_bytes()
    assert len(text) == report["data"]["raw_bytes"] == HELDOUT_BYTES
    assert hashlib.sha256(text).hexdigest() == report["offline"]["sha256"]
    assert report["offline"]["verified"] is True


def test_the_parts_add_up_to_the_file(report, demo_run):
    offline = report["offline"]
    parts = ("header_bytes", "model_bytes", "tokenizer_bytes", "data_bytes", "checksum_bytes")
    size = (demo_run / "offline" / "archive.cl").stat().st_size
    assert sum(offline[part] for part in parts) == offline["total_bytes"] == size


def test_two_evaluations_of_a_run_do_not_mix(demo_run, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in demo_run.rglob("*") if path.is_file()}
    with locked(demo_run):
        done = run_command(f"codelength eval {demo_run}", tmp_path)
    assert done.returncode == 2 and "in use by process" in done.stderr and len(done.stderr.splitlines()) == 1
    assert before == {path: path.stat().st_mtime_ns for path in demo_run.rglob("*") if path.is_file()}


def test_the_stream_takes_what_the_quantised_probabilities_say(report):
    offline = report["offline"]
    assert 8 * offline["data_bytes"] <= 1.0002 * offline["quantised_data_bits"] + 64
    assert 8 * offline["data_bytes"] >= offline["quantised_data_bits"]


def test_the_online_code_is_of_the_whole_training_subset(report):
    online = report["online"]
    assert online["tokens"] == online["raw_bytes"] == report["data"]["train_bytes"] == SUBSET_BYTES
    assert online["ideal_bits"] == pytest.approx(online["bits_per_byte"] * SUBSET_BYTES)
    # Running means of the weights predict, not the weights that learn.
    assert online["aulc_bits"] != online["ideal_bits"] == pytest.approx(online["aulc_bits"], rel=0.05)
    rate = report["offline"]["ideal_data_bits"] / report["data"]["raw_bytes"]
    assert online["above_final_bits"] == pytest.approx(online["aulc_bits"] - rate * SUBSET_BYTES)


def test_projection_is_model_plus_rate_times_corpus(report):
    offline, projected = report["offline"], report["projected"]
    expected = offline["model_bytes"] + offline["data_bytes"] / HELDOUT_BYTES * SUBSET_BYTES
    assert projected["total_bytes"] == pytest.approx(expected)


def test_pruning_left_zeros_and_conventions_count_the_same_weights(report):
    assert 0 < report["offline"]["nonzeros"] < report["offline"]["parameters"]
    assert report["conventions"]["paper_model_bytes"] == 4 * report["offline"]["nonzeros"]
    assert report["conventions"]["dense_float32_bytes"] == 4 * report["offline"]["parameters"]


def test_figures_table_and_environment_are_there(demo_run):
    for name in ("online", "loss", "sparsity"):
        assert (demo_run / "figures" / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
    assert unlabelled((demo_run / "table.md").read_text()) == []
    environment = json.loads((demo_run / "environment.json").read_text())
    assert environment["world_size"] == 2 and environment["packages"]["torch"].startswith("2.13.0")


def test_the_same_command_again_trains_nothing(demo_run, workspace):
    weights = demo_run / "weights.safetensors"
    before = weights.read_bytes(), weights.stat().st_mtime_ns
    settings = ["runs_dir=runs", "name=demo", *SMALL]
    again = run_command(f"codelength train configs/demo.yaml {' '.join(settings)}", Path(workspace))
    assert again.returncode == 0 and "training is complete" in again.stdout
    assert before == (weights.read_bytes(), weights.stat().st_mtime_ns)
