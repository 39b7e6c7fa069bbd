"""What a sender or a receiver has done so far, kept beside its output in OUTPUT.part, segment by segment."""

import hashlib
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from eval.online.lockstep import INFORMATIVE, Lockstep
from harness.errors import Stopped, UsageError
from harness.files import temporary_path
from harness.lock import DirectoryLock
from harness.machine.hardware import peak_memory_bytes
from harness.machine.ranks import on_first_rank
from harness.machine.stop import StopRequest
from harness.run.checkpoint import RunState, newest_checkpoint, read_state, restoring
from harness.run.checkpoint_writer import save_checkpoint

KEPT_CHECKPOINTS = 2
MARKER = "CODELENGTH-PART"
"""In each folder that this program has made: no other is gone on with, or removed."""
_MARKER_TEXT = "Work of codelength send or receive that is not finished; the same command goes on with it.\n"
_LONGEST_NAME = 255


@dataclass(frozen=True, slots=True)
class Costs:
    """Time and memory that sending or receiving has taken, over all starts of the job."""

    seconds: float
    """From the making of the models, compilation included; of what a stopped job did, the part that was kept."""
    learning_seconds: float
    """Of them for training steps, on the first rank."""
    memory_bytes: int
    """Largest memory of each process since its last start, summed up."""


Progress = Callable[[int, int], None]
"""Called now and then with (bytes done, bytes in all)."""


class OnlineJob:
    """The work of sending or receiving, segment by segment, with checkpoints, so that a stopped job goes on."""

    def __init__(self, lockstep: Lockstep, output: Path, identity: dict[str, str], progress: Progress):
        """`identity` is what a job that goes on must share with the stopped one, besides its environment.

        Raises UsageError where another job is at work, or the folder was not made by this program.
        """
        self.lockstep, self.ranks, self.progress = lockstep, lockstep.ranks, progress
        self.folder = part_folder(output)
        environment = {key: value for key, value in lockstep.environment.items() if key not in INFORMATIVE}
        self._state = RunState(identity=identity | environment)
        self._tokens_done = 0
        self._seconds_before = 0.0
        self._lock: DirectoryLock | None = None
        on_first_rank(self.ranks, self._hold)
        self._stop = StopRequest(self.folder)

    def close(self) -> None:
        """Release the lock of the folder."""
        if self._lock:
            self._lock.release()

    def resume(self) -> dict | None:
        """Go on from the newest checkpoint; returns what this rank gave to `save`, None at the start of a job.

        Raises UsageError where the folder belongs to something else.
        """
        checkpoint, messages = newest_checkpoint(self.folder, self.ranks, f"remove {self.folder} to begin again")
        if checkpoint:
            state = read_state(checkpoint, self._state.identity, f"remove {self.folder}")
            with restoring(checkpoint, "job", f"remove {self.folder}") as of_rank:
                rank_state = of_rank(self.ranks.rank)
                common_state = rank_state if self.ranks.is_first else of_rank(0)
                self.lockstep.load(rank_state["lockstep"], common_state["lockstep"])
                self._tokens_done, self._seconds_before = rank_state["tokens_done"], rank_state["seconds"]
            self._state = state
            messages.append(f"goes on from step {state.step:,} of {self.lockstep.num_steps:,}")
        if self.ranks.is_first:
            for message in messages:
                print(message, file=sys.stderr, flush=True)
        return rank_state["job"] if checkpoint else None

    def segments(self) -> Iterator[tuple[int, int, int]]:
        """Iterate over the segments that are still to be done: index, first step and end step."""
        for index, (first_step, end_step) in enumerate(self.lockstep.segments):
            if first_step >= self._state.step:
                yield index, first_step, end_step

    def report(self, num_tokens: int) -> None:
        """Count the tokens of a step and show the progress.

        Raises Stopped where a rank was asked to stop.
        """
        source = self.lockstep.source
        self._tokens_done += num_tokens
        self.progress(source.raw_bytes * self._tokens_done // source.num_tokens, source.raw_bytes)
        if self.ranks.any(self._stop.by_signal):
            raise Stopped(f"stopped; the same command goes on from step {self._state.step:,} ({self.folder})")

    def save(self, end_step: int, progress: dict) -> None:
        """Save a checkpoint of what was done up to `end_step`; after the last segment none is needed."""
        self._state.step = end_step
        if end_step < self.lockstep.num_steps:
            content = {"lockstep": self.lockstep.state(), "tokens_done": self._tokens_done, "job": progress}
            content["seconds"] = self._seconds()
            save_checkpoint(self.folder, self._state, content, self.ranks, KEPT_CHECKPOINTS)

    def costs(self) -> Costs:
        """Measure time and memory so far; called on all ranks together."""
        (memory_bytes,) = self.ranks.sum(peak_memory_bytes(self.ranks.device))
        return Costs(self._seconds(), self.lockstep.learning_seconds, int(memory_bytes))

    def finish(self) -> None:
        """Remove the checkpoints."""
        on_first_rank(self.ranks, self._remove)

    def _seconds(self) -> float:
        return self._seconds_before + time.perf_counter() - self.lockstep.started

    def _hold(self) -> None:
        """Keep other jobs out for as long as this process lives: ranks can outlive a command that was killed."""
        _adopt(self.folder)
        lock = DirectoryLock(self.folder)
        if message := lock.acquire():
            print(message, file=sys.stderr, flush=True)
        self._lock = lock

    def _remove(self) -> None:
        """Of the folder only what this program writes: what else lies there is left, and the folder with it."""
        shutil.rmtree(self.folder / "checkpoints", ignore_errors=True)
        self.close()
        (self.folder / MARKER).unlink(missing_ok=True)
        with suppress(OSError):
            self.folder.rmdir()


def part_folder(output: Path) -> Path:
    """Name the folder of checkpoints: OUTPUT.part, or a shorter name where a file system would refuse it."""
    name = f"{output.name}.part"
    if len(name.encode()) > _LONGEST_NAME:
        name = f"{output.name[:40]}.{hashlib.sha256(output.name.encode()).hexdigest()[:16]}.part"
    return output.with_name(name)


def _adopt(folder: Path) -> None:
    """Make the folder, marked as this program's from its first moment, or go on with one that is.

    Raises UsageError where it is somebody else's.
    """
    if not folder.is_symlink() and not folder.exists():
        made = temporary_path(folder)
        made.mkdir()
        (made / MARKER).write_text(_MARKER_TEXT)
        try:
            made.rename(folder)
        except OSError:
            # Another job was faster.
            shutil.rmtree(made)
    if folder.is_symlink() or not (folder / MARKER).is_file():
        raise UsageError(
            f"{folder}: not made by this program, which would keep its work there; move it, or choose another -o"
        )
