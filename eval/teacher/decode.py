"""Decode archives of targets in a process of their own: `python -m eval.teacher.decode FILE...`.

Prints the SHA-256 of the float32 targets of each file, as sha256sum does of files; `-o FILE` also writes those of a
single archive. Needs nothing but the archives.
"""

import argparse
import hashlib
import sys
from pathlib import Path

from eval.teacher.archive import read_archive, target_bytes
from harness.errors import CodelengthError, print_error
from harness.files import write_file
from harness.machine.output import print_anything


def main() -> int:
    """Decode archives; returns the exit status: 0, or 1 or 2 with one line of what is wrong."""
    print_anything()
    parser = argparse.ArgumentParser(prog="python -m eval.teacher.decode", description=__doc__)
    parser.add_argument("archives", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("-o", "--output", type=Path, metavar="OUT", help="little-endian float32 targets of one FILE")
    options = parser.parse_args()
    if options.output and len(options.archives) > 1:
        parser.error("-o takes the targets of one archive; give a single FILE")
    try:
        for path in options.archives:
            content = target_bytes(read_archive(path))
            if options.output:
                write_file(options.output, content)
            print(f"{hashlib.sha256(content).hexdigest()}  {path}", flush=True)
    except CodelengthError as error:
        print_error(error)
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
