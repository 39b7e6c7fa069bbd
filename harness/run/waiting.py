"""Ranks of a job and the data that one of them prepares: the others wait for a folder, before they form a group.

A group gives up where nothing is said for `backend.timeout_seconds`, and preparing takes as long as the text is. Here
the first rank of each machine takes the lock of the preparation or waits for it; the others look for the folder. Where
it fails, a file beside the work tells them, so that all of them end.
"""

import hashlib
import json
import os
import time
from contextlib import suppress
from pathlib import Path

import psutil

from harness.config.run import RunConfig
from harness.corpus.prepared import data_directory, prepare_data, work_directory
from harness.errors import PAUSED_STATUS, CodelengthError, OtherRankFailed, Paused, RunFailure, Stopped, UsageError
from harness.files import temporary_path, write_json
from harness.lock import LOCK_FILE, SECONDS_OF_SILENCE
from harness.machine.stop import Interrupted, keeping

SECONDS_BETWEEN_LOOKS = 0.2
# By these a job is told from others, and from its own starts before this one.
_JOB_VARIABLES = (
    "MASTER_ADDR",
    "MASTER_PORT",
    "TORCHELASTIC_RUN_ID",
    "TORCHELASTIC_RESTART_COUNT",
    "SLURM_JOB_ID",
    "SLURM_RESTART_COUNT",
)
_ERRORS = {kind.__name__: kind for kind in (UsageError, Paused, Stopped, RunFailure)}


def prepare_for_job(config: RunConfig) -> None:
    """Prepare the data where needed, or wait until another rank of this job has; before the process group is joined.

    Raises what the preparation raises, on all ranks; RunFailure where nobody gives a sign of preparing.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        prepare_data(config)
        return
    if os.environ.get("LOCAL_RANK", os.environ.get("RANK", "0")) != "0":
        _wait(config)
        return
    work = work_directory(data_directory(config))
    try:
        prepare_data(config, check=_raise_failure_of_others)
    except OtherRankFailed:
        raise
    except (CodelengthError, Interrupted) as error:
        with suppress(CodelengthError, OSError):
            work.mkdir(parents=True, exist_ok=True)
            write_json(_failure_path(work), {"kind": _kind_of(error).__name__, "message": str(error)})
        raise


def _wait(config: RunConfig) -> None:
    """Wait for the folder, as long as its lock gives signs of life."""
    directory = data_directory(config)
    work = work_directory(directory)
    patience = max(config.backend.timeout_seconds, SECONDS_OF_SILENCE)
    sign, since = None, time.monotonic()
    with keeping(f"{directory}: what is prepared is kept, and the same command goes on"):
        while not directory.exists():
            _raise_failure_of_others(work)
            seen = _sign_of(work / LOCK_FILE)
            if seen != sign:
                sign, since = seen, time.monotonic()
            elif time.monotonic() - since > patience:
                raise RunFailure(
                    f"rank {os.environ.get('RANK', '?')}: {directory} is not prepared, and nobody has given a sign of "
                    f"preparing it for {patience:.0f} s; the same command goes on"
                )
            time.sleep(SECONDS_BETWEEN_LOOKS)


def _sign_of(lock: Path) -> tuple[int, int] | None:
    try:
        status = lock.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def _raise_failure_of_others(work: Path) -> None:
    """Raises what another rank of this job has failed of."""
    path = _failure_path(work)
    try:
        if path.stat().st_mtime < _start_of_this_process(work):
            # Of an earlier job at the same port.
            return
        told = json.loads(path.read_bytes())
        kind, message = _ERRORS[told["kind"]], str(told["message"])
    except (OSError, ValueError, KeyError, TypeError):
        return
    # What every rank would say, the first one says; what only one can know, that one has said.
    raise (OtherRankFailed if kind is RunFailure else kind)(message)


def _kind_of(error: CodelengthError | Interrupted) -> type[CodelengthError]:
    """What the other ranks end with."""
    if isinstance(error, Interrupted):
        return Paused if error.exit_status == PAUSED_STATUS else Stopped
    return type(error)


def _failure_path(work: Path) -> Path:
    job = "/".join(os.environ.get(name, "") for name in _JOB_VARIABLES)
    return work / f"FAILED-{hashlib.sha256(job.encode()).hexdigest()[:12]}"


def _start_of_this_process(folder: Path) -> float:
    """By the clock of the file system.

    Raises OSError.
    """
    now = temporary_path(folder / "now")
    try:
        now.touch()
        return now.stat().st_mtime - (time.time() - psutil.Process().create_time())
    finally:
        now.unlink(missing_ok=True)
