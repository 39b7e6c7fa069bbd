"""What is printed, for terminals, files and pipes of any encoding."""

import codecs
import io
import sys

# What tables are drawn with; everything else is written as its number, as in \u4e2d, which can be read back.
_ASCII = {"─": "-", "━": "-", "│": "|", "…": "...", "±": "+-"}


def print_anything() -> None:
    """Let stdout take characters that its encoding lacks, such as the lines of a table where that is Latin-1."""
    codecs.register_error("codelength", _in_ascii)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="codelength")


def _in_ascii(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    return "".join(_ASCII.get(c) or c.encode("ascii", "backslashreplace").decode() for c in text), error.end
