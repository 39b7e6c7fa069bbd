"""`codelength decompress`: the text or one line, never a half-written file, in this process and in fresh ones."""

import hashlib
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from eval.offline.archive import write_archive
from harness.config.codes import EvalConfig
from launch.main import main
from tests.support.archives import RANDOM, make_model, repacked
from tests.support.commands import ROOT
from tests.support.processes import Process, python

TEXT = b"What is claimed decodes, in a fresh process that has the file alone. " * 3 + RANDOM


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Path:
    """An archive of TEXT in several blocks."""
    path = tmp_path_factory.mktemp("archive") / "a.cl"
    config = EvalConfig(chunk_bytes=16, lanes=4)
    write_archive(path, TEXT, make_model(), config, 1, lambda done, total: None)
    return path


def refused(capsys, status: int, *arguments: object) -> str:
    """The only line that the command prints; it must end with `status`."""
    assert main(["decompress", *map(str, arguments)]) == status
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("codelength: ")
    assert captured.err.endswith("\n")
    assert captured.err.count("\n") == 1
    return captured.err


def fresh(archive: Path, output: Path, *options: str, **environment: str) -> Process:
    """`python -m launch decompress` in a process of its own, started in the folder of its output."""
    command = ("-m", "launch", "decompress", archive, "-o", output, *options)
    return python(*command, cwd=output.parent, env={"PYTHONPATH": str(ROOT)} | environment)


def test_decompress_writes_the_text_and_says_so(capsys, tmp_path, archive):
    output = tmp_path / "out"
    assert main(["decompress", str(archive), "-o", str(output)]) == 0
    assert output.read_bytes() == TEXT
    captured = capsys.readouterr()
    assert captured.out == f"{output}: {len(TEXT)} bytes, SHA-256 verified\n"
    assert main(["decompress", str(archive), "-o", str(output), "--force", "--quiet", "--threads", "2"]) == 0
    assert output.read_bytes() == TEXT
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


def test_a_bad_archive_is_one_line_and_leaves_no_file(capsys, tmp_path, archive):
    content, bad, output = archive.read_bytes(), tmp_path / "bad.cl", tmp_path / "out"
    middle = len(content) // 2
    for damaged in (
        content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
        content[:-1],
        content[:middle],
        content + b"\0",
        b"",
        b"PK\x03\x04" + content[4:],
    ):
        bad.write_bytes(damaged)
        assert str(bad) in refused(capsys, 2, bad, "-o", output)
        assert [path.name for path in tmp_path.iterdir()] == ["bad.cl"]
    for missing in (tmp_path / "none.cl", tmp_path):
        assert str(missing) in refused(capsys, 2, missing, "-o", output)
        assert not output.exists()


def test_a_bad_archive_leaves_an_earlier_output_untouched(capsys, tmp_path, archive):
    bad, output = tmp_path / "bad.cl", tmp_path / "out"
    bad.write_bytes(archive.read_bytes()[:-1])
    output.write_bytes(b"earlier")
    refused(capsys, 2, bad, "-o", output, "--force")
    assert output.read_bytes() == b"earlier"


def test_an_archive_of_another_machine_is_one_line(capsys, tmp_path, archive):
    def other_machine(head, sections):
        head["predictor_sha256"] = "0" * 64
        head["environment"] = {"torch": "1.2.3", "cpu": "VSX\nsecond line"}

    foreign = repacked(archive.read_bytes(), tmp_path / "foreign.cl", other_machine)
    assert "torch 1.2.3, cpu VSX" in refused(capsys, 2, foreign, "-o", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_existing_output_is_kept_unless_forced(capsys, tmp_path, archive):
    output = tmp_path / "out"
    output.write_bytes(b"earlier")
    assert "--force" in refused(capsys, 2, archive, "-o", output)
    assert output.read_bytes() == b"earlier"
    assert main(["decompress", str(archive), "-o", str(output), "--force"]) == 0
    assert output.read_bytes() == TEXT


@pytest.mark.parametrize("force", [[], ["--force"]])
def test_a_place_for_no_file_is_refused(capsys, tmp_path, archive, force):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for output in (tmp_path / "missing" / "out", tmp_path, archive / "out", pipe):
        refused(capsys, 2, archive, "-o", output, *force)
    assert pipe.is_fifo()
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]


