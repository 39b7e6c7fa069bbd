"""Files on disk: written whole or not at all, durably, and read again with patience for a network file system."""

import errno
import hashlib
import json
import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, TypeVar

from harness.errors import RunFailure

T = TypeVar("T")

# File names have 255 bytes at most; a temporary one adds to what is kept of the final one.
_KEPT_NAME_CHARACTERS = 40
# What a file system that was away for a moment says, and what goes away by itself.
PASSING_ERRORS = (errno.ESTALE, errno.EIO, errno.EAGAIN, errno.EINTR, errno.ETIMEDOUT, errno.EBUSY)
SECONDS_BETWEEN_TRIES = (0.1, 0.4, 1.5, 4.0)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Replace `path` durably when the context ends; after an error all is as it was.

    It gets the mode of what it replaces; a link stays, and its target is replaced. Raises OSError.
    """
    path = path.resolve()
    temporary = temporary_path(path)
    try:
        # Exclusive, so that no other writer's file, nor one laid there on purpose, is written into.
        with temporary.open("xb") as file:
            if path.exists():
                os.fchmod(file.fileno(), path.stat().st_mode & 0o7777)
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_directory(path.parent)
    except OSError as error:
        # A write that fails (a full disk, a limit on sizes) names no file by itself.
        if error.filename in (None, temporary, str(temporary)):
            error.filename = str(path)
        raise
    finally:
        # What is left of a file system that fails is no reason to forget why.
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_file(path: Path, content: bytes) -> None:
    """Write a file whole and durably.

    Raises RunFailure where it cannot be written; what was there before is then untouched.
    """
    try:
        with replacing(path) as file:
            file.write(content)
    except OSError as error:
        raise RunFailure(f"{path}: not written ({reason(error)}); nothing was changed") from None


def reason(error: OSError) -> str:
    """Give the words of an OSError, with the remedy where the disk is full."""
    words = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{words}: free disk space, or use another folder"
    return f"{words}: raise it with `ulimit -f`" if error.errno == errno.EFBIG else words


def write_json(path: Path, content: dict) -> None:
    """Write JSON so that a reader sees the old file or the whole new one.

    Raises RunFailure where it cannot be written.
    """
    write_file(path, (json.dumps(content, indent=2, sort_keys=False, allow_nan=False) + "\n").encode())


def temporary_path(path: Path) -> Path:
    """Make up a hidden name beside `path` that nothing else has, on any machine."""
    return path.with_name(f".{path.name[:_KEPT_NAME_CHARACTERS]}.{secrets.token_hex(6)}.tmp")


def make_directory(directory: Path) -> None:
    """Make a directory and those above it, durably, where they are missing."""
    if not directory.is_dir():
        make_directory(directory.parent)
        directory.mkdir(exist_ok=True)
        sync_directory(directory.parent)


def sync_directory(directory: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        with naming(directory):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    """Compute the SHA-256 of a file, in hexadecimal digits.

    Raises OSError.
    """
    with naming(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_file(path: Path) -> bytes:
    """Read a file, again where the file system was away for a moment.

    Raises OSError.
    """
    with naming(path):
        return with_retries(path.read_bytes)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Add the name of the file to errors of reading and writing an open one, which lack it."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def with_retries(work: Callable[[], T]) -> T:
    """Call `work`, which only reads, again where the file system was away for a moment; returns its result.

    Raises the last OSError.
    """
    for seconds in SECONDS_BETWEEN_TRIES:
        try:
            return work()
        except OSError as error:
            if error.errno not in PASSING_ERRORS:
                raise
            time.sleep(seconds)
    return work()


def user_cache() -> Path:
    """Find the user's folder of caches; it may be missing, or not writable."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "codelength"
