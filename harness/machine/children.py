"""Processes that run this very package (fresh decoders, workers, audits): their environment, and cores for them."""

import os
from pathlib import Path


def child_environment(**settings: str) -> dict[str, str]:
    """Make the environment of a child: this one's with `settings`, and this package first on PYTHONPATH.

    What PYTHONPATH names stays: modules of a cluster put packages there.
    """
    paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))} | settings


def num_cores() -> int:
    """Count the cores that this process may use; a job of a cluster has fewer than its machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
