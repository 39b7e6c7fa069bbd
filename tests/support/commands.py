"""Commands as a user types them, and the settings of a run that takes seconds."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

from tests.support.processes import python, result_of

ROOT = Path(__file__).parents[2]
SUBSET_BYTES, HELDOUT_BYTES = 20300, 4000
SMALL = (
    f"corpus.subset_bytes={SUBSET_BYTES}",
    f"corpus.heldout_bytes={HELDOUT_BYTES}",
    "model.width=32",
    "model.layers=2",
    "model.context=128",
    "eval.chunk_bytes=128",
    "train.epochs=3",
    "train.batch_schedule=[[0,512],[10000,1024]]",
    "train.finetune_epochs=0.5",
    "prune.sample_sequences=8",
    "eval.lanes=8",
)


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
