"""Checkpoints: directories that count only once their marker is written.

A checkpoint is written to `checkpoints/step-NNNNNNNN.TOKEN.tmp`, made durable, renamed, and then marked: COMMITTED
lists the SHA-256 of every file. `state.json` is the same for all ranks; `rank-RRRRR.pt` holds what is a rank's own: its
partition of weights and optimizer state, its random numbers, its running sums. One that is damaged becomes
`step-NNNNNNNN.damaged` and is left to the user.
"""

import functools
import itertools
import json
import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from harness.config.settings import shown
from harness.errors import RunFailure, UsageError
from harness.files import naming, read_file, sha256, sync_directory, with_retries
from harness.machine.ranks import Ranks, on_first_rank

FORMAT_VERSION = 5
MARKER, DAMAGED = "COMMITTED", "damaged"
STATE_FILE = "state.json"


@dataclass(kw_only=True)
class RunState:
    """The state of a run that all ranks have in common."""

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
    ledger_parts: list[list[tuple[int, str]]] = field(default_factory=list)
    """Of each rank, rows and digest of the ledger parts that belong to the steps done."""
    recent_loss_nats: list[float] = field(default_factory=list)
    """Losses that decide whether a phase has converged."""
    identity: dict[str, str]
    """What a run that goes on must share with the one that was saved."""
    format_version: int = FORMAT_VERSION


def checkpoint_path(run_dir: Path, step: int) -> Path:
    """Name the directory of the checkpoint after `step` steps."""
    return run_dir / "checkpoints" / f"step-{step:08d}"


def committed_checkpoints(run_dir: Path) -> list[Path]:
    """List the checkpoints that have their marker, oldest first.

    Raises OSError where the file system does not answer.
    """
    committed = [path for path in step_directories(run_dir) if with_retries(functools.partial(_is_file, path / MARKER))]
    return sorted(committed, key=lambda path: int(path.name.partition("-")[2]))


def newest_checkpoint(
    run_dir: Path, ranks: Ranks, remedy: str, other_damage: Callable[[dict[str, Any]], str] = lambda state: ""
) -> tuple[Path | None, list[str]]:
    """Find the newest checkpoint that is undamaged; returns a message for every newer one too.

    `other_damage` says, given the content of state.json, what is wrong with what this rank keeps elsewhere. Damaged
    checkpoints are renamed, so that they count neither here nor among those that are kept. Raises UsageError naming
    the `remedy`, where there is one, when checkpoints exist and none is usable, and RunFailure when the file system
    does not answer: that is no damage.
    """
    messages: list[str] = []
    while True:
        newest = on_first_rank(ranks, lambda: next(reversed(committed_checkpoints(run_dir)), None))
        if newest is None:
            damaged = on_first_rank(ranks, _damaged_checkpoints, run_dir)
            if damaged and remedy:
                raise UsageError("\n".join([*messages, f"{damaged[-1]}: no usable checkpoint is left; {remedy}"]))
            return None, messages
        everyone = ranks.gather(_damage(newest, ranks, other_damage))
        if failures := [failure for _, failure in everyone if failure]:
            raise RunFailure(f"{newest}: {failures[0]}; nothing was changed: start again when it can be read")
        damages = [damage for damage, _ in everyone if damage]
        if not damages:
            return newest, messages
        aside = on_first_rank(ranks, _set_aside, newest)
        messages.append(f"{newest}: damaged ({damages[0]}), left out and kept as {aside.name}")


