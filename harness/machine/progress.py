"""How far work has come, as a line on stderr: updated in place on a terminal, elsewhere whole lines from time to time.

A log gets no control characters. Commands that decode show progress too, so that this needs no package.
"""

import math
import os
import sys
import time
from collections.abc import Callable

SECONDS_BETWEEN_LINES = 10.0
# Bytes are counted more often than a terminal can show; elsewhere the first line comes soon, to say how long it takes.
_SECONDS_BETWEEN_UPDATES, _SECONDS_BEFORE_LINES = 0.5, 2.0
_COLUMNS_OF_UNKNOWN = 80


class ProgressLine:
    """A line of progress on stderr, which a terminal shows in place."""

    def __init__(self) -> None:
        self._width = 0

    def show(self, text: str) -> None:
        """Replace the line on a terminal by `text`, cut to its width; elsewhere print a line more."""
        if not is_terminal():
            print(text, file=sys.stderr, flush=True)
            return
        # One column stays free: a full last column makes some terminals wrap, and the line could not be overwritten.
        # A terminal that does not know its width says 0.
        columns = (os.get_terminal_size(sys.stderr.fileno()).columns or _COLUMNS_OF_UNKNOWN) - 1
        text = text[:columns]
        print("\r" + text.ljust(self._width)[:columns], end="", file=sys.stderr, flush=True)
        self._width = len(text)

    def wipe(self) -> None:
        """Remove the line from a terminal, so that something else can be printed."""
        if self._width:
            print("\r" + " " * self._width + "\r", end="", file=sys.stderr, flush=True)
            self._width = 0

    def end(self) -> None:
        """Leave the line on a terminal as it is, and go to the next one."""
        if self._width:
            print(file=sys.stderr, flush=True)
            self._width = 0


class Pause:
    """Tells when progress is due: `first` seconds after the first question, then every `seconds`."""

    def __init__(self, seconds: float, first: float = 0.0) -> None:
        self._seconds, self._first = seconds, first
        self._due: float | None = None

    def is_over(self) -> bool:
        """Whether it is time; the next pause then begins."""
        now = time.monotonic()
        if self._due is None:
            self._due = now + self._first
        if now < self._due:
            return False
        self._due = now + self._seconds
        return True


class Rate:
    """Measures how fast work goes; what was `done` before the start does not count."""

    def __init__(self, done: int) -> None:
        self._start, self._done = time.monotonic(), done

    def per_second(self, done: int) -> float:
        """Compute the units of work a second."""
        seconds = time.monotonic() - self._start
        return (done - self._done) / seconds if seconds else 0.0

    def seconds_left(self, done: int, total: int) -> float:
        """Compute the seconds that the rest takes at this rate; infinite where nothing has been done yet."""
        rate = self.per_second(done)
        return (total - done) / rate if rate else math.inf


def show_bytes(quiet: bool) -> Callable[[int, int], None]:
    """Make a function that shows bytes done of bytes in all, with rate and time left, unless `quiet`."""
    line = ProgressLine()
    pause = (
        Pause(_SECONDS_BETWEEN_UPDATES, first=_SECONDS_BETWEEN_UPDATES)
        if is_terminal()
        else Pause(SECONDS_BETWEEN_LINES, first=_SECONDS_BEFORE_LINES)
    )
    rate: Rate | None = None

    def show(done: int, total: int) -> None:
        nonlocal rate
        rate = rate or Rate(done)
        if not quiet and pause.is_over():
            left = clock(rate.seconds_left(done, total))
            line.show(f"{done:,}/{total:,} bytes  {rate.per_second(done) / 1e3:.1f} kB/s  {left} left")

    return show


def clock(seconds: float) -> str:
    """Format seconds as `2:41` or `1:02:41`; a question mark where they are unknown."""
    if not 0 <= seconds < math.inf:
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def is_terminal() -> bool:
    """Whether stderr is a terminal."""
    return sys.stderr.isatty()
