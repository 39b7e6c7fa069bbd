"""Loss curves in the logs of trainers that were stopped, restarted, damaged, or that count in their own way."""

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c
from tensorboard.plugins.scalar.metadata import create_summary_metadata
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard import SummaryWriter

from harness.run.monitor import Monitor
from launch.main import main

OPTIONS = "--unit nats --tokens-per-step 10"


def loss(step: int) -> float:
    return 2 + 4 / (step + 1)


def write(folder: Path, steps: object, shift: float = 0.0, **settings: object) -> Path:
    """One writer's file of `loss` at these steps; returns it."""
    before = set(folder.glob("*"))
    with SummaryWriter(str(folder), **settings) as writer:
        for step in steps:
            writer.add_scalar("loss", loss(step) + shift, step)
    (made,) = set(folder.glob("*")) - before
    return made


@pytest.fixture
def curve(capsys):
    """`curve(path, options)` runs the command and returns its record."""

    def run(path: Path, options: str = "") -> dict:
        status = main(["curve", str(path), *shlex.split(f"{OPTIONS} {options} --format json")])
        captured = capsys.readouterr()
        assert (status, captured.err) == (0, "")
        return json.loads(captured.out)

    return run


@pytest.fixture
def refused(capsys):
    """`refused(path, options)` returns the one line with which the command ends."""

    def run(path: Path, options: str = "") -> str:
        assert main(["curve", str(path), *shlex.split(f"{OPTIONS} {options}")]) == 2
        captured = capsys.readouterr()
        assert captured.out == "" and captured.err.count("\n") == 1, captured.err
        return captured.err

    return run


def lengths(record: dict) -> dict:
    return {key: value for key, value in record.items() if key.endswith(("bits", "bytes", "tokens")) or key == "points"}


def test_this_projects_own_log_is_read_after_a_hard_death(tmp_path, curve):
    # Nothing closes the first writer, as after `kill -9`; the run goes on from a checkpoint at step 12.
    first = Monitor(tmp_path / "run", 30)
    for step in range(1, 21):
        first.log_step(step, "main", {"loss": loss(step) + (9 if step > 12 else 0)})
    first._writer.flush()
    again = Monitor(tmp_path / "run", 30, purge_step=13)
    for step in range(13, 31):
        again.log_step(step, "main", {"loss": loss(step)})
    again.close()
    whole = Monitor(tmp_path / "whole", 30)
    for step in range(1, 31):
        whole.log_step(step, "main", {"loss": loss(step)})
    whole.close()
    record, expected = curve(tmp_path / "run" / "tensorboard"), curve(tmp_path / "whole" / "tensorboard")
    assert lengths(record) == lengths(expected) and record["points"] == 30 and record["points_replaced"] == 8
    assert record["notes"].startswith("Steps come again from step 13: the later writer counts from there on, and 8 ")
    assert expected["points_replaced"] == 0


@pytest.mark.parametrize("mark", [{}, {"purge_step": 7}])
def test_the_later_writer_counts_from_its_first_step_on(tmp_path, curve, mark):
    write(tmp_path / "log", range(1, 13), shift=5.0)
    write(tmp_path / "log", range(4, 9), shift=3.0)
    write(tmp_path / "log", [9, 10, 15], **mark)
    record = curve(tmp_path / "log")
    # Where a writer marks its start, what others have said from there on is void.
    num_void = 2 if mark else 0
    assert record["points"] == 3 + 5 + 3 - num_void and record["points_replaced"] == 9 + num_void
    assert record["last_loss_nats"] == pytest.approx(loss(15)) and record["tokens"] == 150
    write(tmp_path / "log", range(2))
    assert curve(tmp_path / "log")["points"] == 2


def test_steps_that_come_again_in_one_file_count_once(tmp_path, curve):
    write(tmp_path, [1, 2, 3, 3, 4, 5, 3, 4, 6])
    record = curve(tmp_path)
    assert (record["points"], record["points_replaced"]) == (5, 4)
    assert "again from step 3, 3" in record["notes"]


