"""`codelength doctor`: what this machine has, what is missing for training, and the command that mends it."""

import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from eval.show.blocks import Block, render
from harness.errors import RunFailure
from harness.machine.progress import ProgressLine, is_terminal
from launch.doctor import checks
from launch.doctor.checks import Finding
from launch.doctor.storage import check_disk, check_file_system

# A check that starts processes gives these less.
CHECK_SECONDS = 40.0


def doctor(runs_dir: Path, as_json: bool) -> None:
    """Print every check; `runs_dir` is where runs will lie and may not exist yet.

    Raises RunFailure with a line for everything necessary that is missing.
    """
    to_do = all_checks(runs_dir)
    results: dict[str, tuple[Finding, float]] = {}
    line = ProgressLine()
    for name, check in to_do.items():
        if is_terminal():
            line.show(f"{len(results) + 1}/{len(to_do)} {name}")
        start = time.perf_counter()
        results[name] = (examined(check), time.perf_counter() - start)
    line.wipe()
    missing = [f"{name}: {f.found}; {f.remedy}" for name, (f, _) in results.items() if f.status == "missing"]
    entries = [{"name": n, **asdict(f), "seconds": round(s, 3)} for n, (f, s) in results.items()]
    tables = [_block({name: finding for name, (finding, _) in results.items()})]
    print(render(tables, {"ok": not missing, "checks": entries}, "json" if as_json else "rich"), end="")
    if missing:
        raise RunFailure("\n".join(missing))


def all_checks(runs_dir: Path) -> dict[str, Callable[[], Finding]]:
    """List every check by name, in the order of the table."""
    return {
        "python": checks.check_python,
        "torch": checks.check_torch,
        "devices": checks.check_devices,
        "deepspeed": checks.check_deepspeed,
        "compilers": checks.check_compilers,
        "precision": checks.check_precision,
        "training": checks.check_training,
        "threads": checks.check_threads,
        "slurm": checks.check_slurm,
        "disk": lambda: check_disk(runs_dir),
        "file system": lambda: check_file_system(runs_dir),
        "memory": checks.check_memory,
        "open files": checks.check_open_files,
        "all-reduce": checks.check_all_reduce,
        "commit": checks.check_commit,
    }


def examined(check: Callable[[], Finding], seconds: float = CHECK_SECONDS) -> Finding:
    """Run a check; one that fails or does not end is a finding too."""
    findings: list[Finding] = []

    def work() -> None:
        try:
            findings.append(check())
        except Exception as error:
            words = f"failed: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
            findings.append(Finding("missing", words, "mend what these words name, and try again"))

    # A call into a hung network file system cannot be interrupted, only left behind.
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    if findings:
        return findings[0]
    return Finding("missing", f"no answer in {seconds:g} s", "end what keeps this machine busy, and try again")


def _block(findings: dict[str, Finding]) -> Block:
    return Block(
        title="What this machine has",
        header=["check", "status", "found"],
        is_number=[False] * 3,
        rows=[[name, finding.status, finding.found] for name, finding in findings.items()],
        emphasised_rows=[finding.status != "ok" for finding in findings.values()],
        notes=[f"{name}: {finding.remedy}" for name, finding in findings.items() if finding.remedy],
    )
