"""`--processes N`: a rank that is lost ends the command within seconds, with words about which one and why."""

import os
import signal
import sys
import time
from pathlib import Path

import psutil
import pytest

from launch.jobs import torchrun as workers
from tests.support.commands import ROOT
from tests.support.processes import python

READY = """
import os, signal, sys, time
rank = os.environ["RANK"]
def ready():
    with open(f"{os.environ['FOLDER']}/{rank}.tmp", "w") as file:
        file.write(str(os.getpid()))
    os.rename(file.name, file.name[:-4])
"""
IN_A_SUM = """
import torch, torch.distributed as dist
dist.init_process_group("gloo")
ready()
try:
    while True:
        dist.all_reduce(torch.ones(1))
        time.sleep(0.01)
except RuntimeError:
    # As ranks leave: destructors of a broken group may abort.
    print("lost the other ranks", file=sys.stderr, flush=True)
    os._exit(1)
"""
# As under NCCL, nothing notices that another rank is gone, and nothing listens.
DEAF = "signal.signal(signal.SIGTERM, signal.SIG_IGN); ready(); time.sleep(600)"
SAVING = """
def save(number, frame):
    time.sleep(0.3)
    open(f"{os.environ['FOLDER']}/saved-{rank}", "w").close()
    os._exit(1)
signal.signal(signal.SIGINT, save)
signal.signal(signal.SIGTERM, save)
ready()
time.sleep(600)
"""


class Command:
    """A command that runs `program` in two processes, as `codelength train` does."""

    def __init__(self, folder: Path, program: str):
        (folder / "program.py").write_text(READY + program)
        text = "import sys; from launch.jobs.torchrun import run_here; sys.exit(run_here('program', [], 2))"
        paths = f"{folder}{os.pathsep}{ROOT}"
        self.process = python("-c", text, cwd=ROOT, env={"FOLDER": str(folder), "PYTHONPATH": paths})
        files = [folder / "0", folder / "1"]
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not all(path.exists() for path in files):
            time.sleep(0.02)
        self.ranks = [int(path.read_text()) for path in files]

    def end(self) -> tuple[int, str, float]:
        """Exit status, what it said, and the seconds that it took; no rank is left."""
        start = time.monotonic()
        _, said = self.process.communicate(timeout=60)
        assert not any(psutil.pid_exists(pid) for pid in self.ranks)
        return self.process.returncode, said, time.monotonic() - start


@pytest.mark.parametrize(
    ("program", "number", "words"),
    [
        (IN_A_SUM, signal.SIGKILL, "SIGKILL: most likely the kernel, out of memory"),
        (SAVING, signal.SIGABRT, "SIGABRT: a library has given up; with NCCL"),
        (SAVING, signal.SIGSEGV, "SIGSEGV: a crash inside a library"),
    ],
)
def test_a_rank_that_is_killed_is_named_and_the_others_end_within_seconds(tmp_path, program, number, words):
    command = Command(tmp_path, program)
    os.kill(command.ranks[1], number)
    status, said, seconds = command.end()
    assert status == 1 and seconds < 15
    lines = [line for line in said.splitlines() if line != "lost the other ranks"]
    assert len(lines) == 1, lines
    line = lines[0]
    assert line.startswith(f"codelength: rank 1 was ended by {words}") and line.endswith("; the same command goes on")


def test_a_rank_that_neither_notices_nor_listens_is_ended(tmp_path):
    command = Command(tmp_path, DEAF)
    os.kill(command.ranks[0], signal.SIGKILL)
    status, said, seconds = command.end()
    assert status == 1 and len(said.splitlines()) == 1 and "rank 0 was ended by SIGKILL" in said
    assert seconds < workers.SECONDS_TO_NOTICE + workers.SECONDS_TO_END + 5


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_ranks_that_are_told_to_stop_have_time_to_save(tmp_path, number):
    command = Command(tmp_path, SAVING)
    command.process.send_signal(number)
    status, said, _ = command.end()
    assert status == 1 and said == "" and all((tmp_path / f"saved-{rank}").exists() for rank in range(2))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells children")
def test_ranks_whose_command_is_killed_save(tmp_path):
    command = Command(tmp_path, SAVING)
    command.process.kill()
    command.process.communicate()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and not all((tmp_path / f"saved-{rank}").exists() for rank in range(2)):
        time.sleep(0.05)
    assert all((tmp_path / f"saved-{rank}").exists() for rank in range(2))
