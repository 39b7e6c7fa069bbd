"""Signals at every moment: one line and no traceback where there is nothing to save, a checkpoint where there is."""

import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.config.run import load_config
from harness.corpus.prepared import prepare_data
from harness.machine.stop import outlive_terminal
from harness.run.checkpoint import committed_checkpoints
from tests.support.commands import ROOT
from tests.support.processes import Process, python

CONFIG = """
corpus: {kind: wiki-mini, subset_bytes: 20300, heldout_bytes: 1000}
model: {width: 32, layers: 1, heads: 1}
train: {batch_sequences: 16, finetune_epochs: 0, precision: fp32, log_every_steps: 1}
"""
# A dry step that takes a second: long enough to meet a signal.
SLOW = ("dry_run=true", "model.width=512", "model.layers=6", "corpus.subset_bytes=400300", "train.batch_sequences=64")
LONG = ("train.epochs=3000",)
LINE = "codelength: interrupted; nothing half-written is left, the same command starts again\n"


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("signals")
    path = folder / "config.yaml"
    path.write_text(CONFIG + f"runs_dir: {folder}/runs\ndata_dir: {folder}/data\n")
    return path


def wait_until(holds: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.01)


def end(process: Process, number: int, seconds: float = 30) -> tuple[int, str]:
    """Exit status and what was said on stderr, after a signal."""
    process.send_signal(number)
    _, said = process.communicate(timeout=seconds)
    return process.returncode, said


def trains(run_dir: Path) -> bool:
    return (run_dir / "metrics.jsonl").exists() and len((run_dir / "metrics.jsonl").read_text().splitlines()) > 2


@pytest.mark.parametrize(
    ("command", "number"),
    [
        (["harness.train"], signal.SIGINT),
        (["launch", "train"], signal.SIGTERM),
        (["launch", "train"], signal.SIGHUP),
        (["launch", "train", "--processes", "2"], signal.SIGINT),
    ],
)
def test_a_signal_in_the_dry_step_is_one_line(config, command, number):
    process = python("-m", *command, config, *SLOW, cwd=ROOT)
    wait_until(lambda: "sizes" in process.printed())
    status, said = end(process, number)
    assert status in (1, 130) and said == LINE


def hears(process: subprocess.Popen, number: int) -> bool:
    """Whether a handler of the process's own waits for a signal; before, Python is still starting."""
    caught = re.search(r"^SigCgt:\s*(\w+)$", Path(f"/proc/{process.pid}/status").read_text(), re.MULTILINE)
    assert caught
    return bool(int(caught[1], 16) >> (number - 1) & 1)


@pytest.mark.parametrize("seconds", [0, 0.3, 0.8])
def test_a_signal_while_libraries_are_imported_is_one_line(config, seconds):
    command = [sys.executable, "-m", "harness.train", str(config), "dry_run=true"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: hears(process, signal.SIGTERM))
    time.sleep(seconds)
    assert end(process, signal.SIGINT) == (130, LINE)


def test_a_rank_that_waits_for_others_hears_a_signal(config):
    # An end while it is prepared would say that what is prepared is kept.
    prepare_data(load_config(config))
    place = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    process = python("-m", "harness.train", config, "dry_run=true", cwd=ROOT, env=place)
    time.sleep(1.5)
    assert end(process, signal.SIGTERM, 15) == (130, LINE)


def test_who_is_asked_to_make_room_says_so_by_its_status(config):
    process = python("-m", "harness.train", config, *SLOW, cwd=ROOT)
    wait_until(lambda: "sizes" in process.printed())
    status, said = end(process, signal.SIGUSR1)
    assert status == 75 and len(said.splitlines()) == 1 and "asked to end for now" in said
    process = python("-m", "launch", "train", "--processes", "2", config, "name=room", *LONG, cwd=ROOT)
    run_dir = config.parent / "runs" / "room"
    wait_until(lambda: trains(run_dir))
    status, said = end(process, signal.SIGUSR1)
    assert status == 75 and "stopped after step" in said.splitlines()[-1] and "Traceback" not in said
    assert committed_checkpoints(run_dir)


def test_what_nohup_ignores_stays_ignored(config):
    arguments = ["train", "--processes", "2", str(config), "name=nohup", "train.epochs=9"]
    # nohup does just this before it starts a command.
    ignoring = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\nfrom launch.main import main\n"
    process = python("-c", f"{ignoring}raise SystemExit(main({arguments}))", cwd=ROOT)
    run_dir = config.parent / "runs" / "nohup"
    wait_until(lambda: trains(run_dir))
    status, _ = end(process, signal.SIGHUP)
    assert status == 0 and (run_dir / "DONE").exists()


@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_run_whose_terminal_is_closed_saves(config, processes):
    run_dir = config.parent / "runs" / f"closed-{processes}"
    command = ["-m", "launch", "train", "--processes", processes, str(config), f"name={run_dir.name}", *LONG]
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(ROOT)
        os.execv(sys.executable, [sys.executable, *command])
    wait_until(lambda: trains(run_dir))
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1
    assert committed_checkpoints(run_dir) and not (run_dir / "DONE").exists()


def test_words_to_a_terminal_that_was_closed_are_lost_and_no_error(monkeypatch):
    other_end, terminal = os.openpty()
    with os.fdopen(terminal, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        outlive_terminal()
        print("shown", flush=True)
        os.close(other_end)
        for _ in range(3):
            print("lost", flush=True)


def test_forked_processes_die_of_signals_in_silence(tmp_path):
    program = """
import multiprocessing, os, signal, time
from harness.machine.stop import PAUSE_SIGNAL, interruptible
with interruptible(PAUSE_SIGNAL):
    for number, expected in ((signal.SIGTERM, -15), (signal.SIGINT, -2)):
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
        child.start()
        time.sleep(0.2)
        os.kill(child.pid, signal.SIGUSR1)
        os.kill(child.pid, number)
        child.join()
        assert child.exitcode == expected, child.exitcode
"""
    process = python("-c", program, cwd=ROOT)
    _, said = process.communicate(timeout=30)
    assert (process.returncode, said) == (0, "")
