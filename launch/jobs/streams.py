"""Where a command reads and writes: files, or standard input and output by the name `-`."""

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from pathlib import Path
from typing import TypeVar

from harness.errors import RunFailure, UsageError
from harness.files import temporary_path

STANDARD = Path("-")

Source = TypeVar("Source", Path, Path | None)


@contextmanager
def opened(source: Source, output: Path, force: bool) -> Iterator[tuple[Source, Path]]:
    """Give files in place of `source` and `output`, either of which may be `-`; what is written goes out at the end.

    While standard output is an output, all that is printed goes to standard error. Raises UsageError where `output`
    is no place for a file, before anything is read.
    """
    with ExitStack() as stack:
        if output != STANDARD:
            check_output(output, force)
        if STANDARD in (source, output):
            if "WORLD_SIZE" in os.environ:
                raise UsageError("-: ranks of a job cannot share standard input or output; give the path of a file")
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="codelength-")))
        if source == STANDARD:
            source = folder / "stdin"
            with source.open("wb") as file:
                shutil.copyfileobj(sys.stdin.buffer, file)
        if output != STANDARD:
            yield source, output
            return
        written = folder / "stdout"
        with _printing_to_stderr() as descriptor:
            yield source, written
            if written.exists():
                _copy_out(written, descriptor)


def check_output(path: Path, force: bool) -> None:
    """Check that a file can be written at `path`, where no other is unless `force`; else raises UsageError.

    That is tried, since it would otherwise be found after hours of work.
    """
    try:
        if (path.exists() and not path.is_file()) or not path.parent.is_dir():
            raise UsageError(f"{path}: not a place for a file; give the path of a file in an existing directory")
        if path.exists() and not force:
            raise UsageError(f"{path}: exists already; remove it, choose another -o, or add --force")
        tried = temporary_path(path.resolve())
        tried.open("xb").close()
        tried.unlink()
    except OSError as error:
        raise UsageError(f"{path}: cannot be written ({error.strerror}); choose another -o") from None


@contextmanager
def _printing_to_stderr() -> Iterator[int]:
    """A descriptor of standard output, which this process and its children meanwhile cannot print to."""
    sys.stdout.flush()
    descriptor = os.dup(1)
    os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield descriptor
    finally:
        os.dup2(descriptor, 1)
        os.close(descriptor)


def _copy_out(written: Path, descriptor: int) -> None:
    try:
        with written.open("rb") as file, os.fdopen(descriptor, "wb", closefd=False) as out:
            shutil.copyfileobj(file, out)
    except OSError as error:
        raise RunFailure(f"standard output: not written ({error.strerror})") from None
