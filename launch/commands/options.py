"""Flags of several commands, and what their values may be."""

import argparse
import re
from collections.abc import Callable
from pathlib import Path

from harness.machine.children import num_cores

MAX_DIGITS = 15
MAX_DEVIATION = 1000.0
AddCommand = Callable[[str, Callable[[argparse.Namespace], int | None], str], argparse.ArgumentParser]
"""Name, action and help of a command -> the parser that takes its flags."""


def add_work_options(sub: argparse.ArgumentParser) -> None:
    """Add the flags of commands that code blocks in threads."""
    cores = num_cores()
    sub.add_argument("--threads", type=positive, default=cores, help="blocks computed at a time (default: %(default)s)")
    sub.add_argument("--quiet", action="store_true", help="no progress")


def add_config(sub: argparse.ArgumentParser) -> None:
    """Add the arguments CONFIG and key=value."""
    sub.add_argument("config", metavar="CONFIG", help="a YAML file, or the name of a preset (`codelength init`)")
    sub.add_argument("overrides", nargs="*", metavar="key=value", help="for example train.epochs=2")


def add_output(sub: argparse.ArgumentParser) -> None:
    """Add the flags of an output file."""
    sub.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="`-`: standard output")
    sub.add_argument("--force", action="store_true", help="replace FILE if it exists; its mode and a link to it stay")


def add_max_memory(sub: argparse.ArgumentParser) -> None:
    """Add the flag that limits the memory of decoding."""
    sub.add_argument("--max-memory", type=size, metavar="BYTES", help="refuse files that need more, such as 500M or 4G")


def size(text: str) -> int:
    """Parse a number of bytes, such as 500M."""
    units = {"k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
    number, unit = (text[:-1], units[text[-1]]) if text[-1:] in units else (text, 1)
    return positive(number) * unit


def positive(text: str) -> int:
    """Parse a whole number from 1 on."""
    if not _is_number(text) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text[:40]}: must be a whole number, at least 1")
    return int(text)


def gpus(text: str) -> tuple[str | None, int]:
    """Parse the type and number of GPUs."""
    kind, _, number = text.rpartition(":")
    if not number.isdecimal() or int(number) < 1 or (":" in text and not re.fullmatch(r"[A-Za-z0-9._-]+", kind)):
        raise argparse.ArgumentTypeError(f"{text}: must be a number, or a type with a number such as h100:8")
    return kind or None, int(number)


def fraction(text: str) -> float:
    """Parse a number above 0 and at most 1."""
    try:
        fraction = float(text)
    except ValueError:
        fraction = 0.0
    if not 0 < fraction <= 1:
        raise argparse.ArgumentTypeError(f"{text}: must be above 0 and at most 1")
    return fraction


def natural(text: str) -> int:
    """Parse a whole number from 0 on."""
    if not _is_number(text):
        raise argparse.ArgumentTypeError(f"{text[:40]}: must be a whole number, 0 or more")
    return int(text)


def _is_number(text: str) -> bool:
    """Whether this is a whole number that anything can be counted with."""
    return text.isdecimal() and len(text) <= MAX_DIGITS
