"""Locks of directories: one process at a time writes there, also where several machines share a file system.

A lock is the file LOCK, made exclusively and held locked (flock) by a process that renews its time every few seconds.
On one machine the flock tells whether its holder lives; across machines, where not every file system passes a flock
on, the time does. A holder that is dead, or silent for long, loses the lock to the next one, who says so.
"""

import errno
import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from secrets import token_hex

from harness.errors import RunFailure, UsageError
from harness.files import naming, temporary_path, with_retries

LOCK_FILE = "LOCK"
SECONDS_BETWEEN_SIGNS = 10.0
# A holder on another machine that has given no sign for so long is taken for dead.
SECONDS_OF_SILENCE = 180.0
SECONDS_BETWEEN_LOOKS = 0.5


@dataclass(frozen=True, slots=True)
class Holder:
    """The process that holds a lock."""

    host: str
    pid: int
    job: str
    """Number of its SLURM job; empty outside one."""
    token: str
    """Different for every holder."""

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}" + (f", job {self.job}" if self.job else "")


class DirectoryLock:
    """The right to write into a directory, held from `acquire` to `release`."""

    def __init__(self, directory: Path, job: str | None = None):
        """`job` names what never holds the lock twice at once; without it that is the SLURM job."""
        self.path = directory / LOCK_FILE
        job = os.environ.get("SLURM_JOB_ID", "") if job is None else job
        self._me = Holder(socket.gethostname(), os.getpid(), job, token_hex(8))
        self._descriptor: int | None = None
        self._released = threading.Event()
        self._signs = threading.Thread(target=self._give_signs, name="lock", daemon=True)

    def acquire(self) -> str:
        """Take the lock; returns a message where it was taken over from a dead holder, else nothing.

        Raises UsageError that names the holder where somebody else has it.
        """
        message = ""
        while not self._create():
            holder = self._dead_holder()
            if holder:
                message = f"{self.path}: taken over from {holder}, which is gone"
        self._signs.start()
        return message

    def wait(self, tell: Callable[[str], object]) -> str:
        """Wait until the lock is free and acquire it; `tell` takes the reason for waiting."""
        has_told = False
        while True:
            try:
                return self.acquire()
            except UsageError as error:
                if not has_told:
                    tell(f"{error}; waiting")
                has_told = True
                time.sleep(SECONDS_BETWEEN_LOOKS)

    def check(self) -> None:
        """Check that nobody has taken the lock over, as after a long suspension; else raises RunFailure."""
        # A file system that does not answer is an error of its own, and no other process.
        if with_retries(lambda: _read_holder(self.path)) != self._me:
            raise RunFailure(f"{self.path}: another process has taken this directory over; this one stops")

    def release(self) -> None:
        """Give the lock back; nothing happens where it is not held."""
        if self._descriptor is None:
            return
        self._released.set()
        # One that cannot be removed now is that of a dead process soon.
        with suppress(OSError):
            if _read_holder(self.path) == self._me:
                self.path.unlink(missing_ok=True)
        os.close(self._descriptor)
        self._descriptor = None

    def _create(self) -> bool:
        """Make the file, complete and locked from its first moment; whether that was possible."""
        temporary = temporary_path(self.path)
        descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o644)
        try:
            with naming(self.path), open(descriptor, "wb", closefd=False) as file:
                file.write(json.dumps(asdict(self._me)).encode())
            # A file system without locks: exclusive creation and the signs of life decide alone.
            with suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._link(temporary)
        except FileExistsError:
            os.close(descriptor)
            return False
        except BaseException:
            os.close(descriptor)
            raise
        finally:
            temporary.unlink(missing_ok=True)
        self._descriptor = descriptor
        return True

    def _link(self, temporary: Path) -> None:
        """Give the file its name unless there is one already, which is exclusive over NFS too."""
        try:
            os.link(temporary, self.path)
        except FileExistsError:
            raise
        except OSError:
            # A file system without links; that two rename at once is then left to chance and to `check`.
            if self.path.exists():
                raise FileExistsError(errno.EEXIST, "exists", str(self.path)) from None
            temporary.rename(self.path)

    def _dead_holder(self) -> Holder | None:
        """Remove the lock of a dead holder and return it; None where the lock has gone meanwhile.

        Raises UsageError where the holder lives.
        """
        try:
            descriptor = os.open(self.path, os.O_RDWR)
        except FileNotFoundError:
            return None
        try:
            holder = _read_holder(self.path) or Holder("an unknown machine", 0, "", "")
            silence = self._seconds_of_silence()
            if silence is None:
                return None
            if not self._is_dead(holder, descriptor, silence):
                raise UsageError(
                    f"{self.path.parent}: in use by {holder} (last sign of it {silence:.0f} s ago); wait for its end, "
                    f"or stop it; after {SECONDS_OF_SILENCE:.0f} s of silence it is taken for dead"
                )
            if not self._is_still(descriptor):
                return None
            # Of several who see this, one moves it away; whoever moves the lock of the next holder puts it back.
            away = temporary_path(self.path)
            try:
                self.path.rename(away)
            except FileNotFoundError:
                return None
            moved = _read_holder(away)
            if moved and moved != holder:
                with suppress(FileExistsError):
                    os.link(away, self.path)
            away.unlink(missing_ok=True)
            return holder if moved in (holder, None) else None
        finally:
            os.close(descriptor)

    def _is_still(self, descriptor: int) -> bool:
        """Whether the name is still that of the file that is open: else its holder gave it back meanwhile."""
        try:
            return os.path.samestat(os.fstat(descriptor), self.path.stat())
        except FileNotFoundError:
            return False

    def _is_dead(self, holder: Holder, descriptor: int, silence: float) -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if holder.host == self._me.host:
                return True
        except BlockingIOError:
            return False
        except OSError:
            pass
        # SLURM runs a job once at a time: what holds the lock in its name is its start before this one.
        is_earlier_start = bool(holder.job) and holder.job == self._me.job
        return is_earlier_start or silence > SECONDS_OF_SILENCE

    def _seconds_of_silence(self) -> float | None:
        """Time since the holder's last sign, by the clock of the file system; None where the lock has gone."""
        now = temporary_path(self.path)
        try:
            now.touch()
            return max(0.0, now.stat().st_mtime - self.path.stat().st_mtime)
        except FileNotFoundError:
            return None
        finally:
            now.unlink(missing_ok=True)

    def _give_signs(self) -> None:
        while not self._released.wait(SECONDS_BETWEEN_SIGNS) and (descriptor := self._descriptor) is not None:
            # A file system that is away for a moment is no reason to stop: `check` says whether the lock is lost.
            with suppress(OSError):
                os.utime(descriptor)


@contextmanager
def locked(directory: Path) -> Iterator[DirectoryLock]:
    """Lock a directory for the length of the context; says on stdout where the lock was taken over.

    Raises UsageError where somebody else has it.
    """
    lock = DirectoryLock(directory)
    if message := lock.acquire():
        print(message, flush=True)
    try:
        yield lock
    finally:
        lock.release()


def _read_holder(path: Path) -> Holder | None:
    """Who a lock names; None where it has gone or is no lock."""
    try:
        with naming(path):
            return Holder(**json.loads(path.read_bytes()))
    except (FileNotFoundError, ValueError, TypeError):
        return None
