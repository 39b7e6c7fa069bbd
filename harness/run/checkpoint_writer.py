"""Writing checkpoints: in a thread of each rank, durably, and counted only once all ranks are done."""

import copy
import functools
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

import torch

from harness.errors import RunFailure
from harness.files import make_directory, naming, reason, sync_directory
from harness.machine.ranks import Ranks
from harness.run.checkpoint import (
    MARKER,
    STATE_FILE,
    RunState,
    checkpoint_path,
    committed_checkpoints,
    step_directories,
)


class CheckpointWriter:
    """Saves on all ranks, in a thread of each while they go on; only the newest `keep` committed checkpoints remain."""

    def __init__(self, run_dir: Path, ranks: Ranks, keep: int):
        self.run_dir, self.ranks, self.keep = run_dir, ranks, keep
        self._worker = ThreadPoolExecutor(1, "checkpoint")
        self._temporary = Path()
        self._written: tuple[RunState, Future[str]] | None = None

    def start(self, state: RunState, rank_state: dict[str, Any]) -> Path:
        """Copy the states and begin to write them; the checkpoint counts once `finish` was called.

        `rank_state` is what `torch.load(weights_only=True)` takes back. Called on all ranks, as all methods but
        `is_written` and `close`. Raises RunFailure on every rank where writing fails on any of them; what was saved
        before is then untouched.
        """
        self.finish()
        final = checkpoint_path(self.run_dir, state.step)
        self._temporary = final.with_suffix(f".{self.ranks.broadcast(secrets.token_hex(6))}.tmp")
        self._together(final, _start, self._temporary, self.ranks.is_first)
        copied_state, copied = copy.deepcopy(state), on_host(rank_state)
        path = self._temporary / f"rank-{self.ranks.rank:05d}.pt"
        # A file that only writes and flushes is enough for `torch.save`, though not by its types.
        write = functools.partial(torch.save, copied)
        self._written = copied_state, self._worker.submit(_write, path, write)
        return final

    @property
    def is_written(self) -> bool:
        """Whether this rank's part of a checkpoint that was started lies on the disk."""
        return self._written is not None and self._written[1].done()

    def finish(self) -> None:
        """Wait for the writing that was started, and mark the checkpoint as complete."""
        if self._written is None:
            return
        (state, written), self._written = self._written, None
        final = checkpoint_path(self.run_dir, state.step)
        name = f"rank-{self.ranks.rank:05d}.pt"
        digests = dict(self.ranks.gather((name, self._together(final, written.result))))
        self._together(final, _commit, self._temporary, final, state, digests, self.keep, self.ranks.is_first)

    def close(self) -> None:
        """End the thread that writes."""
        self._worker.shutdown()

    def _together(self, final: Path, work: Callable[..., object], *arguments: object) -> object:
        """Run `work` on every rank; where it fails on one, all of them say so and stop together."""
        failure, result = "", None
        try:
            result = work(*arguments)
        except OSError as error:
            failure = f"rank {self.ranks.rank}: {reason(error)}"
        except RuntimeError as error:
            failure = f"rank {self.ranks.rank}: {str(error).splitlines()[0]}"
        failures = [text for text in self.ranks.gather(failure) if text]
        if failures:
            if self.ranks.is_first:
                shutil.rmtree(self._temporary, ignore_errors=True)
            raise RunFailure(
                f"{final}: not saved ({failures[0]}); earlier checkpoints are untouched, and the same command goes on"
            )
        return result


def on_host(content: object) -> object:
    """Copy nested dicts and lists, with their tensors in the memory of the host."""
    if isinstance(content, torch.Tensor):
        return content.detach().to("cpu", copy=True)
    if isinstance(content, dict):
        return {key: on_host(value) for key, value in content.items()}
    return [on_host(value) for value in content] if isinstance(content, list) else content


def save_checkpoint(run_dir: Path, state: RunState, rank_state: dict[str, Any], ranks: Ranks, keep: int) -> Path:
    """Save on all ranks and wait for it; see `CheckpointWriter`."""
    writer = CheckpointWriter(run_dir, ranks, keep)
    try:
        path = writer.start(state, rank_state)
        writer.finish()
        return path
    finally:
        writer.close()


def _start(temporary: Path, is_first: bool) -> None:
    if is_first:
        for leftover in temporary.parent.glob("step-*.tmp"):
            shutil.rmtree(leftover)
        make_directory(temporary)


class _Hashed:
    """A file that is written from its beginning to its end, with the digest of what it has got."""

    def __init__(self, file: BinaryIO):
        self._file, self.digest = file, hashlib.sha256()
        self.error: OSError | None = None
        """Why it could not be written: `torch.save` makes an error of its own of it."""

    def write(self, content: bytes) -> int:
        self.digest.update(content)
        try:
            return self._file.write(content)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self._file.flush()


def _write(path: Path, write: Callable[[_Hashed], object]) -> str:
    """Write a file durably; returns its digest."""
    with naming(path), path.open("wb") as file:
        hashed = _Hashed(file)
        try:
            write(hashed)
        except RuntimeError:
            if hashed.error is None:
                raise
            raise hashed.error from None
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
    for old in step_directories(final.parent.parent):
        if old not in kept:
            # Renamed first, so that a half removed one counts for nothing.
            shutil.rmtree(old.rename(old.with_suffix(".old.tmp")))
