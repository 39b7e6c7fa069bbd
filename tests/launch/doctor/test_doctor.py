"""`codelength doctor` on this machine, and on machines that lack something."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from launch.doctor import checks
from launch.doctor.checks import Finding, run_limited
from launch.doctor.doctor import examined
from launch.doctor.storage import check_disk, check_file_system, file_system_type, try_file_system
from tests.support.commands import ROOT

NAMES = ["python", "torch", "devices", "deepspeed", "compilers", "precision", "training", "threads", "slurm", "disk"]
NAMES += ["file system", "memory", "open files", "all-reduce", "commit"]


def doctor(folder: Path, *options: str, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "launch", "doctor", *options]
    settings = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TMPDIR": str(folder)} | environment
    done = subprocess.run(command, cwd=folder, env=settings, capture_output=True, text=True, timeout=120)
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture
def tiny(tmp_path) -> Iterator[Path]:
    """A file system of 64 kB."""
    place = tmp_path / "tiny"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", place], capture_output=True).returncode:
        pytest.skip("only root may mount")
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


def test_this_machine_has_what_is_necessary_and_nothing_is_left_behind(tmp_path):
    start = time.monotonic()
    done = doctor(tmp_path, "--json")
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - start < 60
    report = json.loads(done.stdout)
    assert report["ok"] is True and [check["name"] for check in report["checks"]] == NAMES
    found = {check["name"]: check for check in report["checks"]}
    assert {check["status"] for check in report["checks"]} <= {"ok", "warn"}
    assert all(check["remedy"] for check in report["checks"] if check["status"] != "ok")
    assert "sums right; gloo " in found["all-reduce"]["found"] and "GB/s" in found["all-reduce"]["found"]
    assert "GFLOP/s" in found["precision"]["found"] and "train.precision=auto is" in found["precision"]["found"]
    assert re.search(r".+: the demo's model at [\d,]+ tokens/s in 1, [\d,]+ tokens/s in 2", found["training"]["found"])
    assert "rename, fsync, O_EXCL and flock work" in found["file system"]["found"]
    assert list(tmp_path.iterdir()) == []


def test_a_broken_torch_is_named_in_table_and_status_without_a_traceback(tmp_path):
    broken = tmp_path / "broken" / "torch"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise ImportError('libtorch.so: no such file')\n")
    done = doctor(tmp_path, PYTHONPATH=f"{broken.parent}{os.pathsep}{ROOT}")
    assert done.returncode == 1
    assert "codelength: torch: cannot be imported: libtorch.so: no such file; pip install" in done.stderr
    for name in NAMES:
        assert any(line.strip().startswith(name) for line in done.stdout.splitlines())
    assert all(line.startswith("codelength: ") for line in done.stderr.splitlines())


def test_a_full_disk_is_missing_and_a_small_one_a_warning(tiny):
    assert check_disk(tiny / "runs").status == "warn"
    assert check_file_system(tiny / "runs").status == "ok"
    with pytest.raises(OSError):
        (tiny / "full").write_bytes(bytes(100_000))
    finding = check_file_system(tiny / "runs")
    assert finding.status == "missing" and "runs_dir" in finding.remedy
    assert finding.found == f"tmpfs at {tiny}: not writable (No space left on device)"
    assert [path.name for path in tiny.iterdir()] == ["full"]


def test_a_place_that_is_read_only_is_missing(tiny):
    subprocess.run(["mount", "-o", "remount,ro", tiny], check=True)
    finding = check_file_system(tiny)
    assert finding.status == "missing" and "not writable (Read-only file system)" in finding.found


def test_a_file_system_that_works_is_tried_and_left_empty_by_its_caller(tmp_path):
    broken, fsync_seconds, step = try_file_system(tmp_path)
    assert broken == [] and 0 < fsync_seconds < 10 and step in (1, 100, 1000)


def test_the_type_of_a_file_system_is_that_of_the_innermost_mount(tiny):
    (tiny / "a").mkdir()
    assert file_system_type(tiny / "a") == "tmpfs"
    assert file_system_type(Path("/proc/self")) == "proc"


@pytest.mark.parametrize(
    ("check", "found", "remedy"),
    [
        (checks.check_compilers, "no g++ and no ninja", "apt install g++ ninja-build"),
        (checks.check_slurm, "no sinfo, no sbatch", "apt install slurm-client"),
        (checks.check_commit, "not known", "apt install git"),
    ],
)
def test_a_missing_tool_is_reported_with_its_remedy(tmp_path, monkeypatch, check, found, remedy):
    monkeypatch.setenv("PATH", str(tmp_path))
    finding = check()
    assert finding.status == "warn" and found in finding.found and remedy in finding.remedy


def test_a_scheduler_that_does_not_answer_is_a_warning(tmp_path, monkeypatch):
    for name, words in (("sinfo", "echo 'slurmctld is down' >&2; exit 1"), ("sbatch", "exit 0")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{words}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    finding = checks.check_slurm()
    assert finding.status == "warn" and "does not answer: slurmctld is down" in finding.found
    (tmp_path / "sinfo").write_text("#!/bin/sh\necho 'main* 2 idle'\n")
    assert checks.check_slurm() == Finding("ok", "answers: main* 2 idle")


def test_threads_that_nobody_limits_are_a_warning(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    finding = checks.check_threads()
    if len(os.sched_getaffinity(0)) > 1:
        assert finding.status == "warn" and finding.remedy.startswith("export OMP_NUM_THREADS=1")
        assert "2 threads are" in finding.found
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert checks.check_threads().status == "ok"


def test_an_all_reduce_that_fails_is_missing(monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "no-such-network")
    finding = checks.check_all_reduce()
    assert finding.status == "missing" and finding.found.startswith("gloo failed: ")
    assert "no-such-network" in finding.found
    assert "GLOO_SOCKET_IFNAME" in finding.remedy


def test_a_check_that_fails_or_hangs_is_a_finding():
    def fails() -> Finding:
        raise ValueError("two\nlines")

    assert examined(fails).found == "failed: ValueError: two lines"
    finding = examined(lambda: time.sleep(30), seconds=0.1)
    assert (finding.status, finding.found) == ("missing", "no answer in 0.1 s")


def test_a_command_over_its_time_is_ended():
    start = time.monotonic()
    assert run_limited(["sleep", "60"], 0.2) == (124, "no answer in 0.2 s")
    assert time.monotonic() - start < 5
    assert run_limited([shutil.which("echo"), "words"], 5) == (0, "words\n")
