"""A run that was killed, stopped or damaged goes on as if nothing had happened, or says why it cannot."""

import errno
import json
import os
import random
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

from harness import files
from harness.config.run import load_config
from harness.errors import Paused, RunFailure, UsageError
from harness.files import sha256
from harness.lock import LOCK_FILE, locked
from harness.run import checkpoint as checkpoint_module
from harness.run.checkpoint import MARKER, committed_checkpoints, read_state
from harness.run.directory import check_done
from harness.run.ledger import part_paths
from harness.train import train_run
from harness.trainer import Trainer
from tests.support.ranks import Ranks, assert_same_run, finish, write_config

BACKENDS = {"ddp": (), "zero2": ("backend.name=deepspeed", "backend.zero_stage=2")}
NUM_STEPS = 40


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    """A job of 40 steps that saves a checkpoint after each, with a rule that keeps more than any other."""
    folder = tmp_path_factory.mktemp("resume")
    return write_config(folder, rule="fpp", epochs=3, log_every_steps=3, checkpoint_minutes=1e-9)


def run_dir(config: Path, name: str) -> Path:
    return config.parent / "runs" / name


@pytest.fixture(scope="module")
def whole(config) -> Path:
    """The run that was never stopped."""
    for status, _, errors in finish(2, config, "name=whole"):
        assert status == 0, errors
    return run_dir(config, "whole")


def last_saved(directory: Path) -> int:
    found = committed_checkpoints(directory)
    return int(found[-1].name.split("-")[1]) if found else 0


