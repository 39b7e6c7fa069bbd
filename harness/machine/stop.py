"""How a process is asked to end: SIGINT, SIGTERM, SIGHUP, SIGUSR1, or a file called STOP in the run's directory.

While there is nothing to save, a signal ends the process with one line and without a traceback. In training nothing is
saved inside a handler: it sets a flag, and the loop looks at flag and file between steps.
"""

import errno
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NamedTuple, TextIO

from harness.errors import PAUSED_STATUS, is_leading_process

if TYPE_CHECKING:
    Handler = Callable[[int, FrameType | None], object] | int | signal.Handlers | None

REQUEST_FILE = "STOP"
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PAUSE_SIGNAL = signal.SIGUSR1
"""Asks for what a scheduler wants before its time is over: end soon, and be started again."""
INTERRUPTED_STATUS = 128 + signal.SIGINT
# A main thread that waits inside a library (for other ranks, for a disk) hears of no signal.
SECONDS_TO_HEAR = 3.0


class Asked(NamedTuple):
    """The requests of ranks to stop or save; summed over ranks they say what to do."""

    save: float
    stop_by_signal: float
    pause: float
    histograms: float
    is_written: float
    """A checkpoint that was started: all ranks must say so."""


class Interrupted(KeyboardInterrupt):
    """A signal that ends work which has nothing to save."""

    def __init__(self, number: int):
        super().__init__()
        self.exit_status = PAUSED_STATUS if number == PAUSE_SIGNAL else INTERRUPTED_STATUS
        self.words = "asked to end for now" if number == PAUSE_SIGNAL else "interrupted"

        self.kept = "nothing half-written is left, the same command starts again"

    def __str__(self) -> str:
        return f"{self.words}; {self.kept}"


class StopRequest:
    """A request to stop this run, by a signal or by a file.

    SIGINT, SIGTERM and SIGHUP are for somebody who watches: the command ends with status 1. SIGUSR1 and the file are
    for schedulers: it ends with status 75, by which a job script knows that it has to be started again.
    """

    def __init__(self, run_dir: Path):
        self.run_dir = run_dir
        self.by_signal = self.by_pause_signal = False
        handle((*SIGNALS, PAUSE_SIGNAL), self._set)

    @property
    def by_file(self) -> bool:
        """Whether the file is there."""
        return (self.run_dir / REQUEST_FILE).exists()

    def clear(self) -> None:
        """Remove the file: it is answered, or nothing is left to stop."""
        (self.run_dir / REQUEST_FILE).unlink(missing_ok=True)

    def _set(self, number: int, frame: FrameType | None) -> None:
        if number == PAUSE_SIGNAL:
            self.by_pause_signal = True
        else:
            self.by_signal = True


def handle(numbers: tuple[int, ...], handler: Callable[[int, FrameType | None], object]) -> dict[int, "Handler"]:
    """Call `handler` for these signals from now on; returns what was called before.

    A signal that was ignored from the start stays ignored, as by `nohup`; but for the one for schedulers, which job
    scripts ignore so that nothing dies of it before it can listen.
    """
    if threading.current_thread() is not threading.main_thread():
        return {}
    heard = [n for n in numbers if n == PAUSE_SIGNAL or signal.getsignal(n) != signal.SIG_IGN]
    return {number: signal.signal(number, handler) for number in heard}


@contextmanager
def interruptible(*more: int) -> Iterator[None]:
    """SIGINT, SIGTERM, SIGHUP and `more` raise Interrupted inside; where nothing hears them, they end the process."""
    before = handle((*SIGNALS, *more), _interrupt)
    if not before:
        yield
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    previous = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(reader,), name="signals", daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(previous)
        os.close(writer)
        _heard.clear()
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def keeping(kept: str) -> Iterator[None]:
    """Add `kept`, what a signal leaves of this work, to the words of Interrupted."""
    try:
        yield
    except Interrupted as error:
        error.kept = kept
        raise


def end_at_signals(*more: int) -> None:
    """End this process with one line at a signal; for its first moments, before `interruptible`."""
    handle((*SIGNALS, *more), _end)


def outlive_terminal() -> None:
    """Drop what is written after the terminal was closed, instead of failing in the middle of the work."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and stream.isatty():
            setattr(sys, name, _Terminal(stream))


class _Terminal:
    """A stream to a terminal that may go away."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write `text`; returns its length in characters."""
        self._unless_closed(self._stream.write, text)
        return len(text)

    def flush(self) -> None:
        """Write what is left in the buffer."""
        self._unless_closed(self._stream.flush)

    def _unless_closed(self, write: Callable[..., object], *arguments: str) -> None:
        try:
            write(*arguments)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            # The buffer would be written again when the stream is closed.
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Unwind what is going on, unless that is an import: some libraries swallow or wrap what is raised in one."""
    while frame is not None:
        code = frame.f_code
        if code.co_filename.startswith("<frozen importlib"):
            _end(number)
        frame = frame.f_back
    _heard.add(number)
    raise Interrupted(number)


def _end(number: int, frame: FrameType | None = None) -> None:
    """End this process at once; of several ranks the first says so."""
    error = Interrupted(number)
    if is_leading_process():
        os.write(2, f"codelength: {error}\n".encode())
    os._exit(error.exit_status)


_heard: set[int] = set()


def _watch(reader: int) -> None:
    """End the process where its main thread has not heard a signal for some seconds."""
    with os.fdopen(reader, "rb", buffering=0) as pipe:
        while number := pipe.read(1):
            if signal.getsignal(number[0]) != _interrupt:
                continue
            time.sleep(SECONDS_TO_HEAR)
            if signal.getsignal(number[0]) == _interrupt and number[0] not in _heard:
                _end(number[0])


def _forget_in_child() -> None:
    """A forked process (of a pool) dies of signals in silence: its parent hears them too, and says what there is."""
    ours = [n for n in (*SIGNALS, PAUSE_SIGNAL) if signal.getsignal(n) in (_interrupt, _end)]
    if ours:
        signal.set_wakeup_fd(-1)
    for number in ours:
        signal.signal(number, signal.SIG_IGN if number == PAUSE_SIGNAL else signal.SIG_DFL)


os.register_at_fork(after_in_child=_forget_in_child)
