"""The `codelength` command: one subcommand per step of the work."""

import os
import re
import sys
from collections.abc import Sequence
from importlib import metadata

from harness.errors import CodelengthError, print_error, prints_error
from harness.machine.output import print_anything
from harness.machine.stop import Interrupted, interruptible, outlive_terminal

# Packages whose modules have another name.
_MODULES = {"pyyaml": "yaml"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand; returns the exit status.

    0, 1 (the work failed), 2 (usage or input), 75 (asked to make room: to be started again) or 130 (interrupted).
    """
    print_anything()
    outlive_terminal()
    try:
        with interruptible():
            return _run(arguments)
    except (CodelengthError, Interrupted) as error:
        if prints_error(error):
            for line in str(error).splitlines():
                print_error(line)
        return error.exit_status
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            # The reader of a pipe (`| head`) has seen enough; nothing more can be said to it.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        print_error(f"{error.filename or 'system'}: {error.strerror or error}")
        return 1
    except ModuleNotFoundError as error:
        if not (extra := extra_with(error.name)):
            raise
        print(f"codelength: needs {error.name}, which is not installed; pip install '{extra}'", file=sys.stderr)
        return 1
    except MemoryError:
        print("codelength: out of memory", file=sys.stderr)
        return 1


def extra_with(module: str | None) -> str:
    """Find the extra of this package that installs a module, as pip takes it; nothing where none does."""
    wanted = (module or "").partition(".")[0].lower()
    for line in metadata.requires("codelength") or []:
        match = re.match(r"([\w.-]+).*extra == ['\"](.+?)['\"]", line)
        if match and _MODULES.get(match[1].lower(), match[1].lower().replace("-", "_")) == wanted:
            return f"codelength[{match[2]}]"
    return ""


def _run(arguments: Sequence[str] | None) -> int:
    # Inside, where a signal finds somebody who listens.
    from launch.commands.machines import with_passed_options
    from launch.commands.parser import make_parser

    parser = make_parser()
    options, unknown = parser.parse_known_args(with_passed_options(sys.argv[1:] if arguments is None else arguments))
    # argparse takes no more positionals once an option has come; settings may stand anywhere.
    if unknown and (not hasattr(options, "overrides") or any(text.startswith("-") for text in unknown)):
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if unknown:
        options.overrides += unknown
    status = options.run(options)
    sys.stdout.flush()
    return status or 0
