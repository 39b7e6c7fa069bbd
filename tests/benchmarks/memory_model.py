"""Peak memory of real training runs on a CPU, beside what `codelength plan` predicts.

python -m tests.benchmarks.memory_model [--only NAME]

Every run is a fresh process for each rank, which first does a tiny run (imports, libraries' own tables) and then counts
from its resident memory at that moment. glibc keeps freed blocks of up to 32 MB for later, as much as half of what the
tensors take; a fixed threshold gives every large block back at once, so that the peak is that of live tensors.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
SMALL = ("model.width=256", "model.layers=6", "model.heads=4")
LARGE = ("model.width=512", "model.layers=8", "model.heads=8")
FP32, BF16, ADAMW = "train.precision=fp32", "train.precision=bf16", "optimizer.kind=adamw"
PUBLISHED = "model.architecture=published"
PRUNED = ("prune.kind=tamade", "prune.grid=1", "prune.resolution=0.1", "prune.sample_sequences=4", "prune.tolerance=0")
ZERO = ("backend.name=deepspeed", "train.batch_sequences=8")
CASES: dict[str, tuple[int, tuple[str, ...]]] = {
    "5 M, Muon": (1, (*SMALL, FP32)),
    "5 M, AdamW, published": (1, (*SMALL, FP32, ADAMW, PUBLISHED)),
    "5 M, Muon, bf16": (1, (*SMALL, BF16)),
    "5 M, Muon, recomputing": (1, (*SMALL, FP32, "train.activation_checkpointing=true")),
    "5 M, Muon, accumulating": (1, (*SMALL, FP32, "train.micro_batch_sequences=2")),
    "5 M, Muon, pruned on a grid": (1, (*SMALL, FP32, *PRUNED)),
    "5 M, Muon, pruned by layers": (1, (*SMALL, FP32, *PRUNED, "prune.kind=layerwise", "prune.steps=5")),
    "25 M, Muon": (1, (*LARGE, FP32, "train.batch_sequences=2")),
    "25 M, AdamW": (1, (*LARGE, FP32, ADAMW, "train.batch_sequences=2")),
    "5 M, AdamW, 2 ranks": (2, (*SMALL, FP32, ADAMW, "train.batch_sequences=8")),
    **{
        f"5 M, AdamW, 2 ranks ZeRO-{stage}": (2, (*SMALL, FP32, ADAMW, *ZERO, f"backend.zero_stage={stage}"))
        for stage in range(4)
    },
    "25 M, AdamW, 2 ranks ZeRO-3": (
        2,
        (*LARGE, FP32, ADAMW, *ZERO[:1], "train.batch_sequences=4", "backend.zero_stage=3"),
    ),
    "5 M, Muon, 2 ranks ZeRO-2": (2, (*SMALL, FP32, *ZERO, "backend.zero_stage=2")),
    "5 M, bf16 weights, ZeRO-2": (2, (*SMALL, BF16, ADAMW, *ZERO, "backend.zero_stage=2", "backend.bf16_weights=true")),
}

FULL_BATCHES = ("train.batch_sequences=4", "train.batch_schedule=[]")
"""Three steps read the text of a run; smaller ones take less memory and many times as long."""


def predicted_bytes(ranks: int, settings: tuple[str, ...]) -> float:
    """Peak of a rank above its fixed part."""
    from harness.config.run import load_config
    from launch.plan.memory import count_parameters, moments, online_memory_bytes

    config = load_config(ROOT / "configs/wiki-mini.yaml", [*FULL_BATCHES, *settings])
    parameters = count_parameters(config, 256)
    online = online_memory_bytes(config, [parameters], 256, ranks)
    memories = moments(config, parameters, 256, ranks, config.train.precision == "bf16", online, on_gpu=False)
    return max(memory.total for memory in memories)


def measured_bytes(ranks: int, settings: tuple[str, ...]) -> float:
    """Peak of the largest rank of a run of three steps above what its processes took before."""
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "text"
        text.write_bytes(os.urandom(40_000))
        common = (f"runs_dir={folder}", f"data_dir={folder}/data", "corpus.kind=files", f"corpus.path={text}")
        common += ("corpus.heldout_bytes=1000", "corpus.subset_bytes=12288", "train.finetune_epochs=0.3")
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
        command = [sys.executable, *launcher, "-m", "tests.benchmarks.memory_model", "--rank-of"]
        done = subprocess.run(
            [*command, *common, *FULL_BATCHES, *settings],
            cwd=ROOT,
            env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=300,
        )
    if done.returncode:
        raise SystemExit(done.stderr)
    return max(json.loads(line) for line in done.stdout.split())


def measure_rank(settings: list[str]) -> None:
    """Print the peak of this rank in bytes."""
    import torch

    from harness.config.run import load_config
    from harness.machine.hardware import compute_deterministically, resolve_precision
    from harness.machine.ranks import joined_ranks
    from harness.run.directory import open_on_all_ranks, opened_run_directory
    from harness.run.waiting import prepare_for_job
    from harness.trainer import Trainer

    compute_deterministically()
    tiny = ("name=tiny", "model.width=32", "model.layers=1", "model.heads=1")
    path = ROOT / "configs/wiki-mini.yaml"
    with joined_ranks(100.0) as ranks, contextlib.redirect_stdout(sys.stderr):
        for config in (load_config(path, [*settings, *tiny]), load_config(path, settings)):
            dtype = resolve_precision(config.train.precision, torch.device("cpu"))
            prepare_for_job(config)
            data = open_on_all_ranks(config, ranks)
            with opened_run_directory(config, ranks, dtype) as directory:
                before = _status_bytes("VmRSS")
                Path("/proc/self/clear_refs").write_text("5")  # the peak starts again
                trainer = Trainer(config, data, ranks, dtype)
                trainer.describe()
                trainer.run(directory.check)
                peak = _status_bytes("VmHWM") - before
                trainer.close()
                del trainer
    print(peak, flush=True)
    os._exit(0)


def _status_bytes(key: str) -> int:
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(key))
    return int(line.split()[1]) * 1024


def main() -> None:
    """Print a line per case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", help="cases whose name contains this")
    parser.add_argument("--rank-of", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank_of:
        measure_rank(options.rank_of)
    print("| run | measured MB | predicted MB | ratio |\n|:---|---:|---:|---:|")
    for name, (ranks, settings) in CASES.items():
        if not options.only or options.only in name:
            measured, predicted = measured_bytes(ranks, settings), predicted_bytes(ranks, settings)
            print(f"| {name} | {measured / 1e6:.1f} | {predicted / 1e6:.1f} | {predicted / measured:.2f} |", flush=True)


if __name__ == "__main__":
    main()