def test_two_ranks_in_one_folder_are_refused(tmp_path, curve, refused):
    with SummaryWriter(str(tmp_path)) as first, SummaryWriter(str(tmp_path)) as second:
        for step in range(1, 9):
            for writer in (first, second):
                writer.add_scalar("loss", loss(step), step)
        # A writer of something else beside them does no harm.
        first.add_scalar("lr", 0.1, 1)
    line = refused(tmp_path, "--tag loss")
    assert "at the same time, as by two ranks" in line and "one of them" in line
    for path in sorted(tmp_path.iterdir()):
        assert curve(path, "--tag loss")["points"] == 8


def test_losses_that_are_no_numbers_are_left_out_on_request_and_counted(tmp_path, curve, refused):
    with SummaryWriter(str(tmp_path)) as writer:
        for step, value in enumerate([5, 4, float("nan"), 3, float("inf"), 0, -1, 2], start=1):
            writer.add_scalar("loss", value, step)
    assert "step 3: loss nan is not a usable number; add --skip-nan" in refused(tmp_path)
    record = curve(tmp_path, "--skip-nan")
    assert (record["points"], record["points_skipped"]) == (4, 4) and "4 point(s) without a usable" in record["notes"]
    # What a later writer has mended needs no option.
    write(tmp_path, range(3, 9))
    assert (curve(tmp_path)["points"], curve(tmp_path)["points_skipped"]) == (8, 0)


def records_of(content: bytes) -> list[int]:
    """Where each record begins."""
    starts = [0]
    while starts[-1] < len(content):
        starts.append(starts[-1] + 16 + int.from_bytes(content[starts[-1] : starts[-1] + 8], "little"))
    return starts[:-1]


DAMAGES = {
    "cut in a head": (lambda content, start: content[: start + 5], "ends in the middle of the record", 47),
    "cut in a record": (lambda content, start: content[: start + 14], "ends in the middle of the record", 47),
    "cut in its checksum": (lambda content, start: content[: start + 30], "ends in the middle of the record", 47),
    "a byte of a record": (lambda content, start: flipped(content, start + 14), "is damaged, after", 99),
    "a byte of a head": (lambda content, start: flipped(content, start + 2), "nothing after it can be read", 47),
    "zeros": (lambda content, start: content[:start] + bytes(400), "nothing after it can be read", 47),
}


def flipped(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 0x10]) + content[place + 1 :]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_log_that_is_cut_or_damaged_says_where(tmp_path, curve, refused, damage):
    change, words, num_points = DAMAGES[damage]
    file = write(tmp_path, range(1, 101))
    content = file.read_bytes()
    # Before the points of steps 1 to 47 stands the record of the file's version.
    start = records_of(content)[48]
    file.write_bytes(change(content, start))
    line = refused(tmp_path)
    assert words in line and f"at byte {start:,} of" in line and "after step 47 of loss" in line
    assert file.name in line and "--allow-damaged" in line
    record = curve(tmp_path, "--allow-damaged")
    assert record["points"] == num_points and f"at byte {start:,} of" in record["notes"]
    assert "points may be missing" in record["notes"]


def test_a_cut_end_that_a_later_writer_covers_needs_no_option(tmp_path, curve, refused):
    file = write(tmp_path, range(1, 11))
    file.write_bytes(file.read_bytes()[:-7])
    later = write(tmp_path, range(12, 21))
    assert "after step 9" in refused(tmp_path)
    later.unlink()
    write(tmp_path, range(10, 21))
    record = curve(tmp_path)
    assert record["points"] == 20 and "a later writer covers what is missing" in record["notes"]


