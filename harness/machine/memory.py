"""How much memory is left to this process, by the machine and by its control groups."""

from collections.abc import Iterator
from pathlib import Path

import psutil

from harness.errors import UsageError

_GROUPS = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")
# Files of a control group by version: limit, usage, and the entry of memory.stat that can be taken back at once.
_FILES = {
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    2: ("memory.max", "memory.current", "inactive_file"),
}


def free_memory_bytes() -> int:
    """Measure the free memory of the machine, or of its container, job or service where that is less."""
    return max(0, min([psutil.virtual_memory().available, *_left_in_groups(_GROUPS, _MEMBERSHIP)]))


def check_memory(needed_bytes: int, max_memory_bytes: int | None = None) -> None:
    """Check before anything is allocated that so much memory is free and allowed; else raises UsageError."""
    free = free_memory_bytes()
    if max_memory_bytes is not None and needed_bytes > max_memory_bytes:
        raise UsageError(
            f"needs about {needed_bytes / 1e9:.1f} GB of memory to decode, --max-memory allows "
            f"{max_memory_bytes / 1e9:.1f} GB; allow more, if you trust the file"
        )
    if needed_bytes > free:
        raise UsageError(
            f"needs about {needed_bytes / 1e9:.1f} GB of memory to decode, {free / 1e9:.1f} GB are free; decode it on "
            "a larger machine"
        )


def _left_in_groups(groups: Path, membership: Path) -> Iterator[int]:
    """What each control group that this process is in has left, from its own to the outermost one."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, name = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        version, top = (1, groups / "memory") if controllers else (2, groups)
        # A container sees its own group as the outermost one, whatever the name says.
        parts = [part for part in name.split("/") if part not in ("", "..")]
        for depth in range(len(parts), -1, -1):
            left = _left(top.joinpath(*parts[:depth]), *_FILES[version])
            if left is not None:
                yield left


def _left(group: Path, limit_file: str, usage_file: str, reclaimable: str) -> int | None:
    try:
        limit, usage = (group / limit_file).read_text().strip(), int((group / usage_file).read_text())
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return None
    return None if limit == "max" else int(limit) - usage + int(stat.get(reclaimable, 0))
