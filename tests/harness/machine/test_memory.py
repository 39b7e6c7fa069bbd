"""Free memory: the smallest of what the machine and each control group have left."""

from pathlib import Path

import psutil
import pytest

from harness.machine.memory import _left_in_groups, free_memory_bytes

GB = 10**9


def group(folder: Path, limit: str, usage: int, inactive: int, version: int) -> None:
    """A control group as the kernel shows it."""
    folder.mkdir(parents=True, exist_ok=True)
    limit_file, usage_file, prefix = (
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_")
        if version == 1
        else ("memory.max", "memory.current", "")
    )
    (folder / limit_file).write_text(f"{limit}\n")
    (folder / usage_file).write_text(f"{usage}\n")
    (folder / "memory.stat").write_text(f"cache 5\n{prefix}inactive_file {inactive}\n")


@pytest.mark.parametrize("version", [1, 2])
def test_what_control_groups_allow_counts(tmp_path, version):
    groups, membership = tmp_path / "cgroup", tmp_path / "membership"
    top = groups / "memory" if version == 1 else groups
    unlimited = "max" if version == 2 else "9223372036854771712"
    group(top, unlimited, 9 * GB, GB, version)
    group(top / "slurm", str(8 * GB), 5 * GB, 2 * GB, version)
    group(top / "slurm" / "job_7", unlimited, GB, 0, version)
    name = "/slurm/job_7"
    membership.write_text(f"5:cpu,cpuacct:/x\n3:memory:{name}\n" if version == 1 else f"0::{name}\n")
    assert min(_left_in_groups(groups, membership)) == 5 * GB
    # As inside a container, which does not see its own name.
    group(top, str(3 * GB), GB, 0, version)
    membership.write_text("4:memory:/docker/abc\n" if version == 1 else "0::/../..\n")
    assert list(_left_in_groups(groups, membership)) == [2 * GB]


def test_no_control_groups_leave_the_machine(tmp_path):
    assert list(_left_in_groups(tmp_path, tmp_path / "none")) == []
    assert 0 < free_memory_bytes() <= psutil.virtual_memory().total
