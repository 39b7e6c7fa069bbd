"""Every command of the README does what it says, in a fresh folder, at a size of seconds."""

import shlex
import socket
import subprocess
import time
import urllib.request
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import ROOT, SMALL, run_command

COMMANDS = [line[2:] for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("$ ")]
TRAINING = ("codelength data", "codelength train", "codelength send", "torchrun")
# Tested elsewhere: make demo and tensorboard in their own ways, sweeps (hours at their size) in tests/test_sweep.py and
# test_compare.py, the audit (a dozen processes) in tests/test_audit.py, the crossover (two runs) in test_crossover.py,
# teacher and students in test_teacher.py, doctor (which measures this machine) in test_doctor.py.
NOT_HERE = (
    "make",
    "tensorboard",
    "codelength sweep configs/sweeps/alpha.yaml --at-a-time",
    "codelength sweep configs/sweeps/table3.yaml --at-a-time",
    "codelength audit",
    "codelength crossover",
    "codelength teacher",
    "codelength doctor",
)
# The README's own sizes take minutes; these settings leave the commands as they are and shrink the work.
SHRINK = {"1200000": "20000", "300000": "12000"}
SMALLER = " ".join(s for s in SMALL if not s.startswith(("corpus.subset", "prune", "train.finetune")))


@pytest.fixture(scope="module")
def folder(workspace, demo_run) -> Path:
    articles = [f"_START_ARTICLE_\nArticle {i}\n_START_PARAGRAPH_\nText number {i * i}." for i in range(1200)]
    table = pa.table({"wikidata_id": [f"Q{i}" for i in range(1200)], "text": articles, "version_id": ["0"] * 1200})
    source = workspace / "wiki40b-en"
    source.mkdir()
    for split in ("train", "validation", "test"):
        pq.write_table(table, source / f"{split}-00000-of-00001.parquet")
    return workspace


def shrunk(command: str) -> str:
    for large, small in SHRINK.items():
        command = command.replace(f"subset_bytes={large}", f"subset_bytes={small}")
    if command.startswith("codelength submit"):
        # tests/test_slurm.py submits for real.
        command += " --dry-run"
    if command.startswith(TRAINING):
        command += f" {SMALLER}"
        if "wiki40b" in command:
            command += " corpus.subset_bytes=40000 model.heads=2 train.batch_sequences=8"
    return command


def test_the_readme_has_the_commands_of_every_step():
    words = " ".join(COMMANDS)
    for step in ("make demo", "make test", "data", "train", "torchrun", "eval", "table", "plot", "compress"):
        assert step in words


def test_make_test_runs_lint_and_the_whole_suite(workspace):
    printed = run_command("make --dry-run test", workspace).stdout
    assert (
        "ruff check ." in printed
        and "ruff format --check ." in printed
        and ".venv/bin/pytest" in printed.splitlines()[-1]
    )


@pytest.mark.parametrize("command", [c for c in COMMANDS if not c.startswith(NOT_HERE)])
def test_a_command_of_the_readme_works(folder, command):
    done = run_command(shrunk(command), folder)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


def test_what_the_readme_decodes_is_what_was_coded(folder):
    assert (folder / "README.copy").read_bytes() == (folder / "README.md").read_bytes()
    assert len((folder / "heldout.txt").read_bytes()) == 5000
    assert (folder / "README.received").read_bytes() == (folder / "README.md").read_bytes()
    assert len((folder / "wiki.txt").read_bytes()) == int(SHRINK["300000"])


def test_tensorboard_shows_the_runs(folder):
    command = next(c for c in COMMANDS if c.startswith("tensorboard"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen(
        [str(folder / ".venv" / "bin" / "tensorboard"), *shlex.split(command)[1:], "--port", str(port)],
        cwd=folder,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 60
        found = ""
        while "demo" not in found and time.monotonic() < deadline:
            time.sleep(0.5)
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/data/plugin/scalars/tags", timeout=5) as answer:
                    found = answer.read().decode()
            except OSError:
                continue
        for tag in ("loss_bits_per_byte", "online_bits", "nonzeros/blocks.0.qkv.weight", "tokens_per_second"):
            assert tag in found
    finally:
        server.terminate()
        server.wait(timeout=30)
