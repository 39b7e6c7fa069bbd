"""Locks: one writer at a time, named to the others; a dead one loses its lock, also on another machine."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from harness import lock as lock_module
from harness.errors import RunFailure, UsageError
from harness.lock import LOCK_FILE, DirectoryLock, locked

HOLD = """
import sys, time
from pathlib import Path
from harness.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""
RACE = """
import sys, time
from pathlib import Path
from harness.errors import UsageError
from harness.lock import locked
folder = Path(sys.argv[1])
for turn in range(200):
    try:
        with locked(folder):
            inside = folder / "inside"
            inside.mkdir()
            time.sleep(0.001)
            inside.rmdir()
    except UsageError:
        time.sleep(0.001)
"""


def holding(folder):
    """A process that has the lock of a folder."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.strip() == "held":
            return process
    raise AssertionError("the lock was not taken")


def test_a_second_process_is_refused_with_the_name_of_the_first(tmp_path):
    process = holding(tmp_path)
    with pytest.raises(UsageError, match=f"in use by process {process.pid} on "):
        DirectoryLock(tmp_path).acquire()
    process.kill()
    process.wait()


def test_the_lock_of_a_killed_process_is_taken_over_at_once_and_said(tmp_path, capsys):
    process = holding(tmp_path)
    process.send_signal(signal.SIGKILL)
    process.wait()
    with locked(tmp_path):
        assert f"taken over from process {process.pid} on " in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_a_holder_on_another_machine_loses_its_lock_by_silence_only(tmp_path):
    path = tmp_path / LOCK_FILE
    path.write_text(json.dumps({"host": "elsewhere", "pid": 1, "job": "", "token": "x"}))
    with pytest.raises(UsageError, match="in use by process 1 on elsewhere"):
        DirectoryLock(tmp_path).acquire()
    long_ago = time.time() - lock_module.SECONDS_OF_SILENCE - 5
    os.utime(path, (long_ago, long_ago))
    lock = DirectoryLock(tmp_path)
    assert "taken over from process 1 on elsewhere" in lock.acquire()
    lock.release()


def test_a_job_that_was_started_again_takes_over_from_its_start_on_another_machine(tmp_path, monkeypatch):
    (tmp_path / LOCK_FILE).write_text(json.dumps({"host": "elsewhere", "pid": 1, "job": "77", "token": "x"}))
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    lock = DirectoryLock(tmp_path)
    assert "job 77" in lock.acquire()
    lock.release()


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff" * 99])
def test_a_lock_file_of_something_else_is_respected_until_it_is_old(tmp_path, content):
    path = tmp_path / LOCK_FILE
    path.write_bytes(content)
    with pytest.raises(UsageError, match="in use by"):
        DirectoryLock(tmp_path).acquire()
    os.utime(path, (0, 0))
    lock = DirectoryLock(tmp_path)
    lock.acquire()
    lock.release()


def test_who_has_lost_the_lock_is_told(tmp_path):
    with locked(tmp_path) as lock:
        lock.check()
        (tmp_path / LOCK_FILE).unlink()
        with locked(tmp_path), pytest.raises(RunFailure, match="taken this directory over"):
            lock.check()


def test_signs_of_life_are_given(tmp_path, monkeypatch):
    monkeypatch.setattr(lock_module, "SECONDS_BETWEEN_SIGNS", 0.05)
    with locked(tmp_path):
        os.utime(tmp_path / LOCK_FILE, (0, 0))
        time.sleep(0.5)
        assert (tmp_path / LOCK_FILE).stat().st_mtime > 0


def test_processes_that_race_for_a_lock_are_never_inside_together(tmp_path):
    racers = [
        subprocess.Popen([sys.executable, "-c", RACE, str(tmp_path)], stderr=subprocess.PIPE, stdout=subprocess.PIPE)
        for _ in range(4)
    ]
    for racer in racers:
        _, errors = racer.communicate(timeout=60)
        assert racer.returncode == 0, errors.decode()[-500:]


def test_waiting_ends_when_the_holder_does(tmp_path):
    process = holding(tmp_path)
    told = []

    def tell(text):
        told.append(text)
        process.kill()
        process.wait()

    lock = DirectoryLock(tmp_path)
    lock.wait(tell)
    lock.release()
    assert len(told) == 1 and "waiting" in told[0]
