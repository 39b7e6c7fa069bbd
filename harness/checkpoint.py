"""Checkpoints: directories that count only once their marker is written.

A checkpoint is written to `checkpoints/step-NNNNNNNN.tmp`, made durable, renamed, and then marked: COMMITTED lists the
SHA-256 of every file. `state.json` is the same for all ranks; `rank-RRRRR.pt` holds what is a rank's own: its partition
of weights and optimizer state, its random numbers, its running sums.
"""

import errno
import hashlib
import json
import os
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from harness.distributed import Ranks
from harness.errors import RunFailure, UsageError

FORMAT_VERSION = 4
MARKER = "COMMITTED"
STATE_FILE = "state.json"
SMALL_FILE_BYTES = 1 << 16


@dataclass(kw_only=True)
class RunState:
    """Where a run is, as all ranks agree."""

    step: int = 0
    """Optimizer steps done, which is also the position in the order."""
    prunings: int = 0
    """How often it has been pruned."""
    first_nats_sum: float = 0.0
    """Nats of all first visits that have been logged, over all ranks."""
    first_raw_bytes: int = 0
    """Bytes of text of these visits."""
    grid_steps: dict[str, float] = field(default_factory=dict)
    """By tensor, the step of the grid that fine-tuning keeps its weights on."""
    ledger_parts: list[int] = field(default_factory=list)
    """Number of ledger parts of each rank that belong to the steps done."""
    recent_loss_nats: list[float] = field(default_factory=list)
    """Losses that decide whether a phase has converged."""
    identity: dict[str, str]
    """What a run that goes on must share with the one that was saved."""
    format_version: int = FORMAT_VERSION


def save_checkpoint(run_dir: Path, state: RunState, rank_state: dict, ranks: Ranks, keep: int) -> Path:
    """Save on all ranks; only the newest `keep` committed checkpoints remain.

    `rank_state` is what `torch.load(weights_only=True)` takes back. Raises RunFailure on every rank where writing fails
    on any of them; what was saved before is then untouched.
    """
    final = checkpoint_path(run_dir, state.step)
    temporary = final.with_suffix(".tmp")
    name = f"rank-{ranks.rank:05d}.pt"
    _together(ranks, final, _start, temporary, ranks.is_first)
    digest = _together(ranks, final, _write, temporary / name, lambda file: torch.save(rank_state, file))
    digests = dict(ranks.gather((name, digest)))
    _together(ranks, final, _commit, temporary, final, state, digests, keep, ranks.is_first)
    return final


def checkpoint_path(run_dir: Path, step: int) -> Path:
    """Directory of the checkpoint after `step` steps."""
    return run_dir / "checkpoints" / f"step-{step:08d}"


def committed_checkpoints(run_dir: Path) -> list[Path]:
    """Checkpoints with their marker, oldest first."""
    return sorted(marker.parent for marker in (run_dir / "checkpoints").glob(f"step-{8 * '[0-9]'}/{MARKER}"))


def newest_checkpoint(run_dir: Path, ranks: Ranks) -> tuple[Path | None, list[str]]:
    """The newest checkpoint whose files are all as they were written, and a message for every newer one.

    Damaged ones lose their marker, so that they count neither here nor among those that are kept.
    """
    messages = []
    while True:
        newest = ranks.share(next(reversed(committed_checkpoints(run_dir)), None) if ranks.is_first else None)
        if newest is None:
            return None, messages
        damaged = [text for text in ranks.gather(_damage(newest, ranks)) if text]
        if not damaged:
            return newest, messages
        messages.append(f"{newest}: damaged ({damaged[0]}), left out")
        if ranks.is_first:
            (newest / MARKER).unlink()


def read_state(checkpoint: Path, identity: dict[str, str], remedy: str) -> RunState:
    """The saved state, checked against the job that wants to go on.

    Raises UsageError naming what differs, and the `remedy` besides going back to what was.
    """
    content = json.loads((checkpoint / STATE_FILE).read_text())
    version, saved = content.get("format_version"), content.get("identity", {})
    changed = [
        f"{key}: {saved.get(key)} -> {identity.get(key)}"
        for key in sorted(saved.keys() | identity.keys())
        if saved.get(key) != identity.get(key)
    ]
    if version != FORMAT_VERSION:
        changed.insert(0, f"format_version: {version} -> {FORMAT_VERSION}")
    if changed:
        raise UsageError(
            f"{checkpoint}: saved in another setting ({'; '.join(changed)}); go on in the old one, or {remedy}"
        )
    return RunState(**content)


def read_rank_state(checkpoint: Path, rank: int) -> dict:
    """What a rank gave to `save_checkpoint`."""
    path = checkpoint / f"rank-{rank:05d}.pt"
    return torch.load(path, map_location="cpu", weights_only=True)


def sha256(path: Path) -> str:
    """Digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _damage(checkpoint: Path, ranks: Ranks) -> str:
    """What is wrong with this rank's share of the files, or nothing."""
    try:
        digests = json.loads((checkpoint / MARKER).read_text())
        if STATE_FILE not in digests:
            return f"{MARKER} is incomplete"
        for name, digest in sorted(digests.items())[ranks.rank :: ranks.world_size]:
            if sha256(checkpoint / name) != digest:
                return f"{name} is not what was written"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, ValueError, TypeError, AttributeError):
        return f"{MARKER} or a file is not readable"
    return ""


def _together(ranks: Ranks, final: Path, work, *arguments: object) -> object:
    """Run `work` on every rank; where it fails on one, all of them say so and stop together."""
    failure, result = "", None
    try:
        result = work(*arguments)
    except OSError as error:
        failure = f"rank {ranks.rank}: {error.strerror}"
    except RuntimeError as error:
        # What torch.save makes of a write that fails.
        is_full = shutil.disk_usage(final.parent).free < SMALL_FILE_BYTES
        failure = f"rank {ranks.rank}: {os.strerror(errno.ENOSPC) if is_full else str(error).splitlines()[0]}"
    failures = [text for text in ranks.gather(failure) if text]
    if failures:
        if ranks.is_first:
            shutil.rmtree(final.with_suffix(".tmp"), ignore_errors=True)
        raise RunFailure(
            f"{final}: not saved ({failures[0]}); earlier checkpoints are untouched: free some disk space and start "
            "the same command again"
        )
    return result


def _start(temporary: Path, is_first: bool) -> None:
    if is_first:
        for leftover in temporary.parent.glob("step-*.tmp"):
            shutil.rmtree(leftover)
        temporary.mkdir(parents=True)


def _write(path: Path, write) -> str:
    """Write a file durably; returns the digest of what can be read back."""
    with path.open("wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    return sha256(path)


def _commit(temporary: Path, final: Path, state: RunState, digests: dict[str, str], keep: int, is_first: bool) -> None:
    if not is_first:
        return
    text = json.dumps(asdict(state)).encode()
    digests |= {STATE_FILE: _write(temporary / STATE_FILE, lambda file: file.write(text))}
    _sync(temporary)
    shutil.rmtree(final, ignore_errors=True)
    temporary.rename(final)
    _sync(final.parent)
    marker = final / f"{MARKER}.tmp"
    _write(marker, lambda file: file.write(json.dumps(digests).encode()))
    marker.rename(final / MARKER)
    _sync(final)
    # Only now that the new one counts may old ones go; without a marker they are rubbish of a killed run.
    kept = set(committed_checkpoints(final.parent.parent)[-keep:])
    for old in sorted(final.parent.glob("step-*")):
        if old not in kept:
            (old / MARKER).unlink(missing_ok=True)
            shutil.rmtree(old)


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
