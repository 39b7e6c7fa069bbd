"""Bytes of trained weights by this project's coder and by others, at the same integers.

    python -m tests.benchmarks.weight_codes RUN... [--zeros 0 0.9 0.99] [--step 0.25] [--grid]

reads the weights of trained runs. Those that were trained on a grid are coded as they are. The others are pruned by
magnitude, with one threshold for all tensors, to each share of zeros, and rounded to steps of so many root mean
squares of a tensor's non-zero weights, or with --grid to the steps that `codelength eval` chooses for the held-out
text. The steps, 4 bytes a tensor, are in every column but csr and 4 bytes a non-zero. Prints a Markdown table.

With --nncodec PYTHON, an interpreter that has nncodec (see nncodec_worker.py), DeepCABAC stands beside them, with what
it takes to write and read; each tensor has the settings that make it shortest.

static: the entropy of each tensor's values, as if their frequencies were known for nothing (ideal, not a file); flags
for zero and values of the others, each by its entropy, come to the same. int8: one byte a weight, two where any
exceeds 127.
"""

import argparse
import json
import lzma
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import zstandard

from eval.offline.evaluate import csr_bytes
from eval.offline.step_search import Search, choose_grid, uniform_steps
from eval.weights.codec import decode_weights, encode_weights, quantise
from eval.weights.trained import load_weights
from harness.corpus.prepared import open_data
from harness.data.tokenizer import ByteTokenizer
from harness.machine.hardware import resolve_precision
from harness.run.directory import load_run_config
from harness.units import bits_from_bytes, bytes_from_bits

Integers = dict[str, np.ndarray]
Steps = dict[str, np.float32]
COLUMNS = ("codelength", "static", "int8+xz", "int8+zstd-19", "csr", "4 bytes a non-zero")


def main() -> None:
    """Print a row for each checkpoint and share of zeros."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--zeros", nargs="+", type=float, default=[0.0, 0.9, 0.99])
    parser.add_argument("--step", type=float, default=0.25)
    parser.add_argument("--grid", action="store_true")
    parser.add_argument("--nncodec", metavar="PYTHON", help="the Python that has nncodec")
    options = parser.parse_args()
    warm_up()
    header = [
        "weights",
        "non-zero",
        *COLUMNS,
        "bits/parameter",
        "bits/non-zero",
        "vs static",
        "vs xz",
        "write s",
        "read s",
        *(["DeepCABAC", "vs DeepCABAC", "its write s", "its read s"] if options.nncodec else []),
    ]
    print(f"| {' | '.join(header)} |\n| :--- |{' ---: |' * (len(header) - 1)}", flush=True)
    for run in options.runs:
        for name, integers, steps in checkpoints(run, options.zeros, options.step, options.grid):
            row = [name, *cells(integers, steps)]
            row += deep_cabac_cells(options.nncodec, integers, steps) if options.nncodec else []
            print(f"| {' | '.join(row)} |", flush=True)


def checkpoints(
    run: Path, zeros: list[float], relative_step: float, with_grid: bool
) -> Iterator[tuple[str, Integers, Steps]]:
    """Names, integers and steps of a run's weights."""
    config = load_run_config(run)
    tokenizer = open_data(config).tokenizer if with_grid else ByteTokenizer()
    weights, trained_steps = load_weights(run, config, tokenizer.vocab_size)
    if trained_steps:
        steps = uniform_steps(weights, relative_step) | trained_steps
        yield f"{run.name}, its own grid", quantise(weights, steps), steps
        return
    magnitudes = np.concatenate([np.abs(tensor).ravel() for tensor in weights.values()])
    for share in zeros:
        threshold = np.quantile(magnitudes, share) if share else 0.0
        pruned = {name: np.where(np.abs(tensor) < threshold, 0, tensor) for name, tensor in weights.items()}
        name = f"{run.name}, {share:.0%} zeros"
        if with_grid:
            data = open_data(config)
            text, dtype = data.tokenizer.decode(data.heldout.tokens), resolve_precision("auto", torch.device("cpu"))
            chunk_bytes = config.eval.chunk_bytes
            search = Search(pruned, {}, config.model, data.tokenizer, text, chunk_bytes, dtype)
            model, _ = choose_grid(search)
            yield f"{name}, chosen grid", model.integers, model.steps
        else:
            steps = uniform_steps(pruned, relative_step)
            yield f"{name}, {relative_step} rms", quantise(pruned, steps), steps


def cells(integers: Integers, steps: Steps) -> list[str]:
    """Sizes by every code, rates of ours, and how long it takes."""
    start = time.perf_counter()
    payload = encode_weights(integers, steps)
    middle = time.perf_counter()
    decoded, _ = decode_weights(payload, {name: tensor.shape for name, tensor in integers.items()})
    end = time.perf_counter()
    assert all(np.array_equal(decoded[name], tensor) for name, tensor in integers.items())
    grid_bytes, plain = 4 * len(steps), plain_bytes(integers)
    num_weights = sum(tensor.size for tensor in integers.values())
    nonzeros = sum(int(np.count_nonzero(tensor)) for tensor in integers.values())
    sizes = [
        len(payload),
        grid_bytes + sum(map(static_bytes, integers.values())),
        grid_bytes + len(lzma.compress(plain, preset=9 | lzma.PRESET_EXTREME)),
        grid_bytes + len(zstandard.ZstdCompressor(19).compress(plain)),
        sum(map(csr_bytes, integers.values())),
        4 * nonzeros,
    ]
    ours = bits_from_bytes(sizes[0])
    rates = [f"{ours / num_weights:.3f}", f"{ours / nonzeros:.2f}"]
    gains = [f"{sizes[0] / sizes[k] - 1:+.1%}" for k in (1, 2)]
    seconds = [f"{middle - start:.2f}", f"{end - middle:.2f}"]
    return [f"{nonzeros / num_weights:.1%}", *(f"{size:,.0f}" for size in sizes), *rates, *gains, *seconds]


def deep_cabac_cells(python: str, integers: Integers, steps: Steps) -> list[str]:
    """Bytes of DeepCABAC, ours relative to them, and its seconds."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.npz"
        np.savez(path, **integers)
        worker = Path(__file__).with_name("nncodec_worker.py")
        done = subprocess.run([python, worker, path], capture_output=True, text=True, check=True)
    told = json.loads(done.stdout)
    assert told["verified"] is True, told
    theirs, ours = told["bytes"] + 4 * len(steps), len(encode_weights(integers, steps))
    return [f"{theirs:,}", f"{ours / theirs - 1:+.1%}", f"{told['write_seconds']:.2f}", f"{told['read_seconds']:.2f}"]


def static_bytes(values: np.ndarray) -> float:
    """Empirical entropy of `values`."""
    shares = np.unique(values, return_counts=True)[1] / max(1, values.size)
    return bytes_from_bits(-values.size * float((shares * np.log2(shares)).sum()))


def plain_bytes(integers: Integers) -> bytes:
    """All weights in the smallest type of integers that holds them."""
    largest = max(int(np.abs(tensor).max(initial=0)) for tensor in integers.values())
    dtype = "<i1" if largest < 1 << 7 else "<i2" if largest < 1 << 15 else "<i4"
    return b"".join(tensor.astype(dtype).tobytes() for tensor in integers.values())


def warm_up() -> None:
    """Compile, or load what was compiled."""
    ones = {"w": np.ones((2, 2), dtype=np.int64)}
    decode_weights(encode_weights(ones, {"w": np.float32(1)}), {"w": (2, 2)})


if __name__ == "__main__":
    main()
