"""What `codelength doctor` finds where the runs lie: space, and what checkpoints and sweeps rely on."""

import fcntl
import os
import shutil
import tempfile
import time
from pathlib import Path

import psutil

from launch.doctor.checks import Finding

FEW_DISK_BYTES = 5_000_000_000


def check_disk(runs_dir: Path) -> Finding:
    """Check the free space where the runs lie."""
    place = existing_parent(runs_dir)
    usage = shutil.disk_usage(place)
    found = f"{usage.free / 1e9:,.1f} of {usage.total / 1e9:,.1f} GB free at {place}"
    if usage.free < FEW_DISK_BYTES:
        return Finding("warn", found, "free some space, or set runs_dir and data_dir to another disk")
    return Finding("ok", found)


def check_file_system(runs_dir: Path) -> Finding:
    """Try what checkpoints and sweeps rely on, in the file system where the runs lie."""
    place = existing_parent(runs_dir)
    kind = file_system_type(place)
    try:
        with tempfile.TemporaryDirectory(prefix=".codelength-doctor-", dir=place) as folder:
            broken, fsync_seconds, mtime_nanoseconds = try_file_system(Path(folder))
    except OSError as error:
        found = f"{kind} at {place}: not writable ({error.strerror})"
        return Finding("missing", found, "set runs_dir (here --runs-dir) to a folder that you can write to, with space")
    shown = f"{kind} at {place}; fsync {1e3 * fsync_seconds:.1f} ms, times to {mtime_nanoseconds:,} ns"
    if not broken:
        return Finding("ok", f"{shown}; rename, fsync, O_EXCL and flock work")
    remedy = "set runs_dir and data_dir to another file system"
    necessary = [name for name in broken if name != "flock"]
    if necessary:
        return Finding("missing", f"{shown}; broken: {', '.join(broken)}", remedy)
    return Finding("warn", f"{shown}; no flock: sweeps of one name must not run twice at once", remedy)


def try_file_system(folder: Path) -> tuple[list[str], float, int]:
    """Try a file system in an empty folder; returns what fails, seconds of an fsync, and nanoseconds of file times.

    Raises OSError where it cannot be written to.
    """
    broken = []
    old, new = folder / "old", folder / "new"
    old.write_bytes(b"old")
    start = time.perf_counter()
    with new.open("wb") as file:
        # More than what a file system keeps beside its directory entries.
        file.write(b"new" * 4096)
        file.flush()
        os.fsync(file.fileno())
    fsync_seconds = time.perf_counter() - start
    new.replace(old)
    if new.exists() or old.read_bytes() != b"new" * 4096:
        broken.append("rename over a file")
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        broken.append("fsync of a directory")
    finally:
        os.close(descriptor)
    try:
        os.close(os.open(old, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        broken.append("O_EXCL")
    except FileExistsError:
        pass
    (folder / "step.tmp").mkdir()
    (folder / "step.tmp" / "state").touch()
    (folder / "step.tmp").rename(folder / "step")
    if not (folder / "step" / "state").exists() or (folder / "step.tmp").exists():
        broken.append("rename of a directory")
    if not _locks(old):
        broken.append("flock")
    return broken, fsync_seconds, _time_step(old)


def _locks(path: Path) -> bool:
    with path.open("ab") as first, path.open("ab") as second:
        try:
            fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            pass
    return False


def _time_step(path: Path) -> int:
    """Granularity of the file's times: what is left of an uneven time in nanoseconds."""
    wanted = 1_000_000_000_123_456_789
    os.utime(path, ns=(wanted, wanted))
    lost = abs(wanted - path.stat().st_mtime_ns)
    return next(step for step in (1, 100, 1_000, 1_000_000, 1_000_000_000, 2_000_000_000) if lost < step)


def file_system_type(path: Path) -> str:
    """Read the type of a file system from the mount table."""
    path = path.resolve()
    mounts = [p for p in psutil.disk_partitions(all=True) if path.is_relative_to(p.mountpoint)]
    # Of mounts over one another the last one is seen.
    return max(enumerate(mounts), key=lambda m: (len(m[1].mountpoint), m[0]))[1].fstype if mounts else "unknown"


def existing_parent(path: Path) -> Path:
    """Find the path itself, or the nearest directory above it that exists."""
    return next(p for p in (path.absolute(), *path.absolute().parents) if p.is_dir())