@pytest.mark.parametrize(("backend", "seed"), [("ddp", 0), ("zero2", 1)])
def test_a_run_killed_at_random_moments_ends_with_the_same_bits(config, whole, backend, seed):
    moment, name = random.Random(seed), f"killed-{backend}-{seed}"
    directory, settings = run_dir(config, name), (f"name={name}", *BACKENDS[backend])
    for _ in range(2):
        target = last_saved(directory) + moment.randrange(1, NUM_STEPS // 2)
        with Ranks(2, config, *settings) as job:
            job.wait_until(lambda target=target: last_saved(directory) >= target)
            # A step with its checkpoint takes about 30 ms: anywhere in it, half-written files included.
            time.sleep(moment.random() * 0.03)
            job.kill()
    ends = finish(2, config, *settings)
    assert [status for status, *_ in ends] == [0, 0], ends
    assert "resume      from step" in ends[0][1]
    assert_same_run(directory, whole)
    ours, theirs = ([json.loads(x) for x in (d / "metrics.jsonl").read_text().splitlines()] for d in (directory, whole))
    keys = ("step", "phase", "loss_nats_sum", "online_bits", "online_raw_bytes", "tokens", "nonzeros")
    assert [[line[key] for key in keys] for line in ours] == [[line[key] for key in keys] for line in theirs]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_dead_or_hung_rank_ends_the_job_in_time(config, whole, how):
    name = f"lost-{how.name}"
    directory = run_dir(config, name)
    with Ranks(2, config, f"name={name}", "backend.timeout_seconds=5", "train.epochs=100") as job:
        job.wait_until(lambda: last_saved(directory) >= 3)
        job.processes[1].send_signal(how)
        started = time.monotonic()
        _, errors = job.processes[0].communicate(timeout=60)
        seconds = time.monotonic() - started
    assert job.processes[0].returncode == 1
    assert "rank 0: lost the other ranks" in errors and "Traceback" not in errors, errors
    assert seconds < 30
    assert committed_checkpoints(directory)


def train(config: Path, name: str, *overrides: str) -> Path:
    """The job on one rank, in this process."""
    train_run(load_config(config, [f"name={name}", "train.micro_batch_sequences=2", *overrides]))
    return run_dir(config, name)


@pytest.fixture(scope="module")
def alone(config, whole) -> Path:
    return train(config, "alone")


@pytest.fixture
def stopped(config, tmp_path, alone) -> Path:
    """A run on one rank that was stopped after two steps, each with a checkpoint."""
    directory = tmp_path / "stopped"
    directory.mkdir()
    for _ in range(2):
        (directory / "STOP").touch()
        with pytest.raises(Paused, match="stopped after step"):
            train(config, "stopped", f"runs_dir={tmp_path}")
    return directory


def test_one_rank_with_two_micro_batches_is_two_ranks_with_one(alone, whole):
    assert_same_run(alone, whole)


def test_a_stop_file_saves_and_is_removed(config, stopped, alone):
    assert not (stopped / "STOP").exists() and not (stopped / "DONE").exists()
    assert [path.name for path in committed_checkpoints(stopped)] == ["step-00000001", "step-00000002"]
    train(config, "stopped", f"runs_dir={stopped.parent}")
    assert (stopped / "DONE").exists()
    assert len(committed_checkpoints(stopped)) == 2
    assert_same_run(stopped, alone)


def truncate(checkpoint: Path) -> None:
    path = checkpoint / "rank-00000.pt"
    path.write_bytes(path.read_bytes()[:-100])


def flip(checkpoint: Path) -> None:
    path = checkpoint / "rank-00000.pt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def remove_state(checkpoint: Path) -> None:
    (checkpoint / "state.json").unlink()


def empty_marker(checkpoint: Path) -> None:
    (checkpoint / MARKER).write_text("")


def foreign_marker(checkpoint: Path) -> None:
    (checkpoint / MARKER).write_text("[1, 2]")


@pytest.mark.parametrize("damage", [truncate, flip, remove_state, empty_marker, foreign_marker])
def test_damaged_checkpoints_are_left_out_and_the_one_before_is_used(config, stopped, alone, capsys, damage):
    before, newest = committed_checkpoints(stopped)
    damage(newest)
    # A directory that a kill left without its marker does not count either, nor does one of a killed writing.
    shutil.copytree(before, stopped / "checkpoints" / "step-00000039", ignore=shutil.ignore_patterns(MARKER))
    shutil.copytree(before, stopped / "checkpoints" / "step-00000038.tmp")
    train(config, "stopped", f"runs_dir={stopped.parent}")
    printed = capsys.readouterr().out
    assert f"{newest}: damaged (" in printed and f"resume      from step 1 ({before})" in printed
    kept = sorted(path.name for path in (stopped / "checkpoints").iterdir())
    assert kept == ["step-00000002.damaged", "step-00000039", "step-00000040"]
    assert len(committed_checkpoints(stopped)) == 2
    assert_same_run(stopped, alone)


class Intruder:
    def __reduce__(self):
        return (Path.touch, (Path("intruded"),))


@pytest.mark.parametrize("content", [{"random": Intruder()}, {"random": {}}, [1]])
def test_a_foreign_checkpoint_is_refused_without_running_what_is_in_it(config, stopped, content, monkeypatch):
    newest = committed_checkpoints(stopped)[-1]
    torch.save(content, newest / "rank-00000.pt")
    digests = json.loads((newest / MARKER).read_text()) | {"rank-00000.pt": sha256(newest / "rank-00000.pt")}
    (newest / MARKER).write_text(json.dumps(digests))
    monkeypatch.chdir(stopped)
    with pytest.raises(UsageError, match="step-00000002: not a checkpoint of this run") as caught:
        train(config, "stopped", f"runs_dir={stopped.parent}")
    assert "\n" not in str(caught.value) and not (stopped / "intruded").exists()


def test_without_any_good_checkpoint_a_run_stops_and_names_the_setting_that_restarts_it(config, stopped, alone):
    for checkpoint in committed_checkpoints(stopped):
        flip(checkpoint)
    for _ in range(2):
        with pytest.raises(UsageError, match=r"no usable checkpoint is left; set train\.on_damage=restart"):
            train(config, "stopped", f"runs_dir={stopped.parent}")
    train(config, "stopped", f"runs_dir={stopped.parent}", "train.on_damage=restart")
    assert not (stopped / LOCK_FILE).exists()
    assert len(list((stopped / "checkpoints").glob("*.damaged"))) == 2
    assert_same_run(stopped, alone)


def gone(part: Path) -> None:
    part.unlink()


def cut(part: Path) -> None:
    part.write_bytes(part.read_bytes()[:-1])


def of_another_time(part: Path) -> None:
    part.write_bytes(part.with_name("part-000000.parquet").read_bytes())


@pytest.mark.parametrize("harm", [gone, cut, of_another_time])
def test_a_ledger_that_a_checkpoint_vouches_for_and_that_is_not_there_is_a_damage(config, stopped, alone, capsys, harm):
    before, newest = committed_checkpoints(stopped)
    part = part_paths(stopped)[1]
    harm(part)
    train(config, "stopped", f"runs_dir={stopped.parent}")
    printed = capsys.readouterr().out
    assert f"{newest}: damaged (ledger part {part} is " in printed and f"from step 1 ({before})" in printed
    assert_same_run(stopped, alone)


def test_a_ledger_that_lost_a_part_before_the_end_does_not_end_with_done(config, stopped, monkeypatch):
    part, real = part_paths(stopped)[0], Trainer._log

    def log(self, phase, with_tensors):
        if self.state.step == self.num_steps:
            part.unlink(missing_ok=True)
        return real(self, phase, with_tensors)

    monkeypatch.setattr(Trainer, "_log", log)
    with pytest.raises(RunFailure, match=f"ledger on the disk is not what was trained .*{part.name} is missing"):
        train(config, "stopped", f"runs_dir={stopped.parent}")
    assert not (stopped / "DONE").exists()


@pytest.mark.parametrize("name", ["weights.safetensors", "ledger/rank-00000/part-000001.parquet", "DONE"])
def test_a_finished_run_whose_files_have_changed_is_not_evaluated(config, alone, tmp_path, name):
    directory = shutil.copytree(alone, tmp_path / "changed")
    path = directory / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(UsageError, match="damaged"):
        check_done(directory)


def failing(times: int, error: int):
    """What reads files, failing so many times."""
    left = [times]

    def read(path: Path) -> str:
        if left[0]:
            left[0] -= 1
            raise OSError(error, os.strerror(error), str(path))
        return sha256(path)

    return read


@pytest.mark.parametrize("error", [errno.ESTALE, errno.EIO])
def test_a_file_system_that_is_away_for_a_moment_costs_nothing(config, stopped, alone, capsys, monkeypatch, error):
    monkeypatch.setattr(checkpoint_module, "sha256", failing(2, error))
    train(config, "stopped", f"runs_dir={stopped.parent}")
    assert "resume      from step 2" in capsys.readouterr().out
    assert_same_run(stopped, alone)


@pytest.mark.parametrize("error", [errno.ESTALE, errno.EACCES])
def test_a_file_system_that_stays_away_ends_the_run_and_changes_nothing(config, stopped, monkeypatch, error):
    before = {path: path.stat().st_mtime_ns for path in (stopped / "checkpoints").rglob("*")}
    monkeypatch.setattr(files, "SECONDS_BETWEEN_TRIES", (0.01, 0.01))
    monkeypatch.setattr(checkpoint_module, "sha256", failing(10, error))
    with pytest.raises(RunFailure, match=f"cannot read .*{os.strerror(error)}.*nothing was changed"):
        train(config, "stopped", f"runs_dir={stopped.parent}")
    assert before == {path: path.stat().st_mtime_ns for path in (stopped / "checkpoints").rglob("*")}


def test_a_second_job_on_a_run_is_refused_and_changes_nothing(config, stopped, alone):
    with locked(stopped):
        before = {path: path.stat().st_mtime_ns for path in stopped.rglob("*") if path.is_file()}
        with pytest.raises(UsageError, match=f"stopped: in use by process {os.getpid()} on "):
            train(config, "stopped", f"runs_dir={stopped.parent}")
        assert before == {path: path.stat().st_mtime_ns for path in stopped.rglob("*") if path.is_file()}
    train(config, "stopped", f"runs_dir={stopped.parent}")
    assert_same_run(stopped, alone)


def test_two_jobs_that_start_together_make_one_run(config, alone):
    """The one that comes first goes on; the other is refused, or finds it complete."""
    settings = ("name=together", "train.micro_batch_sequences=2")
    with Ranks(1, config, *settings) as one, Ranks(1, config, *settings) as other:
        ends = [(job.processes[0], *job.processes[0].communicate(timeout=120)) for job in (one, other)]
    statuses = sorted(process.returncode for process, *_ in ends)
    assert statuses == [0, 2], ends
    assert any("in use by process" in errors for *_, errors in ends)
    assert_same_run(run_dir(config, "together"), alone)


def test_a_job_that_has_lost_its_directory_writes_nothing_more(config, stopped, monkeypatch):
    taken = False

    def log(self, phase, with_tensors):
        nonlocal taken
        if not taken:
            (stopped / LOCK_FILE).unlink()
            taken = True
        return real(self, phase, with_tensors)

    real = Trainer._log
    monkeypatch.setattr(Trainer, "_log", log)
    with pytest.raises(RunFailure, match="another process has taken this directory over"):
        train(config, "stopped", f"runs_dir={stopped.parent}")
    assert not (stopped / "DONE").exists()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("optimizer.learning_rate=0.1", "optimizer.learning_rate: 0.003 -> 0.1"),
        ("backend.name=deepspeed", "backend.name: ddp -> deepspeed"),
        ("seed=3", "seed: 0 -> 3"),
    ],
)
def test_another_configuration_is_refused_by_name(config, stopped, setting, message):
    before = {path: path.stat().st_mtime_ns for path in stopped.rglob("*") if path.is_file()}
    with pytest.raises(UsageError, match=message) as caught:
        train(config, "stopped", f"runs_dir={stopped.parent}", setting)
    assert "\n" not in str(caught.value)
    assert before == {path: path.stat().st_mtime_ns for path in stopped.rglob("*") if path.is_file()}


