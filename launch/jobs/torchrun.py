"""Several processes on this machine: what `torchrun --standalone` does, with shorter words and endings.

Each rank says itself what went wrong, on one line. What a rank cannot say, that a signal has ended it, is said here.
"""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from harness.errors import PAUSED_STATUS, print_error
from harness.machine.stop import PAUSE_SIGNAL, Interrupted, handle
from launch.jobs.queue import stop_request

# A rank that is told to stop has this long to write its checkpoint.
SECONDS_TO_SAVE = 600.0
# Once a rank has failed, the others notice a broken connection by themselves and say so; what still runs is ended.
SECONDS_TO_NOTICE, SECONDS_TO_END = 3.0, 5.0
SECONDS_BETWEEN_LOOKS = 0.05
_DEATH_SIGNAL_OF_PARENT = 1
CAUSES: dict[int, str] = {
    signal.SIGKILL: "most likely the kernel, out of memory; lower --processes or train.micro_batch_sequences",
    signal.SIGABRT: "a library has given up; with NCCL, contact with the other ranks was lost or a collective took "
    "longer than backend.timeout_seconds",
    signal.SIGBUS: "no room in shared memory or on the disk, see `codelength doctor`",
    signal.SIGTERM: "somebody or a scheduler ended it",
}


@contextmanager
def rank_environments(processes: int) -> Iterator[list[dict[str, str]]]:
    """Make the environment of each rank, as torchrun does; in the context the store where they meet is open."""
    from torch.distributed import TCPStore

    # Held here from the choice of its port on, nobody else can take it.
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
    common |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    # By these PyTorch knows that no rank has to open it.
    common |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
    yield [common | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]
    del store


def run_here(module: str, arguments: list[str], processes: int) -> int:
    """Run `python -m module arguments` in `processes` processes; returns the exit status of the one that failed.

    SIGINT, SIGTERM and SIGHUP tell them all to save and end, SIGUSR1 does so for now. Raises UsageError where srun has
    started this process several times.
    """
    from harness.machine.ranks import check_launch

    check_launch()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    command = [sys.executable, "-u", "-m", module, *arguments]
    ranks: list[subprocess.Popen[bytes]] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        for process in ranks:
            process.send_signal(number)

    with rank_environments(processes) as environments, stop_request() as is_stopped:
        before = handle((PAUSE_SIGNAL,), pass_on)
        try:
            for environment in environments:
                ranks.append(start_rank(command, environment))
            return _Watch(ranks).until_end(is_stopped)
        finally:
            signal.signal(PAUSE_SIGNAL, before[PAUSE_SIGNAL])
            for process in ranks:
                process.kill()
                process.wait()


def start_rank(
    command: list[str],
    environment: dict[str, str],
    stdin: int = subprocess.DEVNULL,
    stdout: int | None = None,
    stderr: int | None = None,
) -> subprocess.Popen[bytes]:
    """Start a rank that is told to save and end where this process is killed."""
    return subprocess.Popen(
        command,
        env=os.environ | environment,
        # Ctrl-C in a terminal reaches this process alone, which then tells the ranks once.
        start_new_session=True,
        preexec_fn=_before_rank,
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
    )


class _Watch:
    """Ranks that run together and end together."""

    def __init__(self, ranks: list[subprocess.Popen[bytes]]):
        self.ranks = ranks
        self._to_do: list[tuple[float, int]] = []
        """When to send which signal to what still runs."""
        self._has_failed = False

    def until_end(self, is_stopped: Callable[[], bool]) -> int:
        """Wait for all ranks; returns the exit status of the job."""
        told = False
        while True:
            statuses = [process.poll() for process in self.ranks]
            if not self._has_failed and any(status not in (None, 0, PAUSED_STATUS) for status in statuses):
                self._note_failure(statuses, told)
            if None not in statuses:
                break
            if is_stopped() and not told:
                told = True
                # Not SIGINT, which may be ignored in a job of the background, and of which Python dies with many words
                # in its first moments.
                self._plan((0.0, signal.SIGTERM), (SECONDS_TO_SAVE, signal.SIGKILL))
            self._send_what_is_due()
            time.sleep(SECONDS_BETWEEN_LOOKS)
        if told and statuses[0] == -signal.SIGTERM:
            print_error(Interrupted(signal.SIGTERM))
        # Where one rank was refused its input, others may have been ended for that.
        return next((status for status in (2, 1, PAUSED_STATUS) if status in statuses), int(any(statuses) or told))

    def _note_failure(self, statuses: list[int | None], told: bool) -> None:
        """Say which signal has ended a rank, and end what is left; ranks that were told to stop are left to save."""
        self._has_failed = True
        # Of what ranks are told, one may die before it listens.
        expected = -signal.SIGTERM if told else None
        # A rank that loses contact aborts after the one that was the reason.
        killed = {rank: status for rank, status in enumerate(statuses) if status and status < 0 and status != expected}
        if killed:
            rank = min(killed, key=lambda rank: killed[rank] == -signal.SIGABRT)
            print(words_about(rank, -killed[rank]), file=sys.stderr, flush=True)
        if killed or not told:
            later = SECONDS_TO_NOTICE + SECONDS_TO_END
            self._plan((SECONDS_TO_NOTICE, signal.SIGTERM), (later, signal.SIGKILL))

    def _plan(self, *signals: tuple[float, int]) -> None:
        now = time.monotonic()
        self._to_do = sorted([*self._to_do, *((now + seconds, number) for seconds, number in signals)])

    def _send_what_is_due(self) -> None:
        while self._to_do and self._to_do[0][0] <= time.monotonic():
            _, number = self._to_do.pop(0)
            for process in self.ranks:
                # Nothing is sent to a process that has ended.
                process.send_signal(number)


def words_about(rank: int, number: int) -> str:
    """Explain in a line why a signal has ended a rank: the likely cause and the remedy."""
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"signal {number}"
    cause = CAUSES.get(number, "a crash inside a library")
    return f"codelength: rank {rank} was ended by {name}: {cause}; the same command goes on"


def _before_rank() -> None:
    """What a rank starts with: until it listens, it does not die of being asked to make room."""
    signal.signal(PAUSE_SIGNAL, signal.SIG_IGN)
    if sys.platform == "linux":
        # Ask the kernel for SIGTERM, upon which a rank saves, when the process that started it is gone.
        ctypes.CDLL(None).prctl(_DEATH_SIGNAL_OF_PARENT, signal.SIGTERM)
