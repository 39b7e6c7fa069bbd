"""Sizes of other compressors, kept: a text that many runs are compared on is compressed once."""

import contextlib
import hashlib
import json
import sys
from importlib.metadata import version
from pathlib import Path

from eval.baselines import BASELINES, measure
from harness.errors import RunFailure
from harness.files import write_file

_PACKAGES = ("brotli", "pyppmd", "zstandard")


def measured(text: bytes, chunk_bytes: int, folder: Path, names: list[str] | None = None) -> dict[str, int]:
    """What `measure` says, in bytes by baseline; measured once for a text, a size of chunks and versions of programs.

    Files in `folder` hold what was measured before; one that cannot be read or written only costs the time again.
    """
    wanted = [baseline.name for baseline in BASELINES if names is None or baseline.name in names]
    programs = [f"python {sys.version}", *(f"{package} {version(package)}" for package in _PACKAGES)]
    key = hashlib.sha256("\n".join([hashlib.sha256(text).hexdigest(), str(chunk_bytes), *programs]).encode())
    path = folder / f"{key.hexdigest()[:32]}.json"
    known = _read(path)
    missing = [name for name in wanted if name not in known]
    if missing:
        known |= measure(text, chunk_bytes, names=missing)
        _write(path, known)
    return {name: known[name] for name in wanted}


def _read(path: Path) -> dict[str, int]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(content, dict):
        return {}
    return {name: size for name, size in content.items() if isinstance(size, int) and size >= 0}


def _write(path: Path, sizes: dict[str, int]) -> None:
    with contextlib.suppress(OSError, RunFailure):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, (json.dumps(sizes, indent=2) + "\n").encode())
