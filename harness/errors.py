"""Errors that a user sees: one line that names key, value and remedy, never a traceback."""

import os
import sys

# EX_TEMPFAIL: nothing has failed, and the same command is wanted again. Job scripts queue themselves again by it.
PAUSED_STATUS = 75


class CodelengthError(Exception):
    """Base of both kinds; `exit_status` is what the command ends with."""

    exit_status = 1


class UsageError(CodelengthError):
    """The command line, a configuration, a corpus or an input file is wrong."""

    exit_status = 2


class Stopped(CodelengthError):
    """The run was asked to stop, and has saved; every rank says the same."""


class Paused(Stopped):
    """The run was asked to make room and has saved: whoever started it may start it again."""

    exit_status = PAUSED_STATUS


class RunFailure(CodelengthError):
    """The work itself failed (a full disk, a dead rank, a loss that is not finite)."""

    exit_status = 1


class OtherRankFailed(RunFailure):
    """The failure of another rank, which prints it itself."""


def prints_error(error: BaseException) -> bool:
    """Whether this rank prints an error: what every rank would say, the first one says."""
    if isinstance(error, OtherRankFailed):
        return False
    return is_leading_process() or not isinstance(error, UsageError | Stopped | KeyboardInterrupt)


def print_error(words: object) -> None:
    """Print an error as one line, in one piece: ranks that end together share a stderr."""
    sys.stderr.write(f"codelength: {words}\n")
    sys.stderr.flush()


def is_leading_process() -> bool:
    """Whether this process is the first rank, or has no proper place among others."""
    rank, world_size = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    return not (rank.isdecimal() and world_size.isdecimal() and 0 < int(rank) < int(world_size))
