"""The shortest online codes of wiki-mini by the plain transformer that were found, run again: `make race`.

    python -m tests.benchmarks.race FOLDER [--only WORD ...]

trains each record (ideal lengths, by the ledger; what trains predicts, without any other member), one at a time in one
process with one thread, and prints a Markdown table: bits/byte, bytes, CPU time of the whole command, and what the
table in docs/records.md says. What is in FOLDER already is not done again.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from harness.config.run import RunConfig, load_config
from harness.corpus.prepared import open_data
from harness.data.order import Sequences
from harness.machine.hardware import git_commit, processor_name
from harness.run.ledger import read_online_code
from harness.units import bytes_from_bits

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class Record:
    """A code and how it is made."""

    name: str
    settings: tuple[str, ...]
    """Of `codelength train`, the preset first."""
    bits_per_byte: float
    """What docs/records.md says."""


RECORDS: list[Record] = []


def main() -> None:
    """Do what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="*", help="words of the names of the records to run")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    print(f"{processor_name()}, commit {git_commit() or 'unknown'}\n")
    print("| record | bits/byte (ideal) | bytes | CPU-minutes | docs/records.md | command |")
    print("|---|---:|---:|---:|---:|---|")
    for record in RECORDS:
        if not options.only or any(word in record.name for word in options.only):
            print(_row(options.folder, record), flush=True)


def _row(folder: Path, record: Record) -> str:
    config = load_config(record.settings[0], [*record.settings[1:], *_places(folder, record)])
    minutes = _trained(folder, config, record)
    train = open_data(config).train
    code = read_online_code(config.run_dir, Sequences(train, config.model.context).num_sequences, train.num_tokens)
    command = f"codelength train {' '.join(record.settings)}"
    return (
        f"| {record.name} | {code.bits_per_byte:.4f} | {bytes_from_bits(code.ideal_bits):,.0f} | {minutes:.1f} | "
        f"{record.bits_per_byte:.4f} | `{command}` |"
    )


def _places(folder: Path, record: Record) -> list[str]:
    return [f"runs_dir={folder}/runs", f"data_dir={folder}/data", f"name={record.name.replace(' ', '-')}"]


def _trained(folder: Path, config: RunConfig, record: Record) -> float:
    """Train where that is not done; returns the CPU-minutes that it took."""
    kept = config.run_dir / "cpu_minutes.json"
    if not (config.run_dir / "DONE").exists():
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, "-m", "launch", "train", *record.settings, *_places(folder, record)]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        subprocess.run(command, check=True, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        kept.write_text(json.dumps(seconds / 60))
    return float(json.loads(kept.read_text()))


if __name__ == "__main__":
    main()