def test_a_run_that_was_moved_and_renamed_goes_on(config, stopped, alone):
    moved = stopped.with_name("moved")
    stopped.rename(moved)
    train(config, "moved", f"runs_dir={moved.parent}", "train.keep_checkpoints=1")
    assert_same_run(moved, alone)


def test_what_decides_the_bits_is_refused_by_name(stopped):
    checkpoint = committed_checkpoints(stopped)[-1]
    identity = json.loads((checkpoint / "state.json").read_text())["identity"]
    assert {"config", "data", "world_size", "precision", "threads", "torch", "code", "cpu_capability"} <= set(identity)
    for key, value in identity.items():
        with pytest.raises(UsageError, match=re.escape(f"{key}: {value} -> other")) as caught:
            read_state(checkpoint, identity | {key: "other"}, "set name=... for a new run")
        assert "\n" not in str(caught.value)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 12 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(folder)]
    if os.geteuid() != 0:
        pytest.skip("mounting a tmpfs needs root")
    subprocess.run(mount, check=True)
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("free_bytes", [0, 100_000, 1_500_000])
def test_a_full_disk_leaves_the_last_good_checkpoint(config, alone, small_disk, free_bytes):
    directory = small_disk / "full"
    directory.mkdir()
    (directory / "STOP").touch()
    with pytest.raises(Paused):
        train(config, "full", f"runs_dir={small_disk}")
    saved = last_saved(directory)
    free = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize
    (small_disk / "ballast").write_bytes(bytes(free - free_bytes))
    with pytest.raises((RunFailure, OSError), match="No space left") as caught:
        train(config, "full", f"runs_dir={small_disk}")
    assert "\n" not in str(caught.value)
    assert saved <= last_saved(directory) < NUM_STEPS
    (small_disk / "ballast").unlink()
    train(config, "full", f"runs_dir={small_disk}")
    assert_same_run(directory, alone)
