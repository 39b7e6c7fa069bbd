"""`codelength send` and `receive`: what was sent comes back from the file alone, or one line says why it cannot."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from eval.codec.container import read_sections, unpack_json
from eval.online.file import read_online_file
from eval.online.job import _adopt
from eval.report.online_tables import SENT_PARTS
from harness.config.run import load_config
from harness.corpus.prepared import open_data
from harness.data.order import Sequences
from harness.lock import locked
from harness.run.ledger import read_online_code
from tests.support.archives import repacked
from tests.support.commands import ROOT
from tests.support.online import LONG, TEXT, command, ended, killed_now_and_then, refused, run
from tests.support.ranks import Ranks

TEXTS = {
    "empty": b"",
    "one byte": b"\0",
    "one sequence": TEXT[:64],
    "one sequence and a byte": TEXT[:65],
    "text": TEXT,
    "binary": np.random.default_rng(0).bytes(1000),
}


@pytest.mark.parametrize("name", TEXTS)
def test_any_file_comes_back_and_its_bits_add_up(capsys, place, tmp_path, name):
    text, file, output = tmp_path / "in", tmp_path / "file.clo", tmp_path / "out"
    text.write_bytes(TEXTS[name])
    assert run("send", place / "config.yaml", text, "-o", file, "--quiet", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert run("receive", file, "-o", output, "--quiet") == 0
    assert output.read_bytes() == TEXTS[name]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file.clo", "in", "out"]
    parts = sum(report[f"{part}_bits"] for part in ("aulc", "prediction", "quantisation", "termination"))
    assert parts + report["segment_bits"] + report["header_bits"] == pytest.approx(8 * file.stat().st_size, abs=1e-6)
    assert report["file_bytes"] == file.stat().st_size
    assert (report["aulc_bits"] > 0) == bool(TEXTS[name])
    if name == "binary":
        assert parts >= 8 * len(TEXTS[name]) - 20


PREDICTING = {
    "uniform and frequencies": ("online.experts=[uniform,frequencies]",),
    "n-gram": ("online.experts=[ngram]", "online.ngram_order=3"),
    "network": ("online.experts=[ngram,network]", "train.order=sequential"),
    "two transformers": ("online.models=[16x1x1]",),
    "running means": ("online.ema=0.9",),
    "smeared embeddings": ("model.smear=2",),
    "temperature": ("online.calibrate=true",),
    "self-switch": ("online.checkpoints=3", "online.checkpoint_steps=2"),
    "replays": ("train.replays=2", "train.replays_until=1000"),
    "replay streams": ("train.replays=1", "train.replay=streams", "train.order=streams"),
    "schedule": ("train.batch_schedule=[[0,16],[200,64],[1000,128]]",),
    "overlap": ("train.order=interleaved", "model.overlap=70"),
    "overlapping streams": ("train.order=streams", "model.overlap=16"),
    "blocks": ("train.retrain_at=[0.2,0.6]", "train.retrain_epochs=1.5"),
}
EVERYTHING = tuple(
    setting
    for name in (
        "network",
        "two transformers",
        "running means",
        "temperature",
        "self-switch",
        "replays",
        "schedule",
        "overlap",
    )
    for setting in PREDICTING[name]
)


@pytest.mark.parametrize("name", PREDICTING)
def test_every_way_to_predict_and_to_learn_comes_back(place, tmp_path, name):
    file, output = tmp_path / "file.clo", tmp_path / "out"
    assert run("send", place / "config.yaml", place / "text", *PREDICTING[name], "-o", file, "--quiet") == 0
    assert run("receive", file, "-o", output, "--quiet") == 0
    assert output.read_bytes() == TEXT


BLOCKS = (*PREDICTING["blocks"], *PREDICTING["network"], *PREDICTING["temperature"])


# Losses of training steps are the same numbers; in a block code the area is the predictor's, computed token by token.
@pytest.mark.parametrize(("chosen", "same"), [(EVERYTHING, 1e-9), (BLOCKS, 1e-3)], ids=["everything", "blocks"])
def test_a_mixture_is_as_long_as_the_ordinary_runs_ledger_says(capsys, place, tmp_path, chosen, same):
    settings = [str(place / "config.yaml"), *chosen, "train.precision=fp32"]
    assert run("send", *settings, "-o", tmp_path / "file.clo", "--quiet", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert run("receive", tmp_path / "file.clo", "-o", tmp_path / "out", "--quiet") == 0
    assert (tmp_path / "out").read_bytes() == open_corpus(settings)
    name = f"name=mixed-{len(chosen)}"
    assert run("train", *settings, name, "prune.kind=none") == 0
    config = load_config(settings[0], [*settings[1:], name])
    train = open_data(config).train
    code = read_online_code(config.run_dir, Sequences(train, config.model.context).num_sequences, train.num_tokens)
    assert report["aulc_bits"] == pytest.approx(code.aulc_bits, rel=same)
    assert report["aulc_bits"] + report["prediction_bits"] == pytest.approx(code.ideal_bits, rel=1e-3)
    assert code.ideal_bits < 0.8 * code.aulc_bits


def open_corpus(settings: list[str]) -> bytes:
    data = open_data(load_config(settings[0], settings[1:]))
    return data.tokenizer.decode(data.train.tokens)


def test_a_mixture_of_symbols_that_are_not_bytes_comes_back(place, tmp_path):
    text, file, output = tmp_path / "in", tmp_path / "file.clo", tmp_path / "out"
    text.write_bytes(TEXT)
    settings = ("tokenizer.kind=sentencepiece", "tokenizer.vocab_size=330", "online.models=[16x1x1]")
    experts = "online.experts=[uniform,frequencies,network]"
    assert run("send", place / "config.yaml", text, *settings, experts, "-o", file, "--quiet") == 0
    assert run("receive", file, "-o", output, "--quiet") == 0
    assert output.read_bytes() == TEXT


def test_sentencepiece_symbols_come_back(place, tmp_path):
    text, file, output = tmp_path / "in", tmp_path / "file.clo", tmp_path / "out"
    text.write_bytes(TEXT + b"\xff\xfe\0" + TEXT[:500])
    settings = ("tokenizer.kind=sentencepiece", "tokenizer.vocab_size=330")
    assert run("send", place / "config.yaml", text, *settings, "-o", file, "--quiet") == 0
    assert run("receive", file, "-o", output, "--quiet") == 0
    assert output.read_bytes() == text.read_bytes()


@pytest.fixture(scope="module")
def ordinary(place) -> tuple[Path, float]:
    """An ordinary run of the configuration, and the area under its loss curve in bits."""
    assert run("train", place / "config.yaml", "name=ordinary", "train.finetune_epochs=0") == 0
    config = load_config(place / "config.yaml", ["name=ordinary"])
    train = open_data(config).train
    code = read_online_code(config.run_dir, Sequences(train, config.model.context).num_sequences, train.num_tokens)
    return config.run_dir, code.aulc_bits


def test_the_file_is_as_long_as_the_ordinary_runs_area_under_its_loss_curve(capsys, place, tmp_path, ordinary):
    # Without INPUT the training corpus of the configuration is sent.
    assert run("send", place / "config.yaml", "-o", tmp_path / "file.clo", "--quiet", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    aulc = ordinary[1]
    assert report["raw_bytes"] == 3000
    assert report["aulc_bits"] == pytest.approx(aulc, rel=1e-12)
    assert abs(report["prediction_bits"]) < 1e-3 * aulc and abs(report["quantisation_bits"]) < 1e-3 * aulc
    assert 0 < report["termination_bits"] < 64 * len(read_online_file(tmp_path / "file.clo")[3])


def test_a_report_splits_the_bits_of_a_file_that_was_received(capsys, ordinary):
    run_dir, aulc = ordinary
    assert run("eval", run_dir, "eval.online=true", "--quiet") == 0
    online = json.loads((run_dir / "report.json").read_text())["online"]
    assert online["verified"] is True and online["file_bytes"] == (run_dir / "online" / "corpus.clo").stat().st_size
    parts = sum(online[f"{part}_bits"] for part in SENT_PARTS)
    assert online["aulc_bits"] == aulc
    assert aulc + parts == pytest.approx(8 * online["file_bytes"], abs=1e-6)
    table = capsys.readouterr().out
    assert "Online code of ordinary as a file" in table and f"{8 * online['file_bytes']:,}" in table


def test_the_same_file_from_the_same_settings_and_another_from_others(place, tmp_path, sent):
    again, other = tmp_path / "again.clo", tmp_path / "other.clo"
    assert run("send", place / "config.yaml", place / "text", "-o", again, "--quiet") == 0
    assert run("send", place / "config.yaml", place / "text", "seed=1", "-o", other, "--quiet") == 0
    assert again.read_bytes() == sent.read_bytes()
    streams = [read_online_file(path)[3][0].parts[0].stream for path in (sent, other)]
    assert streams[0] != streams[1]


def sending_ranks(place: Path, file: Path, *settings: str) -> Ranks:
    """Two ranks that send TEXT."""
    program = ["-m", "launch", "send", str(place / "config.yaml"), str(place / "text"), *settings, "-o", str(file)]
    return Ranks(2, place, program=[*program, "--quiet"])


def sent_by_ranks(place: Path, file: Path, *settings: str) -> list[str]:
    """What each of two ranks says while it sends TEXT."""
    with sending_ranks(place, file, *settings) as job:
        ends = job.wait()
    assert all(status == 0 for status, _, _ in ends), ends
    return [errors for _, _, errors in ends]


@pytest.fixture(scope="module")
def sent_by_two(place) -> Path:
    """TEXT, sent by two ranks with every setting."""
    sent_by_ranks(place, place / "two.clo", *EVERYTHING)
    return place / "two.clo"


def test_two_ranks_send_and_two_receive(place, tmp_path, sent_by_two):
    _, _, _, segments = read_online_file(sent_by_two)
    assert all(len(segment.parts) == 2 and segment.parts[0].stream for segment in segments)
    # While steps have one row, the second rank waits.
    streams = [bool(segment.parts[1].stream) for segment in segments]
    assert streams == sorted(streams) and not streams[0] and streams[-1]
    # `receive` starts as many processes as have sent.
    status, printed, errors = ended(command("receive", sent_by_two, "-o", tmp_path / "out"))
    assert status == 0, errors
    assert (tmp_path / "out").read_bytes() == TEXT
    assert printed.startswith(f"{tmp_path / 'out'}: {len(TEXT):,} bytes, SHA-256 verified; ")


def test_killed_ranks_go_on_to_the_same_file(place, tmp_path, sent_by_two):
    file = tmp_path / "file.clo"
    with sending_ranks(place, file, *EVERYTHING) as ranks:
        ranks.wait_until(lambda: any(tmp_path.glob("file.clo.part/checkpoints/*/COMMITTED")))
        ranks.kill()
    assert "goes on from step" in sent_by_ranks(place, file, *EVERYTHING)[0]
    assert file.read_bytes() == sent_by_two.read_bytes()


def test_zero_stage_three_sends_the_same_weights(place, tmp_path):
    zero = ("backend.name=deepspeed", "backend.zero_stage=3", "train.precision=fp32", "optimizer.kind=adamw")
    file, output = tmp_path / "z.clo", tmp_path / "out"
    sent_by_ranks(place, file, *zero)
    status, _, errors = ended(command("receive", file, "-o", output, "--quiet"))
    assert status == 0, errors
    assert output.read_bytes() == TEXT


def test_another_number_of_processes_is_refused(capsys, place, tmp_path, sent, sent_by_two):
    assert "world_size: 2 in the file, 1 here" in refused(capsys, sent_by_two, tmp_path / "out", "--processes", "1")
    status, printed, errors = ended(command("receive", sent, "-o", tmp_path / "out", "--processes", "2"))
    assert (status, printed) == (2, "")
    assert "world_size: 1 in the file, 2 here" in errors and errors.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("key", ["torch", "constriction", "threads", "cpu_capability", "precision", "code"])
def test_a_sender_with_another_setting_is_named_before_decoding(capsys, tmp_path, sent, key):
    foreign = repacked(
        sent.read_bytes(), tmp_path / "f.clo", lambda head, _: head["environment"].update({key: "other"})
    )
    assert f"{key}: other -> " in refused(capsys, foreign, tmp_path / "out")


def test_a_machine_that_computes_otherwise_is_found_before_decoding(capsys, tmp_path, sent):
    foreign = repacked(sent.read_bytes(), tmp_path / "f.clo", lambda head, _: head.update(arithmetic="0" * 32))
    message = refused(capsys, foreign, tmp_path / "out")
    assert "computes a training step otherwise" in message and "no recorded setting differs" in message


def test_another_instruction_set_is_named_and_a_slipped_one_is_found_at_its_first_segment(place, tmp_path, sent):
    slow = {"ATEN_CPU_CAPABILITY": "default"}
    output, there = tmp_path / "out", tmp_path / "there.clo"
    native = command("receive", sent, "-o", output, "--quiet", **slow)
    sending = command("send", place / "config.yaml", place / "text", "-o", there, "--quiet", **slow)
    status, _, errors = ended(native)
    assert status == 2 and "cpu_capability: " in errors and errors.count("\n") == 1
    status, _, errors = ended(sending)
    assert status == 0, errors
    theirs = unpack_json(read_sections(there)["HEAD"], there)

    def pretend(head, sections):
        head.update(environment=theirs["environment"], arithmetic=theirs["arithmetic"])

    # Nothing in the header gives it away: the first segment must.
    slipped = repacked(sent.read_bytes(), tmp_path / "slipped.clo", pretend)
    status, _, errors = ended(command("receive", slipped, "-o", output, "--quiet", **slow))
    assert status == 2 and "segment 0 (steps 0 to 2)" in errors and errors.count("\n") == 1
    assert not output.exists()


def test_a_limit_that_matters_is_told_and_one_that_does_not_is_none(tmp_path, sent):
    """oneDNN's own limit is seen only in what it computes."""
    output = tmp_path / "out"
    status, _, errors = ended(
        command("receive", sent, "-o", output, "--quiet", ONEDNN_MAX_CPU_ISA="SSE41", OMP_NUM_THREADS="2")
    )
    if status:
        assert status == 2 and "limits: none -> ONEDNN_MAX_CPU_ISA=SSE41" in errors and errors.count("\n") == 1
        assert not output.exists()
    else:
        assert output.read_bytes() == TEXT