def test_a_full_disk_is_one_line_and_leaves_what_was_there(capsys, tmp_path, archive):
    output = tmp_path / "out"
    output.write_bytes(b"earlier")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        message = refused(capsys, 1, archive, "-o", output, "--force")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "not written" in message
    assert output.read_bytes() == b"earlier"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_mode_and_a_link_stay_and_long_names_work(tmp_path, archive):
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_bytes(b"earlier")
    target.chmod(0o600)
    link.symlink_to(target)
    assert main(["decompress", str(archive), "-o", str(link), "--force", "--quiet"]) == 0
    assert link.is_symlink() and target.read_bytes() == TEXT and target.stat().st_mode & 0o777 == 0o600
    long = tmp_path / ("n" * 250)
    assert main(["decompress", str(archive), "-o", str(long), "--quiet"]) == 0
    assert long.read_bytes() == TEXT


def test_an_output_that_cannot_be_written_is_found_before_the_archive_is_read(capsys, tmp_path):
    broken, link = tmp_path / "broken.cl", tmp_path / "link"
    broken.write_bytes(b"no archive")
    link.symlink_to(tmp_path / "missing" / "out")
    for output in (tmp_path / ("n" * 300), link, Path("/proc/out")):
        assert str(output) in refused(capsys, 2, broken, "-o", output)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken.cl", "link"]


def test_standard_input_and_output_are_files_too(tmp_path, archive):
    command = [sys.executable, "-m", "launch", "decompress", "-", "-o", "-"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, input=archive.read_bytes(), capture_output=True, cwd=tmp_path, env=environment)
    assert (done.returncode, done.stdout) == (0, TEXT)
    assert done.stderr.decode() == f"-: {len(TEXT)} bytes, SHA-256 verified\n"
    done = subprocess.run(command, input=b"no archive", capture_output=True, cwd=tmp_path, env=environment)
    assert (done.returncode, done.stdout, done.stderr.count(b"\n")) == (2, b"", 1)


@pytest.mark.parametrize("threads", ["9" * 5000, "9" * 20, "0", "-1", "two", "1.5"])
def test_a_bad_number_of_threads_is_refused(capsys, tmp_path, archive, threads):
    with pytest.raises(SystemExit) as caught:
        main(["decompress", str(archive), "-o", str(tmp_path / "out"), f"--threads={threads}"])
    assert caught.value.code == 2
    assert "whole number, at least 1" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_fresh_processes_decode_with_any_threads_and_never_wrongly_on_other_arithmetic(tmp_path, archive):
    one = fresh(archive, tmp_path / "one", "--threads", "1")
    two = fresh(archive, tmp_path / "two", "--threads", "2", OMP_NUM_THREADS="2")
    # Kernels without vector instructions sum in another order, as on another processor.
    other = fresh(archive, tmp_path / "other", ATEN_CPU_CAPABILITY="default", ONEDNN_MAX_CPU_ISA="SSE41")
    for process, name in ((one, "one"), (two, "two")):
        _, error = process.communicate(timeout=120)
        assert (process.returncode, error) == (0, "")
        assert hashlib.sha256((tmp_path / name).read_bytes()).digest() == hashlib.sha256(TEXT).digest()
    _, error = other.communicate(timeout=120)
    if other.returncode:
        assert other.returncode == 2
        assert error.startswith(f"codelength: {archive}: this machine computes ")
        assert "ATEN_CPU_CAPABILITY default" in error
        assert error.count("\n") == 1
        assert not (tmp_path / "other").exists()
    else:
        assert (tmp_path / "other").read_bytes() == TEXT
