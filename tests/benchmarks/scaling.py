"""How training scales on this machine: `python tests/benchmarks/scaling.py [--output docs/results/scaling.md]`.

Speed: tokens/s of a 5 M-parameter model with one and with two processes of one thread each, in turns, the same work a
process; the median over the logs of three rounds, the first log of each left out. Memory: of each rank at 25 M
parameters, above what the process held before it built anything, with DDP and at ZeRO stages 0 to 3.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
CONFIG = """
corpus: {kind: wiki-mini, subset_bytes: 1200000, heldout_bytes: 5000}
train: {log_every_steps: 2, precision: bf16}
optimizer: {kind: adamw, warmup_tokens: 768}
"""
FIVE_MILLION = ("model.width=256", "model.layers=6", "model.heads=4")
TWENTY_FIVE_MILLION = ("model.architecture=published", "model.width=640", "model.layers=5", "model.heads=10")
SEQUENCES_PER_PROCESS = 16
ROUNDS = 3
STEPS = 14
MEMORY = "memory-"
# The process that is measured: it trains, and says how much more memory it held at most than before.
RANK = """
import os, sys
import psutil, torch
import harness.train as train
from harness.backends import ddp, deepspeed
if "backend.name=deepspeed" in sys.argv:
    deepspeed.import_deepspeed(torch.device("cpu"))
import torch
from harness.machine.hardware import peak_memory_bytes
train.compute_deterministically()
before = psutil.Process().memory_info().rss
status = train.main(sys.argv[1:])
# In one piece: ranks write to the same place.
sys.stdout.write(f"MEMORY {os.environ.get('RANK', '0')} {peak_memory_bytes(torch.device("cpu")) - before}\\n")
sys.stdout.flush()
os._exit(status)
"""


def run(folder: Path, processes: int, name: str, *settings: str) -> str:
    """Train to the end; returns what was printed."""
    script = folder / "rank.py"
    script.write_text(RANK)
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    command = [sys.executable, *launcher, str(script), str(folder / "config.yaml"), f"name={name}", *settings]
    # Freed blocks go back to the system at once, so that the peak is that of live tensors.
    malloc = {"MALLOC_MMAP_THRESHOLD_": "65536"} if name.startswith(MEMORY) else {}
    environment = os.environ | malloc | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    if done.returncode:
        raise SystemExit(done.stderr)
    return done.stdout


def tokens_per_second(folder: Path, processes: int, name: str) -> list[float]:
    """Of every log but the first; a process reads the same number of sequences a step, however many there are."""
    batch = SEQUENCES_PER_PROCESS * processes
    settings = (*FIVE_MILLION, f"train.batch_sequences={batch}", f"corpus.subset_bytes={STEPS * batch * 512}")
    run(folder, processes, name, *settings)
    lines = (folder / "runs" / name / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["tokens_per_second"] for line in lines[1:]]


def speed_table(folder: Path) -> list[str]:
    """Both numbers of processes in turns."""
    by_processes: dict[int, list[float]] = {1: [], 2: []}
    for number in range(ROUNDS):
        for processes, rates in by_processes.items():
            rates += tokens_per_second(folder, processes, f"speed-{processes}-{number}")
    one, two = (statistics.median(rates) for rates in by_processes.values())
    return [
        "| processes | tokens/s | spread | of the ideal |",
        "| ---: | ---: | ---: | ---: |",
        f"| 1 | {one:,.0f} | {min(by_processes[1]):,.0f} to {max(by_processes[1]):,.0f} | 100 % |",
        f"| 2 | {two:,.0f} | {min(by_processes[2]):,.0f} to {max(by_processes[2]):,.0f} | {two / one / 2:.0%} |",
    ]


def memory_table(folder: Path) -> list[str]:
    """Two processes each."""
    lines = ["| backend | memory of rank 0, MB | memory of rank 1, MB | of DDP |", "| --- | ---: | ---: | ---: |"]
    reference = None
    stages = [(f"DeepSpeed, ZeRO {z}", ("backend.name=deepspeed", f"backend.zero_stage={z}")) for z in range(4)]
    for label, settings in [("DDP", ()), *stages]:
        size = ("train.batch_sequences=2", "corpus.subset_bytes=6144", "train.precision=fp32")
        printed = run(folder, 2, MEMORY + label.replace(" ", "-"), *TWENTY_FIVE_MILLION, *size, *settings)
        words = [line.split() for line in printed.splitlines() if line.startswith("MEMORY")]
        ranks = [int(size) / 1e6 for _, rank, size in sorted(words)]
        reference = reference or ranks[0]
        lines.append(f"| {label} | {ranks[0]:,.0f} | {ranks[1]:,.0f} | {ranks[0] / reference:.0%} |")
    return lines


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, help="Markdown file to write")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "config.yaml").write_text(CONFIG + f"runs_dir: {folder}/runs\ndata_dir: {folder}/data\n")
        memory, speed = memory_table(folder), speed_table(folder)
    cpu = Path("/proc/cpuinfo").read_text().splitlines()
    processor = next((line.split(":")[1].strip() for line in cpu if line.startswith("model name")), platform.machine())
    text = "\n".join(
        [
            "# Scale on one machine",
            "",
            f"Made by `python tests/benchmarks/scaling.py` on {os.cpu_count()} cores ({processor}), PyTorch "
            f"{torch.__version__}, gloo, one thread a process.",
            "",
            f"Speed: 5 M parameters, {SEQUENCES_PER_PROCESS} sequences of 512 bytes a process and step, bf16 products, "
            f"AdamW, DDP; median of {ROUNDS} rounds in turns.",
            "",
            *speed,
            "",
            "Memory: 25 M parameters (100 MB of float32 weights, as much of gradients, 200 MB of AdamW's state), one "
            "sequence a process, fp32, two processes; the most that a rank held above its libraries in live tensors.",
            "",
            *memory,
            "",
        ]
    )
    print(text)
    if options.output:
        options.output.write_text(text)


if __name__ == "__main__":
    main()