def test_other_thread_settings_decode_since_a_rank_always_computes_with_one(tmp_path, sent):
    status, _, errors = ended(command("receive", sent, "-o", tmp_path / "out", "--quiet", OMP_NUM_THREADS="2"))
    assert status == 0, errors
    assert (tmp_path / "out").read_bytes() == TEXT


KILLS = int(os.environ.get("CODELENGTH_KILLS", "2"))


def test_killed_senders_and_receivers_end_with_the_same_bytes(place, tmp_path):
    whole, file, output = tmp_path / "whole.clo", tmp_path / "file.clo", tmp_path / "out"
    arguments = ["send", place / "config.yaml", place / "long", "online.segment_steps=2", "--quiet"]
    assert run(*arguments, "-o", whole) == 0
    killed_now_and_then([*arguments, "-o", file], tmp_path / "file.clo.part" / "checkpoints", KILLS, seed=1)
    assert file.read_bytes() == whole.read_bytes()
    arguments = ["receive", file, "-o", output, "--quiet"]
    killed_now_and_then(arguments, tmp_path / "out.part" / "checkpoints", KILLS, seed=2)
    assert not list(tmp_path.glob("*.part"))
    assert output.read_bytes() == LONG


def test_ctrl_c_keeps_what_was_done_and_a_changed_job_is_refused(capsys, place, tmp_path):
    file = tmp_path / "file.clo"
    arguments = ["send", place / "config.yaml", place / "long", "-o", file, "--quiet"]
    process = command(*arguments)
    marks = tmp_path / "file.clo.part" / "checkpoints"
    while not list(marks.glob("step-*/COMMITTED")):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    status, _, errors = ended(process)
    assert status == 1 and "the same command goes on" in errors and errors.count("\n") == 1
    assert not file.exists()
    assert run(*arguments, "seed=5") == 2
    assert f"remove {tmp_path / 'file.clo.part'}" in capsys.readouterr().err
    assert run(*arguments) == 0
    assert "goes on from step" in capsys.readouterr().err
    assert file.exists() and not marks.parent.exists()


