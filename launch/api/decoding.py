"""Decoding, for which the packages that come with this one suffice."""

import functools
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

import torch

from harness.machine.children import num_cores

P = ParamSpec("P")
T = TypeVar("T")


def restoring_threads(call: Callable[P, T]) -> Callable[P, T]:
    """Wrap `call` so that PyTorch has its number of threads again afterwards: runs depend on it."""

    @functools.wraps(call)
    def wrapped(*arguments: P.args, **named: P.kwargs) -> T:
        before = torch.get_num_threads()
        try:
            return call(*arguments, **named)
        finally:
            torch.set_num_threads(before)

    return wrapped


@restoring_threads
def decompress(archive: str | os.PathLike, threads: int | None = None, max_memory_bytes: int | None = None) -> bytes:
    """Decode the text of an archive, checked by its SHA-256; raises UsageError where it is foreign or damaged."""
    from eval.offline.archive import read_archive

    return read_archive(Path(archive), threads or num_cores(), silent, max_memory_bytes)


@restoring_threads
def receive(file: str | os.PathLike, max_memory_bytes: int | None = None) -> bytes:
    """Decode the text of an online code that one process has sent, checked by its SHA-256.

    Raises UsageError where the file is foreign or damaged, or this machine computes otherwise than the sender's. To go
    on after a stop, use `codelength receive`.
    """
    from eval.online.file import read_online_file
    from eval.online.receive import receive as receive_text
    from harness.job import joined_job

    path = Path(file)
    _, config, *_ = read_online_file(path)
    with tempfile.TemporaryDirectory(prefix="codelength-") as folder, joined_job(config) as ranks:
        output = Path(folder) / "received"
        receive_text(path, output, ranks, silent, max_memory_bytes)
        return output.read_bytes()


def silent(done: int, total: int) -> None:
    """Progress that nobody watches."""
