"""Shared fixtures: one small run made by `make demo`, the way a user makes it."""

import fcntl
import json
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


# Files that take longest are begun with, so that no worker is left alone with one of them at the end.
LONGEST = (
    "readme",
    "online",
    "resume",
    "slurm",
    "sweep",
    "compare",
    "deepspeed",
    "crossover",
    "doctor",
    "stepping",
    "faults",
    "wheel",
    "signals",
    "train",
    "plan",
    "demo",
    "audit",
    "fuzz",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    rank = {f"test_{name}": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture(autouse=True)
def one_thread_again():
    """Commands that ran in this process may have taken more; what runs compute depends on it."""
    torch.set_num_threads(1)


def _left_behind(folder: str, names: list[str]) -> set[str]:
    """What no clone has: caches everywhere, and at the root data, runs and the environment."""
    left = {"__pycache__"} | ({".git", ".venv", "runs", "data"} if Path(folder) == ROOT else set())
    return {name for name in names if name in left or name.endswith(".egg-info")}


@pytest.fixture(scope="session")
def workspace(tmp_path_factory, worker_id) -> Path:
    """A folder like a fresh clone in which somebody has run `make demo`; its `.venv` is the one that runs the tests.

    Workers of pytest-xdist get a copy each of what the first of them has made.
    """
    own = tmp_path_factory.mktemp("clone") / "codelength"
    shared = tmp_path_factory.getbasetemp() if worker_id == "master" else tmp_path_factory.getbasetemp().parent
    made = shared / "made" / "codelength"
    with (shared / "made.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            shutil.copytree(ROOT, made, ignore=_left_behind)
            (made / ".venv").symlink_to(Path(sys.prefix))
            done = run_command("make demo", made, DEMO=" ".join(SMALL))
            (made.parent / "demo.json").write_text(json.dumps([done.returncode, done.stdout, done.stderr]))
    shutil.copytree(made, own, symlinks=True)
    shutil.copy2(made.parent / "demo.json", own.parent)
    return own


def run_command(command: str, folder: Path, **environment: str) -> subprocess.CompletedProcess:
    """Run a shell line in `folder` with the scripts of this Python first on PATH."""
    words = shlex.split(command)
    if words[0] == "codelength" and not set(command) & set("|&;<>$*"):
        # Like the script, this takes the installed sources and not those of the folder.
        return result_of(python("-P", "-m", "launch", *words[1:], cwd=folder, env=environment), timeout=300)
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
    return subprocess.CompletedProcess("make demo", *json.loads((workspace.parent / "demo.json").read_text()))


@pytest.fixture(scope="session")
def demo_run(demo, workspace) -> Path:
    """The run directory of the small demo."""
    assert demo.returncode == 0, demo.stdout + demo.stderr
    return workspace / "runs" / "demo"
