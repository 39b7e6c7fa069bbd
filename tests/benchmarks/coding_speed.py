"""Speed of the stepping predictor with one thread and with all cores, and by lanes of a block, in one run.

python -m tests.benchmarks.coding_speed [--width 128] [--layers 3] [--heads 2] [--chunks 256]
"""

import argparse
import os
import time

import numpy as np

from eval.predictor import Predictor
from harness.model import ModelConfig, Transformer

LENGTH = 512


def tokens_per_second(model: Transformer, lanes: int, chunks: int, threads: int) -> float:
    """Rate at which `chunks` sequences of 512 tokens get their probabilities."""
    predictor = Predictor(model, lanes, -(-chunks // lanes), LENGTH, threads)
    tokens = np.random.default_rng(0).integers(0, 256, (chunks, LENGTH))
    predictor.start()
    start = time.perf_counter()
    for position in range(LENGTH):
        predictor.step(tokens[:, position])
    return chunks * LENGTH / (time.perf_counter() - start)


def main() -> None:
    """Print a line per number of lanes."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("width", 128), ("layers", 3), ("heads", 2), ("chunks", 256)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    model = Transformer(ModelConfig(width=options.width, layers=options.layers, heads=options.heads), 256)
    cores = os.cpu_count() or 1
    for lanes in (16, 32, 64, 128):
        one, all_cores = (tokens_per_second(model, lanes, options.chunks, threads) for threads in (1, cores))
        print(
            f"{lanes:4} lanes: {one / 1e3:.1f} k tokens/s with 1 thread, {all_cores / 1e3:.1f} with {cores}, "
            f"ratio {all_cores / one:.2f}"
        )


if __name__ == "__main__":
    main()