def test_two_jobs_on_one_output_do_not_get_into_each_others_way(capsys, place, tmp_path):
    file, folder = tmp_path / "file.clo", tmp_path / "file.clo.part"
    _adopt(folder)
    arguments = ["send", place / "config.yaml", place / "text", "-o", file, "--quiet"]
    with locked(folder):
        assert run(*arguments) == 2
    assert "in use by process" in capsys.readouterr().err
    assert run(*arguments) == 0
    assert file.exists() and not folder.exists()


def test_standard_input_and_output_are_files_too(place, tmp_path, sent):
    environment, here = os.environ | {"PYTHONPATH": str(ROOT)}, [sys.executable, "-m", "launch"]
    command = [*here, "send", place / "config.yaml", "-", "-o", "-", "--quiet"]
    sending = subprocess.run(command, input=TEXT, capture_output=True, cwd=tmp_path, env=environment)
    assert (sending.returncode, sending.stdout) == (0, sent.read_bytes()), sending.stderr
    command = [*here, "receive", "-", "-o", "-"]
    receiving = subprocess.run(command, input=sending.stdout, capture_output=True, cwd=tmp_path, env=environment)
    assert (receiving.returncode, receiving.stdout) == (0, TEXT), receiving.stderr
    assert not list(tmp_path.iterdir())


def test_an_output_with_a_long_name_is_received(tmp_path, sent):
    output = tmp_path / ("n" * 253)
    assert run("receive", sent, "-o", output, "--quiet") == 0
    assert output.read_bytes() == TEXT and list(tmp_path.iterdir()) == [output]


def test_an_existing_output_is_kept_and_bad_usage_is_one_line(capsys, place, tmp_path, sent):
    earlier = tmp_path / "earlier"
    earlier.write_bytes(b"earlier")
    config = place / "config.yaml"
    for arguments in (
        ("receive", sent, "-o", earlier),
        ("send", config, place / "text", "-o", earlier),
        ("send", config, place / "text", "-o", tmp_path / "missing" / "a.clo"),
        ("send", config, place / "none", "-o", tmp_path / "a.clo"),
        ("send", config, place / "text", place / "long", "-o", tmp_path / "a.clo"),
        ("send", config, place / "text", "online.segment_steps=0", "-o", tmp_path / "a.clo"),
        ("send", config, place / "text", "--processes", "3", "-o", tmp_path / "a.clo"),
    ):
        assert run(*arguments) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert earlier.read_bytes() == b"earlier"
    assert [path.name for path in tmp_path.iterdir()] == ["earlier"]
