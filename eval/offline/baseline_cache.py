"""Sizes of other compressors, kept: a text that many runs are compared on is compressed once."""

import contextlib
import hashlib
import inspect
import json
import sys
from collections.abc import Collection
from importlib.metadata import version
from pathlib import Path

from eval.offline import baselines, compressors
from eval.offline.baselines import BASELINES, Baseline, measure
from harness.errors import RunFailure
from harness.files import write_file


def measured(
    text: bytes, chunk_bytes: int, folder: Path, names: Collection[str] | None = None, training: bytes = b""
) -> dict[str, int]:
    """What `measure` says, in bytes by baseline; measured once for all that decides a size.

    That is the text, the size of its chunks, for a dictionary the training text too, the version of the program and
    how it is called. Files in `folder` hold what was measured before; one that cannot be read or written only costs
    the time again.
    """
    key = hashlib.sha256(f"{hashlib.sha256(text).hexdigest()} {chunk_bytes} {_sources_sha256()}".encode())
    path = folder / f"{key.hexdigest()[:32]}.json"
    entries = {b.name: _entry(b, training) for b in BASELINES if b.is_installed and (names is None or b.name in names)}
    known = _read(path)
    missing = [name for name, entry in entries.items() if entry not in known]
    if missing:
        found = measure(text, chunk_bytes, names=missing, training=training)
        known |= {entries[name]: size for name, size in found.items()}
        _write(path, known)
    return {name: known[entry] for name, entry in entries.items()}


def _entry(baseline: Baseline, training: bytes) -> str:
    """What decides the size of one baseline besides the text and its chunks."""
    program = f"{baseline.package} {version(baseline.package)}" if baseline.package else f"python {sys.version}"
    dictionary = f", of {hashlib.sha256(training).hexdigest()[:32]}" if baseline.learns else ""
    return f"{baseline.name}, {program}{dictionary}"


def _sources_sha256() -> str:
    """How the programs are called."""
    sources = b"".join(Path(inspect.getfile(module)).read_bytes() for module in (baselines, compressors))
    return hashlib.sha256(sources).hexdigest()


def _read(path: Path) -> dict[str, int]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(content, dict):
        return {}
    return {entry: size for entry, size in content.items() if isinstance(size, int) and size >= 0}


def _write(path: Path, sizes: dict[str, int]) -> None:
    with contextlib.suppress(OSError, RunFailure):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, (json.dumps(sizes, indent=2) + "\n").encode())