def test_a_record_that_claims_more_than_the_file_has_is_a_cut(tmp_path, refused):
    file = write(tmp_path, range(1, 5))
    with file.open("ab") as end:
        RecordWriter(end).write(bytes(40))
    content = bytearray(file.read_bytes())
    start = records_of(bytes(content))[-1]
    content[start : start + 8] = (1 << 62).to_bytes(8, "little")
    content[start + 8 : start + 12] = masked_crc32c(bytes(content[start : start + 8])).to_bytes(4, "little")
    file.write_bytes(content)
    assert "ends in the middle" in refused(tmp_path)


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        ({"tensor_shape": {"dim": [{"size": 3}]}, "dtype": 1, "float_val": [1, 2, 3]}, "3 values instead of one"),
        ({"tensor_shape": {"dim": [{"size": 1 << 40}]}, "dtype": 1, "float_val": [1]}, "1,099,511,627,776 values"),
        ({"tensor_shape": {"dim": [{"size": 0}]}, "dtype": 1}, "0 values"),
        ({"dtype": 7, "string_val": [b"low"]}, "something else than a number"),
        ({"dtype": 1, "tensor_content": b"\0\0\0"}, "something else than a number"),
        ({"dtype": 99}, "something else than a number"),
    ],
)
def test_what_is_no_number_in_a_scalar_tag_is_said(tmp_path, refused, tensor, words):
    file = write(tmp_path, range(1, 5))
    value = Summary.Value(tag="loss", metadata=create_summary_metadata("", ""), tensor=TensorProto(**tensor))
    with file.open("ab") as end:
        RecordWriter(end).write(Event(step=7, summary=Summary(value=[value])).SerializeToString())
    line = refused(tmp_path)
    assert f"step 7 holds {words}" in line and "--tag" in line


def test_a_vector_of_another_tag_does_no_harm(tmp_path, curve):
    with SummaryWriter(str(tmp_path)) as writer:
        writer.add_tensor("vector", torch.ones(3), 1)
        writer.add_histogram("weights", np.arange(5.0), 1)
        for step in (1, 2):
            writer.add_scalar("loss", loss(step), step)
    assert curve(tmp_path)["points"] == 2


@pytest.mark.parametrize(
    ("steps", "option", "tokens", "words"),
    [
        (range(1, 101), "", 1000, "the first step is called 1, so step s ends after s times"),
        (range(100), "", 1000, "The log starts at step 0, so step s ends after s + 1 times"),
        (range(49, 1000, 50), "", 10_000, "Steps 49, 99, ... end intervals that start at step 0"),
        ([*range(49, 990, 50), 990], "", 9910, "Steps 49, 99, ... end intervals that start at step 0"),
        (range(50, 1001, 50), "", 10_000, "the first step is called 1"),
        (range(1, 100, 2), "", 990, "the first step is called 1"),
        (range(49, 1000, 50), "--first-step 1", 9990, ""),
        (range(50, 1001, 50), "--first-step 0", 10_010, ""),
        (range(5001, 5101), "--first-step 5001", 1000, ""),
    ],
)
def test_how_steps_become_tokens_is_found_or_given_and_said(tmp_path, curve, steps, option, tokens, words):
    write(tmp_path, steps)
    record = curve(tmp_path, option)
    assert record["tokens"] == tokens and words in record["notes"] and bool(words) == bool(record["notes"])
    assert record["first_step"] == (int(option.split()[1]) if option else int("called 1" in words))


def test_a_first_step_that_cannot_be_is_refused(tmp_path, refused):
    write(tmp_path, range(3))
    for option, words in (
        ("--first-step 1", "step 0: comes before --first-step 1"),
        ("--first-step=-1", "--first-step -1: must be a whole number"),
        ("--first-step 0.5", "--first-step 0.5: must be a whole number"),
        (f"--first-step {'9' * 5000}", "must be a whole number"),
    ):
        assert words in refused(tmp_path, option)
    assert "--skip" not in refused(tmp_path, "--first-step 1")


