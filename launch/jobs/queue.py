"""Run commands in processes of their own, some at a time, each job with its log."""

import fcntl
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from harness.errors import PAUSED_STATUS, RunFailure
from harness.machine.progress import Rate, clock
from harness.machine.stop import SIGNALS, handle

SECONDS_BETWEEN_LOOKS = 0.1
# Lines that torchrun adds below the words of the process that failed.
_TORCHRUN_MARKS = ("torch.distributed.elastic", "torch/distributed/elastic", "torch.multiprocessing")


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """Commands to run one after the other."""

    name: str
    log_path: Path
    """Takes what the commands print, after what earlier attempts printed."""
    next_command: Callable[[], list[str] | None]
    """What is still to do, asked at the start and after each success; None ends the job."""


@dataclass(kw_only=True, slots=True)
class _Active:
    """A job that holds its log and one of the slots."""

    job: Job
    slot: int
    log: IO[bytes]
    log_start: int
    """Position in the log at which this attempt begins, in bytes."""
    started_at: float
    command: list[str] | None = None
    process: subprocess.Popen | None = None


class JobQueue:
    """Runs jobs, `len(environments)` at a time: each slot adds one of these to the environment of its commands.

    A job holds a lock on its log, and so do its processes: what was left running by a killed queue is waited for, and
    two queues share their jobs instead of running them twice.
    """

    def __init__(self, jobs: list[Job], environments: list[dict[str, str]]):
        self.pending, self.environments = list(jobs), environments
        self.active: list[_Active] = []
        self.failures: dict[str, str] = {}
        self._waiting: set[str] = set()
        self._total, self._num_ended, self._rate = len(jobs), 0, Rate(0)

    def run(self) -> dict[str, str]:
        """Run all jobs; returns the last error line of those that failed, by name.

        Raises RunFailure when stopped by SIGINT, SIGTERM or SIGHUP, after the commands have been told and have ended.
        """
        with stop_request() as is_stopped:
            try:
                while (self.pending or self.active) and not is_stopped():
                    self._start_jobs()
                    for active in list(self.active):
                        if active.process is not None and active.process.poll() is not None:
                            self._advance(active)
                    time.sleep(SECONDS_BETWEEN_LOOKS)
            finally:
                self._interrupt()
            if is_stopped():
                raise RunFailure("stopped; what was running has been told to save; the same command goes on")
        return self.failures

    def _start_jobs(self) -> None:
        for job in list(self.pending):
            free = set(range(len(self.environments))) - {active.slot for active in self.active}
            if not free:
                return
            log = _locked_log(job.log_path)
            if log is None:
                if job.name not in self._waiting:
                    self._waiting.add(job.name)
                    print(f"waiting  {job.name}: another process is at work on it, see {job.log_path}", flush=True)
                continue
            self.pending.remove(job)
            active = _Active(
                job=job,
                slot=min(free),
                log=log,
                log_start=log.tell(),
                started_at=time.monotonic(),
            )
            self.active.append(active)
            print(f"start    {job.name}  log {job.log_path}", flush=True)
            self._advance(active)

    def _advance(self, active: _Active) -> None:
        """Start the next command, or end the job."""
        if active.process and active.process.returncode == PAUSED_STATUS:
            return self._end(active, "stopped")
        if active.process and active.process.returncode:
            output = active.job.log_path.read_bytes()[active.log_start :].decode(errors="replace")
            self.failures[active.job.name] = last_words(output) or f"ended with status {active.process.returncode}"
            return self._end(active, "FAILED")
        command = active.job.next_command()
        if command is None:
            return self._end(active, "done")
        if command == active.command:
            # It succeeded and yet is still to do: somebody asked it to stop.
            return self._end(active, "stopped")
        active.log.write(f"$ {shlex.join(command)}\n".encode())
        active.log.flush()
        active.command = command
        active.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=active.log,
            stderr=subprocess.STDOUT,
            env=os.environ | self.environments[active.slot],
            # Ctrl-C in a terminal reaches this process alone, which then tells the commands once.
            start_new_session=True,
        )

    def _end(self, active: _Active, word: str) -> None:
        active.log.close()
        self.active.remove(active)
        self._num_ended += 1
        left = self._rate.seconds_left(self._num_ended, self._total)
        rest = f"; about {clock(left)} left" if left else ""
        took = clock(time.monotonic() - active.started_at)
        print(f"{word:8} {active.job.name}  {self._num_ended}/{self._total} in {took}{rest}", flush=True)

    def _interrupt(self) -> None:
        """Tell what is running to save and end, and wait for it."""
        running = [active.process for active in self.active if active.process]
        for process in running:
            # SIGINT may be ignored in a job of the background, and with it in all that this process has started.
            process.send_signal(signal.SIGTERM)
        for process in running:
            process.wait()
        for active in self.active:
            active.log.close()


@contextmanager
def stop_request() -> Iterator[Callable[[], bool]]:
    """Note signals that ask to stop, in the context; gives a function that says whether one has come."""
    received: list[int] = []
    before = handle(SIGNALS, lambda number, frame: received.append(number))
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _locked_log(path: Path) -> IO[bytes] | None:
    """The log, at its end and locked until the last process that writes to it has ended; None where it is taken."""
    path.parent.mkdir(parents=True, exist_ok=True)
    log = path.open("ab")
    try:
        fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        log.close()
        return None
    except OSError:
        # A file system without locks: then nobody else can be seen.
        pass
    return log


def last_words(output: str) -> str:
    """Find the last line that a command printed itself, without what torchrun adds; empty where there is none."""
    lines = [line.strip() for line in output.splitlines()]
    cut = next((i for i, line in enumerate(lines) if any(mark in line for mark in _TORCHRUN_MARKS)), len(lines))
    words = [line for line in lines[:cut] if line and not line.startswith("$ ")]
    return words[-1].removeprefix("codelength: ") if words else ""
