"""How a run is asked to stop: SIGINT, SIGTERM, or a file called STOP in its directory; what ranks ask of each other.

Nothing is saved inside a handler: it sets a flag, and the loop looks at flag and file between steps.
"""

import signal
from pathlib import Path
from typing import NamedTuple

REQUEST_FILE, STOPPED_MARKER = "STOP", "STOPPED"


class Asked(NamedTuple):
    """What ranks want of all of them; as sums over ranks it says what is to be done."""

    save: float
    stop_by_signal: float
    stop_by_file: float
    histograms: float
    is_written: float
    """A checkpoint that was started: all ranks must say so."""


class StopRequest:
    """What this rank has been asked for.

    A signal is for somebody who watches: the command ends with status 1. The file is for schedulers: the run ends with
    status 0 and leaves STOPPED, by which a job script knows that it has to be started again.
    """

    def __init__(self, run_dir: Path):
        """Drops the marker of the last stop."""
        self.run_dir = run_dir
        (run_dir / STOPPED_MARKER).unlink(missing_ok=True)
        self.by_signal = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._set)

    @property
    def by_file(self) -> bool:
        """Whether the file is there."""
        return (self.run_dir / REQUEST_FILE).exists()

    def fulfil(self) -> None:
        """Answer the file with the marker."""
        (self.run_dir / STOPPED_MARKER).touch()
        (self.run_dir / REQUEST_FILE).unlink(missing_ok=True)

    def withdraw(self) -> None:
        """A run that ends has nothing left to stop."""
        (self.run_dir / REQUEST_FILE).unlink(missing_ok=True)

    def _set(self, number: int, frame: object) -> None:
        self.by_signal = True
