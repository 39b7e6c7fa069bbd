"""Shared fixtures: one small run made by `make demo`, the way a user makes it."""

import fcntl
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.support.commands import ROOT, SMALL, run_command

# Threads that spin while they wait take the cores that other workers need, twenty times what they compute with.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# Files that take longest are begun with, so that no worker is left alone with one of them at the end.
LONGEST = (
    *("slurm", "online", "pages", "resume", "sweep", "deepspeed", "compare", "wheel", "train", "crossover", "plan"),
    *(
        "signals",
        "portable",
        "stepping",
        "code_length",
        "audit",
        "doctor",
        "demo",
        "data",
        "faults",
        "teacher",
        "ahead",
    ),
    *("ahead", "precision", "places", "workers", "cli_archive", "phase", "stopping", "mixture", "fuzz"),
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


@pytest.fixture(scope="session")
def demo(workspace) -> subprocess.CompletedProcess:
    """What `make demo` printed, at a size of seconds: two processes, R-L1, TAMADE, archive, table, figures."""
    return subprocess.CompletedProcess("make demo", *json.loads((workspace.parent / "demo.json").read_text()))


@pytest.fixture(scope="session")
def demo_run(demo, workspace) -> Path:
    """The run directory of the small demo."""
    assert demo.returncode == 0, demo.stdout + demo.stderr
    return workspace / "runs" / "demo"
