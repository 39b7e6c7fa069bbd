"""Checkpoints: directories that count only once their marker is written.

A checkpoint is written to `checkpoints/step-NNNNNNNN.tmp`, made durable, renamed, and then marked with COMMITTED.
"""

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from harness.backends.base import Backend
from harness.distributed import Ranks
from harness.errors import RunFailure, UsageError

FORMAT_VERSION = 1
MARKER = "COMMITTED"
STATE_FILE = "state.json"


@dataclass(kw_only=True)
class RunState:
    """Where a run is; everything besides weights and optimizer state that a resumed run needs."""

    step: int
    """Optimizer steps done, which is also the position in the order."""
    pruned: bool
    """Whether the prune phase is over."""
    first_nats_sum: float
    """Nats of all first visits so far, over all ranks."""
    first_raw_bytes: int
    """Bytes of text first visited so far, over all ranks."""
    ledger_parts: list[int]
    """Number of ledger parts of each rank that belong to the steps done."""
    world_size: int
    fingerprint: str
    """SHA-256 of the training shard."""
    config_sha256: str
    format_version: int = FORMAT_VERSION


def save_checkpoint(run_dir: Path, state: RunState, backend: Backend, ranks: Ranks, keep: int) -> Path:
    """Save on all ranks; only the newest `keep` committed checkpoints remain.

    Raises RunFailure where writing fails; earlier checkpoints are then untouched.
    """
    final = run_dir / "checkpoints" / f"step-{state.step:08d}"
    temporary = final.with_suffix(".tmp")
    error = None
    try:
        if ranks.is_first:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
        ranks.barrier()
        backend.save(temporary)
    except OSError as failure:
        error = failure
    if ranks.any(error is not None):
        raise RunFailure(f"{final}: not saved ({error or 'another rank failed'}); free some disk space and start again")
    if ranks.is_first:
        _commit(temporary, final, state)
        for old in committed_checkpoints(run_dir)[:-keep]:
            (old / MARKER).unlink()
            shutil.rmtree(old)
    ranks.barrier()
    return final


def committed_checkpoints(run_dir: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(marker.parent for marker in (run_dir / "checkpoints").glob(f"step-*/{MARKER}"))


def read_state(checkpoint: Path, expected: RunState) -> RunState:
    """The saved state, checked against the run that wants to go on.

    Raises UsageError naming what differs.
    """
    try:
        state = RunState(**json.loads((checkpoint / STATE_FILE).read_text()))
    except (OSError, ValueError, TypeError):
        raise UsageError(f"{checkpoint}: damaged; remove this directory to go on from the one before") from None
    for key in ("format_version", "world_size", "fingerprint", "config_sha256"):
        saved, wanted = getattr(state, key), getattr(expected, key)
        if saved != wanted:
            raise UsageError(f"{checkpoint}: saved with {key}={saved}, now {wanted}; use the same, or another name=...")
    return state


def _commit(temporary: Path, final: Path, state: RunState) -> None:
    (temporary / STATE_FILE).write_text(json.dumps(asdict(state)))
    for path in (*temporary.iterdir(), temporary):
        _sync(path)
    shutil.rmtree(final, ignore_errors=True)
    temporary.rename(final)
    (final / MARKER).touch()
    _sync(final)
    _sync(final.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