CSV_FILES = {
    "blank cells of other runs": ("Step,a - loss,b\n1,3,\n2,,9\n3,2,\n", "--columns 'Step,a - loss'", 2, "1 row"),
    "a run whose name is a number": ("Step,0.001,0.01\n1,3,\n3,2,4\n", "--columns Step,0.001", 2, ""),
    "comments": ("# a run\nstep,loss\n1,3\n# restarted\n3,2\n", "", 2, ""),
    "JSON lines": ('{"step": 1, "loss": 3}\n\n{"step": 2, "eval": 5}\n{"step": 3, "loss": 2.0}\n',
                   "--columns step,loss", 2, "1 row"),
    "JSON lines of two keys": ('{"x": 1, "loss": 3}\r\n{"x": 3, "loss": "2"}\r\n', "", 2, ""),
    "a null": ('{"x": 1, "loss": 3}\n{"x": 2, "loss": null}\n{"x": 3, "loss": 2}\n', "--skip-nan", 2, "1 point(s)"),
    "a blank loss": ("1,3\n2,\n3,2\n", "--skip-nan", 2, "1 point(s)"),
    "NaN": ("1,3\n2,nan\n3,2\n", "--skip-nan", 2, "1 point(s)"),
    "a first row at step 0": ("step,loss\n0,3\n1,2.5\n2,2\n", "--first-step 0", 3, ""),
}  # fmt: skip


@pytest.mark.parametrize("name", CSV_FILES)
def test_text_files_as_tools_export_them(tmp_path, curve, name):
    text, options, num_points, words = CSV_FILES[name]
    (tmp_path / "curve.csv").write_text(text, newline="")
    record = curve(tmp_path / "curve.csv", options)
    assert record["points"] == num_points and words in record["notes"]
    assert (record["tokens"], record["last_loss_nats"]) == (30, 2)


@pytest.mark.parametrize(
    ("text", "options", "words"),
    [
        ("1;3,5\n2;3,25\n", "", ["line 1", "'3,5' is not a number; write 3.5", "decimal point"]),
        ("x,loss\n1,3,5\n", "", ["line 2", "3 column(s) instead of 2", "decimal comma"]),
        ("0,3\n1,2\n", "", ["line 1", "x 0 must be above 0", "add --first-step 0"]),
        ("1,3\n2,\n", "", ["line 2", "loss '' is not a number", "--skip-nan"]),
        ("1,3\n,2\n", "", ["line 2", "x '' is not a number"]),
        ("Step,a,b\n1,3,\n,2,\n", "--columns Step,a", ["line 3", "x '' is not a number"]),
        ('{"x": 1, "loss": 3}\n{"x": 2, "lo', "", ["line 2", "not a JSON object"]),
        ('{"x": 1, "loss": 3}\n[2, 3]\n', "", ["line 2", "not a JSON object"]),
        ('{"x": 1, "a": 3, "b": 3}\n', "", ["3 column(s)", "from the keys: x, a, b"]),
        ('{"a": ' * 5000, "", ["line 1", "not a JSON object"]),
        ('{"x": 1, "loss": [1]}\n', "", ["line 1", "loss '[1]' is not a number"]),
        ("1 3\n2 2\n", "", ["1 column(s)", "comma, semicolon or tab"]),
        ("1,3\n2,2\n", "--allow-damaged", ["--allow-damaged", "TensorBoard"]),
    ],
)
def test_other_text_files_are_refused_with_what_to_do(tmp_path, refused, text, options, words):
    (tmp_path / "curve.csv").write_text(text)
    line = refused(tmp_path / "curve.csv", options)
    assert all(word in line for word in words), line


def test_a_first_step_needs_steps(tmp_path, capsys):
    (tmp_path / "curve.csv").write_text("1,3\n2,2\n")
    assert main(["curve", str(tmp_path / "curve.csv"), "--unit", "nats", "--first-step", "0"]) == 2
    assert "add --tokens-per-step N" in capsys.readouterr().err
