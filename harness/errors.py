"""Errors that a user sees: one line that names key, value and remedy, never a traceback."""

import os


class CodelengthError(Exception):
    """Base of both kinds; `exit_status` is what the command ends with."""

    exit_status = 1


class UsageError(CodelengthError):
    """The command line, a configuration, a corpus or an input file is wrong."""

    exit_status = 2


class Stopped(CodelengthError):
    """The run was asked to stop, and has saved; every rank says the same."""


class RunFailure(CodelengthError):
    """The work itself failed (a full disk, a dead rank, a loss that is not finite)."""

    exit_status = 1


class OtherRankFailed(RunFailure):
    """What another rank failed of, which it says itself."""


def is_said_here(error: CodelengthError) -> bool:
    """Whether this rank prints an error: what every rank would say, the first one says."""
    if isinstance(error, OtherRankFailed):
        return False
    return os.environ.get("RANK", "0") == "0" or not isinstance(error, UsageError | Stopped)
