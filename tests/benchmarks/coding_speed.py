"""Speed of both stepping predictors with one thread and with all cores, and by lanes of a block, in one run.

python -m tests.benchmarks.coding_speed [--width 128] [--layers 3] [--heads 2] [--chunks 256] [--lanes 16 32 64 128]
"""

import argparse
import os
import time

import numpy as np

from eval.archive import QuantisedModel
from eval.config import PREDICTORS
from eval.predictor import Predictor
from harness.model import ModelConfig, Transformer
from harness.tokenizer import ByteTokenizer

LENGTH = 512
STEP, NONZEROS = np.float32(0.02), 0.3


def make_model(config: ModelConfig) -> QuantisedModel:
    """A sparse model of small integers, as training leaves it."""
    rng = np.random.default_rng(0)
    integers = {
        name: np.rint(3 * rng.normal(size=tuple(p.shape)) * (rng.random(tuple(p.shape)) < NONZEROS)).astype(np.int64)
        for name, p in Transformer(config, 256).named_parameters()
    }
    return QuantisedModel(config, ByteTokenizer(), integers, dict.fromkeys(integers, STEP))


def tokens_per_second(model: QuantisedModel, kind: str, lanes: int, chunks: int, threads: int) -> float:
    """Rate at which `chunks` sequences of 512 tokens get their probabilities."""
    predictor = Predictor(model.stepping(kind, LENGTH), lanes, -(-chunks // lanes), LENGTH, threads)
    tokens = np.random.default_rng(0).integers(0, 256, (chunks, LENGTH))
    predictor.start()
    start = time.perf_counter()
    for position in range(LENGTH):
        predictor.step(tokens[:, position])
    return chunks * LENGTH / (time.perf_counter() - start)


def main() -> None:
    """Print a line per number of lanes and threads."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--architecture", default="modern")
    for name, default in (("width", 128), ("layers", 3), ("heads", 2), ("chunks", 256)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--lanes", type=int, nargs="+", default=[16, 32, 64, 128])
    options = parser.parse_args()
    shape = {name: getattr(options, name) for name in ("architecture", "width", "layers", "heads")}
    model = make_model(ModelConfig(**shape))
    for lanes in options.lanes:
        for threads in (1, os.cpu_count() or 1):
            rates = [tokens_per_second(model, kind, lanes, options.chunks, threads) for kind in PREDICTORS]
            print(
                f"{lanes:4} lanes, {threads} threads: {rates[0] / 1e3:.1f} k tokens/s float, "
                f"{rates[1] / 1e3:.1f} portable, ratio {rates[1] / rates[0]:.2f}"
            )


if __name__ == "__main__":
    main()
