"""The `codelength` command: one subcommand per step of the work."""

import os
import signal
import sys
from collections.abc import Sequence

from harness.errors import CodelengthError, is_said_here
from harness.output import print_anything
from launch.parser import make_parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand; returns the exit status: 0, 1 (the work failed) or 2 (usage or input)."""
    print_anything()
    parser = make_parser()
    options, unknown = parser.parse_known_args(arguments)
    # argparse takes no more positionals once an option has come; settings may stand anywhere.
    if unknown and (not hasattr(options, "overrides") or any(text.startswith("-") for text in unknown)):
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if unknown:
        options.overrides += unknown
    try:
        status = options.run(options)
        sys.stdout.flush()
    except CodelengthError as error:
        if is_said_here(error):
            for line in str(error).splitlines():
                print(f"codelength: {line}", file=sys.stderr)
        return error.exit_status
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            # The reader of a pipe (`| head`) has seen enough; nothing more can be said to it.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        print(f"codelength: {error.filename or 'system'}: {error.strerror or error}", file=sys.stderr)
        return 1
    except MemoryError:
        print("codelength: out of memory", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("codelength: interrupted; nothing half-written is left", file=sys.stderr)
        return 128 + signal.SIGINT
    return status or 0
