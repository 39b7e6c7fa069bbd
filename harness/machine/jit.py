"""Compilation of the adaptive models to machine code, which is kept on disk for later processes."""

import hashlib
import os
import tempfile
from contextlib import suppress
from pathlib import Path

import numba
from numba.core.caching import UserProvidedCacheLocator

from harness.files import user_cache

_SOURCES = (
    *("harness/machine/jit.py", "harness/model/functions.py"),
    *(f"harness/online/{name}.py" for name in ("mixture", "logistic_mixer", "ngram", "switch")),
    *(f"eval/weights/{name}.py" for name in ("arithmetic", "kernel", "tables")),
    *(f"eval/kernels/{name}.py" for name in ("attention", "float_steps", "integer_steps", "products", "vectors")),
)


def _cache_directory() -> Path:
    """A folder for these sources alone: numba does not notice changes in functions that a function calls."""
    digest = hashlib.sha256()
    for path in (Path(__file__).parents[2] / name for name in _SOURCES):
        # A program that only receives lacks some.
        digest.update(path.read_bytes() if path.exists() else b"")
    folder = user_cache() / digest.hexdigest()[:16]
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    return folder if os.access(folder, os.W_OK) else Path(tempfile.mkdtemp(prefix="codelength-"))


class _ByContent(UserProvidedCacheLocator):
    """Finds what was compiled from the same sources, wherever they lie: another clone need not compile it again."""

    @classmethod
    def get_suitable_cache_subpath(cls, py_file: str) -> str:
        """Name the room of a file, where numba would take a digest of the path to it."""
        return Path(py_file).parent.name


numba.config.CACHE_LOCATOR_CLASSES = f"{__name__}.{_ByContent.__name__}"  # type: ignore[attr-defined]
numba.config.CACHE_DIR = str(_cache_directory())  # type: ignore[attr-defined]
compiled = numba.njit(cache=True)
# Without reference counts, and so without new arrays: three times as fast where arrays come in tuples.
uncounted = numba.njit(cache=True, _nrt=False)  # type: ignore[call-overload]
# Without the interpreter's lock, for threads side by side.
unlocked = numba.njit(cache=True, nogil=True, error_model="numpy")
inlined = numba.njit(inline="always")
