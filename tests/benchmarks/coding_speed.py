"""Speed of stepping, encoding and decoding with both predictors, and against another commit, by turns in one run.

python -m tests.benchmarks.coding_speed [--against COMMIT] [--architecture modern] [--width 128] [--layers 3]
    [--heads 2] [--chunks 128] [--nonzeros 0.3] [--rounds 3]

Each side is a process of its own; both measure the same thing one after the other, and a row has the medians of the
rounds. The other side runs from the sources of its commit, with this file. Where other work keeps the machine busy, the
ratio of core time says more than that of time.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from itertools import product
from pathlib import Path

import numpy as np
import torch

from eval.offline.archive import QuantisedModel, read_archive, write_archive
from eval.predict.predictor import Predictor
from harness.config.codes import PREDICTORS, EvalConfig
from harness.data.tokenizer import ByteTokenizer
from harness.machine.hardware import processor_name
from harness.model.transformer import ModelConfig, Transformer

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


def rates_of(model: QuantisedModel, work: str, kind: str, chunks: int, threads: int) -> list[float]:
    """Bytes a second, and a second of a core, of one kind of work for `chunks` chunks of 512 bytes."""
    symbols = np.random.default_rng(0).integers(0, 256, (chunks, LENGTH))
    text, config = symbols.astype(np.uint8).tobytes(), EvalConfig(chunk_bytes=LENGTH, lanes=LANES, predictor=kind)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.cl"
        if work == "decode":
            write_archive(path, text, model, config, threads, _silent)
        if work == "stepping":
            predictor = Predictor(model.stepping(kind, LENGTH), LANES, -(-chunks // LANES), LENGTH, threads)
            predictor.start()
        starts = time.perf_counter(), time.process_time()
        if work == "stepping":
            for position in range(LENGTH):
                predictor.step(symbols[:, position])
        elif work == "encode":
            write_archive(path, text, model, config, threads, _silent)
        else:
            assert read_archive(path, threads, _silent) == text
        ends = time.perf_counter(), time.process_time()
        return [len(text) / (end - start) for start, end in zip(starts, ends, strict=True)]


class Side:
    """A process that measures with the sources of a folder."""

    def __init__(self, sources: Path, options: dict):
        command = [sys.executable, __file__, "--measure", json.dumps(options)]
        environment = os.environ | {"PYTHONPATH": str(sources), "OMP_NUM_THREADS": "1"}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self._process = subprocess.Popen(command, cwd=sources, env=environment, text=True, **pipes)

    def rates(self, work: str, kind: str, threads: int) -> list[float]:
        """As of `rates_of`."""
        self._process.stdin.write(json.dumps([work, kind, threads]) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

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
        rates_of(model, "decode", kind, 1, 1)
    for line in sys.stdin:
        work, kind, threads = json.loads(line)
        print(json.dumps(rates_of(model, work, kind, options["chunks"], threads)), flush=True)


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
        header = ["work", "predictor", "threads", *(f"{name}, kB/s" for name in names)]
        header += ["ratio", "ratio of core time"] if against else []
        print(f"| {' | '.join(header)} |\n|---|---|{'--:|' * (len(header) - 2)}")
        for threads in sorted({1, os.cpu_count() or 1}):
            for kind, work in product(PREDICTORS, WORK):
                turns = [[side.rates(work, kind, threads) for side in sides] for _ in range(rounds)]
                rates = np.median(turns, axis=0)
                cells = [f"{rate / 1e3:.1f}" for rate in rates[:, 0]]
                cells += [f"{ratio:.2f}" for ratio in rates[-1] / rates[0]] if against else []
                print(f"| {work} | {kind} | {threads} | {' | '.join(cells)} |", flush=True)
        for side in sides:
            side.close()


def machine() -> str:
    """Processor and versions."""
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "numpy", "numba", "constriction"))
    return f"{processor_name()}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}; {versions}"


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
