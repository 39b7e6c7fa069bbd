"""Shared fixtures: one small run made by `make demo`, the way a user makes it."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from processes import python, result_of

ROOT = Path(__file__).parents[1]
SMALL = (
    "corpus.subset_bytes=40300",
    "corpus.heldout_bytes=5000",
    "model.width=32",
    "model.layers=2",
    "train.epochs=3",
    "train.finetune_epochs=0.5",
    "prune.sample_sequences=8",
    "eval.lanes=8",
)


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def workspace(tmp_path_factory) -> Path:
    """A folder like a fresh clone (configurations, Makefile, sources) whose `.venv` is the one that runs the tests."""
    folder = tmp_path_factory.mktemp("clone") / "codelength"
    ignored = shutil.ignore_patterns(".git", ".venv", "runs", "data", "__pycache__", "*.egg-info")
    shutil.copytree(ROOT, folder, ignore=ignored, copy_function=shutil.copy2)
    (folder / ".venv").symlink_to(Path(sys.prefix))
    return folder


def run_command(command: str, folder: Path, **environment: str) -> subprocess.CompletedProcess:
    """Run a shell line in `folder` with the scripts of this Python first on PATH."""
    words = shlex.split(command)
    if words[0] == "codelength" and not set(command) & set("|&;<>$*"):
        return result_of(python("-m", "launch", *words[1:], cwd=folder, env=environment), timeout=300)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    # `make test` runs this: a make inside it must not take itself for a part of the outer one.
    inherited = {key: value for key, value in os.environ.items() if key not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    settings = inherited | {"PATH": path, "OMP_NUM_THREADS": "1"} | environment
    return subprocess.run(
        ["bash", "-c", command], cwd=folder, env=settings, capture_output=True, text=True, timeout=300
    )


@pytest.fixture(scope="session")
def demo(workspace) -> subprocess.CompletedProcess:
    """What `make demo` printed, at a size of seconds: two processes, R-L1, TAMADE, archive, table, figures."""
    return run_command("make demo", workspace, DEMO=" ".join(SMALL))


@pytest.fixture(scope="session")
def demo_run(demo, workspace) -> Path:
    """The run directory of the small demo."""
    assert demo.returncode == 0, demo.stdout + demo.stderr
    return workspace / "runs" / "demo"
