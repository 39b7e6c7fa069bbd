"""Kills at random moments: `python -m tests.faults.kills [--times 20] [--seed 0] [COMMAND ...]`.

Each command of a tiny job (tests/faults/run.py) is killed (SIGKILL) at a random moment and started again, until it ends
by itself; what it leaves must be, bit by bit, what the undisturbed command leaves.
"""

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

from tests.faults.run import COMMANDS, copied, digest_of, expected_digest, import_all, run, stages, start

KILLS_AT_MOST = 3


def main() -> int:
    """Print how many ended alike; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("commands", nargs="*", choices=COMMANDS, default=list(COMMANDS), help="default: all")
    parser.add_argument("--times", type=int, default=20, help="how often each command is killed")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    chooser, harms = random.Random(options.seed), 0
    import_all()
    with tempfile.TemporaryDirectory() as scratch:
        for command, before in stages(Path(scratch), options.commands):
            identical, kills = examine(Path(scratch), before, command, options.times, chooser)
            harms += options.times - identical
            print(f"{command}: {kills} kills, {identical} of {options.times} identical", flush=True)
    return int(bool(harms))


def examine(scratch: Path, before: Path, command: str, times: int, chooser: random.Random) -> tuple[int, int]:
    """How many of `times` jobs ended alike, and how many kills hit one that ran."""
    began = time.monotonic()
    expected = expected_digest(scratch, before, command)
    seconds, identical, kills = time.monotonic() - began, 0, 0
    for _ in range(times):
        with copied(scratch, before) as folder:
            for _ in range(chooser.randint(1, KILLS_AT_MOST)):
                pid = start(folder, command)
                time.sleep(chooser.random() * seconds)
                os.kill(pid, signal.SIGKILL)
                _, status = os.waitpid(pid, 0)
                kills += os.WIFSIGNALED(status)
            status, _, said = run(folder, command)
            is_same = status == 0 and digest_of(folder, command) == expected
            identical += is_same
            if not is_same:
                print(f"{command}: status {status}, {said[-300:]}", file=sys.stderr)
    return identical, kills


if __name__ == "__main__":
    sys.exit(main())
