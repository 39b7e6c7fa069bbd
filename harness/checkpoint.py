"""Checkpoints: directories that count only once their marker is written.

A checkpoint is written to `checkpoints/step-NNNNNNNN.tmp`, made durable, renamed, and then marked: COMMITTED lists the
SHA-256 of every file. `state.json` is the same for all ranks; `rank-RRRRR.pt` holds what is a rank's own: its partition
of weights and optimizer state, its random numbers, its running sums.
"""

import copy
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import BinaryIO

import torch

from harness.distributed import Ranks
from harness.errors import RunFailure, UsageError
from harness.files import sha256, sync_directory

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


class CheckpointWriter:
    """Saves on all ranks, in a thread of each while they go on; only the newest `keep` committed checkpoints remain."""

    def __init__(self, run_dir: Path, ranks: Ranks, keep: int):
        self.run_dir, self.ranks, self.keep = run_dir, ranks, keep
        self._worker = ThreadPoolExecutor(1, "checkpoint")
        self._state: RunState | None = None
        self._written: Future | None = None

    def start(self, state: RunState, rank_state: dict) -> Path:
        """Copy both and begin to write them; the checkpoint counts once `finish` has been called.

        `rank_state` is what `torch.load(weights_only=True)` takes back. Called on all ranks, as all methods but
        `is_written` and `close`. Raises RunFailure on every rank where writing fails on any of them; what was saved
        before is then untouched.
        """
        self.finish()
        final = checkpoint_path(self.run_dir, state.step)
        temporary = final.with_suffix(".tmp")
        _together(self.ranks, final, _start, temporary, self.ranks.is_first)
        self._state, copied = copy.deepcopy(state), on_host(rank_state)
        path = temporary / f"rank-{self.ranks.rank:05d}.pt"
        self._written = self._worker.submit(_write, path, lambda file: torch.save(copied, file))
        return final

    @property
    def is_written(self) -> bool:
        """Whether this rank's share of a checkpoint that was started lies on the disk."""
        return self._written is not None and self._written.done()

    def finish(self) -> None:
        """Wait for what was started, and make it count."""
        if self._written is None:
            return
        written, self._written = self._written, None
        final = checkpoint_path(self.run_dir, self._state.step)
        name = f"rank-{self.ranks.rank:05d}.pt"
        digests = dict(self.ranks.gather((name, _together(self.ranks, final, written.result))))
        temporary = final.with_suffix(".tmp")
        _together(self.ranks, final, _commit, temporary, final, self._state, digests, self.keep, self.ranks.is_first)

    def close(self) -> None:
        """Let go of the thread."""
        self._worker.shutdown()


def on_host(content: object) -> object:
    """A copy of nested dicts and lists whose tensors are in the memory of the host."""
    if isinstance(content, torch.Tensor):
        return content.detach().to("cpu", copy=True)
    if isinstance(content, dict):
        return {key: on_host(value) for key, value in content.items()}
    return [on_host(value) for value in content] if isinstance(content, list) else content


def save_checkpoint(run_dir: Path, state: RunState, rank_state: dict, ranks: Ranks, keep: int) -> Path:
    """Save on all ranks and wait for it; see `CheckpointWriter`."""
    writer = CheckpointWriter(run_dir, ranks, keep)
    try:
        path = writer.start(state, rank_state)
        writer.finish()
        return path
    finally:
        writer.close()


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


class _Hashed:
    """A file that is written from its beginning to its end, with the digest of what it has got."""

    def __init__(self, file: BinaryIO):
        self._file, self.digest = file, hashlib.sha256()

    def write(self, content: bytes) -> int:
        self.digest.update(content)
        return self._file.write(content)

    def flush(self) -> None:
        self._file.flush()


def _write(path: Path, write: Callable[[_Hashed], object]) -> str:
    """Write a file durably; returns its digest."""
    with path.open("wb") as file:
        hashed = _Hashed(file)
        write(hashed)
        file.flush()
        os.fsync(file.fileno())
    return hashed.digest.hexdigest()


def _commit(temporary: Path, final: Path, state: RunState, digests: dict[str, str], keep: int, is_first: bool) -> None:
    if not is_first:
        return
    text = json.dumps(asdict(state)).encode()
    digests |= {STATE_FILE: _write(temporary / STATE_FILE, lambda file: file.write(text))}
    sync_directory(temporary)
    shutil.rmtree(final, ignore_errors=True)
    temporary.rename(final)
    sync_directory(final.parent)
    marker = final / f"{MARKER}.tmp"
    _write(marker, lambda file: file.write(json.dumps(digests).encode()))
    marker.rename(final / MARKER)
    sync_directory(final)
    # Only now that the new one counts may old ones go; without a marker they are rubbish of a killed run.
    kept = set(committed_checkpoints(final.parent.parent)[-keep:])
    for old in sorted(final.parent.glob("step-*")):
        if old not in kept:
            (old / MARKER).unlink(missing_ok=True)
            shutil.rmtree(old)
