"""Signals that end a piece of work at once, in order: what holds files and processes lets go of them."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from harness.errors import Stopped

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


class _Received(BaseException):
    """A signal, where it finds the work; no library takes it for an error of its own."""


@contextmanager
def ended_by_signals(words: str) -> Iterator[None]:
    """Raises Stopped, with `words` and the name of the signal, where one asks for an end of what is in the context.

    Only the main thread is asked. What is ignored, as SIGHUP is under nohup, stays so.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]

    def end(number: int, frame: object) -> None:
        # Once: what is being put in order is not disturbed again.
        for each in numbers:
            signal.signal(each, signal.SIG_IGN)
        raise _Received(number)

    before = {number: signal.signal(number, end) for number in numbers}
    try:
        yield
    except _Received as received:
        name = signal.Signals(received.args[0]).name
        raise Stopped(f"{words} {name}; what is complete is kept, and the same command goes on") from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)