def read_state(checkpoint: Path, identity: dict[str, str], remedy: str) -> RunState:
    """Read the saved state and check it against the job that wants to go on.

    Raises UsageError naming what differs, and the `remedy` besides going back to what was.
    """
    path = checkpoint / STATE_FILE
    try:
        content = json.loads(read_file(path))
        version, saved = content.get("format_version"), dict(content.get("identity", {}))
    except (ValueError, TypeError, AttributeError):
        raise UsageError(f"{path}: not the state of a run; {remedy}") from None
    changed = [
        f"{key}: {shown(saved.get(key))} -> {identity.get(key)}"
        for key in sorted(saved.keys() | identity.keys())
        if saved.get(key) != identity.get(key)
    ]
    if version != FORMAT_VERSION:
        changed.insert(0, f"format_version: {shown(version)} -> {FORMAT_VERSION}")
    if changed:
        raise UsageError(
            f"{checkpoint}: saved in another setting ({'; '.join(changed)}); go on in the old one, or {remedy}"
        )
    fresh = RunState(identity=identity)
    if content.keys() != vars(fresh).keys() or any(
        type(content[key]) is not type(usual) or content["step"] < 0 for key, usual in vars(fresh).items()
    ):
        raise UsageError(f"{path}: not the state of a run of this version; {remedy}")
    return RunState(**content)


@contextmanager
def restoring(checkpoint: Path, whose: str, remedy: str) -> Iterator[Callable[[int], dict[str, Any]]]:
    """Read what ranks gave to `save_checkpoint`; UsageError where it, or its use in the context, fails.

    Then the digests are right, and somebody else has written it.
    """
    try:
        yield functools.partial(read_rank_state, checkpoint)
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError):
        raise UsageError(f"{checkpoint}: not a checkpoint of this {whose}; {remedy}") from None


def read_rank_state(checkpoint: Path, rank: int) -> dict[str, Any]:
    """Read what a rank gave to `save_checkpoint`; raises ValueError where the file is something else."""
    path = checkpoint / f"rank-{rank:05d}.pt"
    try:
        with naming(path):
            return with_retries(functools.partial(torch.load, path, map_location="cpu", weights_only=True))
    except OSError:
        raise
    except Exception as error:
        # Readers of archives and of pickles raise whatever they meet.
        raise ValueError(path) from error


def _damage(checkpoint: Path, ranks: Ranks, other_damage: Callable[[dict[str, Any]], str]) -> tuple[str, str]:
    """What is wrong with this rank's part of the files, and why they could not be read; or nothing."""
    try:
        digests = json.loads(read_file(checkpoint / MARKER))
        if STATE_FILE not in digests:
            return f"{MARKER} is incomplete", ""
        names = sorted(digests)[ranks.rank :: ranks.world_size]
        for name in {STATE_FILE, *names}:
            if with_retries(functools.partial(sha256, checkpoint / name)) != digests[name]:
                return f"{name} is not what was written", ""
        return other_damage(json.loads(read_file(checkpoint / STATE_FILE))), ""
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        return f"{Path(error.filename).name} is missing", ""
    except OSError as error:
        return "", f"rank {ranks.rank} cannot read {error.filename} ({error.strerror})"
    except (ValueError, TypeError, AttributeError, KeyError):
        return f"{MARKER} is not readable", ""


def step_directories(run_dir: Path, suffix: str = "") -> list[Path]:
    """List the directories of checkpoints, marked or not."""
    folder = run_dir / "checkpoints"
    try:
        names = with_retries(functools.partial(os.listdir, folder))
    except FileNotFoundError:
        return []
    return [folder / name for name in sorted(names) if re.fullmatch(rf"step-[0-9]{{8,}}{suffix}", name)]


def _damaged_checkpoints(run_dir: Path) -> list[Path]:
    return step_directories(run_dir, rf"\.{DAMAGED}[0-9]*")


def _set_aside(checkpoint: Path) -> Path:
    """Give a damaged checkpoint a name by which it does not count."""
    names = (checkpoint.with_suffix(f".{DAMAGED}{number or ''}") for number in itertools.count())
    aside = next(path for path in names if not path.exists())
    checkpoint.rename(aside)
    sync_directory(aside.parent)
    return aside


def _is_file(path: Path) -> bool:
    """Whether there is a file; unlike `Path.is_file`, errors of the file system are no answer."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False
