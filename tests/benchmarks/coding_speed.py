"""Speed of stepping, encoding and decoding with both predictors, and against another commit, by turns in one run.

python -m tests.benchmarks.coding_speed [--against COMMIT] [--architecture modern] [--width 128] [--layers 3]
    [--heads 2] [--chunks 128] [--nonzeros 0.3] [--rounds 3]

Each side is a process of its own; both measure the same thing one after the other, and a row has the medians of the
rounds. The other side runs from the sources of its commit, with this file.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path

import numpy as np
import torch

from eval.archive import QuantisedModel, read_archive, write_archive
from eval.config import PREDICTORS, EvalConfig
from eval.predictor import Predictor
from harness.model import ModelConfig, Transformer
from harness.tokenizer import ByteTokenizer

ROOT = Path(__file__).parents[2]
LENGTH, LANES = 512, 64
STEP = np.float32(0.02)
WORK = ("stepping", "encode", "decode")
SHAPE = {"architecture": "modern", "width": 128, "layers": 3, "heads": 2, "chunks": 128, "nonzeros": 0.3}


def make_model(config: ModelConfig, nonzeros: float) -> QuantisedModel:
    """A sparse model of small integers, as training leaves it."""
    rng = np.random.default_rng(0)
    integers = {
        name: np.rint(3 * rng.normal(size=tuple(p.shape)) * (rng.random(tuple(p.shape)) < nonzeros)).astype(np.int64)
        for name, p in Transformer(config, 256).named_parameters()
    }
    return QuantisedModel(config, ByteTokenizer(), integers, dict.fromkeys(integers, STEP))


def bytes_per_second(model: QuantisedModel, work: str, kind: str, chunks: int, threads: int) -> float:
    """Rate of one kind of work for `chunks` chunks of 512 bytes."""
    symbols = np.random.default_rng(0).integers(0, 256, (chunks, LENGTH))
    text, config = symbols.astype(np.uint8).tobytes(), EvalConfig(chunk_bytes=LENGTH, lanes=LANES, predictor=kind)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.cl"
        if work == "decode":
            write_archive(path, text, model, config, threads, _silent)
        if work == "stepping":
            predictor = Predictor(model.stepping(kind, LENGTH), LANES, -(-chunks // LANES), LENGTH, threads)
            predictor.start()
        start = time.perf_counter()
        if work == "stepping":
            for position in range(LENGTH):
                predictor.step(symbols[:, position])
        elif work == "encode":
            write_archive(path, text, model, config, threads, _silent)
        else:
            assert read_archive(path, threads, _silent) == text
        return len(text) / (time.perf_counter() - start)


class Side:
    """A process that measures with the sources of a folder."""

    def __init__(self, sources: Path, options: dict):
        command = [sys.executable, __file__, "--measure", json.dumps(options)]
        environment = os.environ | {"PYTHONPATH": str(sources), "OMP_NUM_THREADS": "1"}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self._process = subprocess.Popen(command, cwd=sources, env=environment, text=True, **pipes)

    def rate(self, work: str, kind: str, threads: int) -> float:
        """Bytes a second."""
        self._process.stdin.write(json.dumps([work, kind, threads]) + "\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline())

    def close(self) -> None:
        """End the process."""
        self._process.stdin.close()
        self._process.wait()


def measure(options: dict) -> None:
    """One side: answer each line of work with its rate."""
    shape = {name: options[name] for name in ("architecture", "width", "layers", "heads")}
    model = make_model(ModelConfig(**shape), options["nonzeros"])
    for kind in PREDICTORS:
        # Compiles what is not yet.
        bytes_per_second(model, "decode", kind, 1, 1)
    for line in sys.stdin:
        work, kind, threads = json.loads(line)
        print(bytes_per_second(model, work, kind, options["chunks"], threads), flush=True)


def compare(against: str | None, rounds: int, options: dict) -> None:
    """Print a table of both sides."""
    with tempfile.TemporaryDirectory() as folder:
        sources = [ROOT]
        if against:
            archive = subprocess.run(["git", "-C", ROOT, "archive", against], capture_output=True, check=True)
            subprocess.run(["tar", "-x", "-C", folder], input=archive.stdout, check=True)
            sources.insert(0, Path(folder))
        sides = [Side(path, options) for path in sources]
        names = [against, "this tree"] if against else ["this tree"]
        print(
            "| work | predictor | threads |"
            + "".join(f" {name}, kB/s |" for name in names)
            + " ratio |" * bool(against)
        )
        print("|---|---|--:|" + "--:|" * (len(names) + bool(against)))
        for threads in sorted({1, os.cpu_count() or 1}):
            for kind in PREDICTORS:
                for work in WORK:
                    turns = [[side.rate(work, kind, threads) for side in sides] for _ in range(rounds)]
                    rates = [statistics.median(column) for column in zip(*turns, strict=True)]
                    cells = [f"{rate / 1e3:.1f}" for rate in rates] + [f"{rates[-1] / rates[0]:.2f}"] * bool(against)
                    print(f"| {work} | {kind} | {threads} | {' | '.join(cells)} |", flush=True)
        for side in sides:
            side.close()


def machine() -> str:
    """Processor and versions."""
    known = Path("/proc/cpuinfo")
    lines = known.read_text().splitlines() if known.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "numpy", "numba", "constriction"))
    processor = names[0] if names else platform.processor() or platform.machine()
    return f"{processor}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}; {versions}"


def _silent(done: int, total: int) -> None:
    """No progress."""


def main() -> None:
    """Compare, or be one of the sides."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--measure", type=json.loads, help=argparse.SUPPRESS)
    for name, default in SHAPE.items():
        parser.add_argument(f"--{name}", type=type(default), default=default)
    options = parser.parse_args()
    if options.measure:
        measure(options.measure)
        return
    shape = {name: getattr(options, name) for name in SHAPE}
    print(machine(), ", ".join(f"{name} {value}" for name, value in shape.items()), sep="\n", end="\n\n")
    compare(options.against, options.rounds, shape)


if __name__ == "__main__":
    main()
