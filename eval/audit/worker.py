"""One setting of `codelength audit`: a training step and the coding tables after it, left in a folder.

python -m eval.audit.worker FOLDER LANES CONFIG [key=value ...]

The first setting leaves its weights as `weights.safetensors`; all others take the probabilities from these, so that a
training step that differs is not mistaken for a prediction that does.
"""

import json
import math
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from eval.codec.range_coder import coding_tables
from eval.offline.archive import QuantisedModel
from eval.predict.float_model import FloatModel
from eval.predict.predictor import Predictor
from eval.predict.stepping import SteppingModel
from eval.weights.codec import quantise
from harness.config.run import RunConfig, load_config
from harness.data.tokenizer import ByteTokenizer
from harness.job import joined_job
from harness.learner import Learner, made_up_tokens
from harness.machine.hardware import resolve_precision
from harness.machine.ranks import leave

WEIGHTS_FILE = "weights.safetensors"
# Tables of one setting take at most this much.
MAX_TABLE_BYTES = 64_000_000
# The grid of the portable model, relative to the largest weight of a tensor.
GRID_LEVELS = 64


def main(folder: Path, lanes: int, config: RunConfig) -> None:
    """Train one step on all ranks; the first one writes weights, tables and its environment."""
    vocab_size = ByteTokenizer.vocab_size if config.tokenizer.kind == "bytes" else config.tokenizer.vocab_size
    with joined_job(config) as ranks:
        learner = Learner(config, vocab_size, ranks, resolve_precision(config.train.precision, ranks.device))
        learner.dry_step()
        weights = {name: tensor.float().cpu().clone() for name, tensor in learner.backend.weights()}
        learner.backend.close()
        if not ranks.is_first:
            return
        reference = folder.parent / WEIGHTS_FILE
        if not reference.exists():
            save_file(weights, reference)
        used = load_file(reference)
        step = max(float((weights[name] - used[name]).abs().max()) for name in used)
        threads = torch.get_num_threads()
        folder.mkdir()
        for kind, model in _models(config, vocab_size, used).items():
            np.save(folder / f"{kind}.npy", _tables(model, lanes, config.model.context, threads))
        (folder / "done.json").write_text(json.dumps({"step_difference": step, "threads": threads}))


def _models(config: RunConfig, vocab_size: int, weights: dict[str, torch.Tensor]) -> dict[str, SteppingModel]:
    arrays = {name: tensor.numpy() for name, tensor in weights.items()}
    steps = {name: np.float32(max(np.abs(array).max(), 1e-6) / GRID_LEVELS) for name, array in arrays.items()}
    quantised = QuantisedModel(config.model, ByteTokenizer(), quantise(arrays, steps), steps)
    return {
        "float": FloatModel(config.model, vocab_size, weights.items()),
        "portable": quantised.stepping("portable", config.model.context),
    }


def _tables(model: SteppingModel, lanes: int, context: int, threads: int) -> np.ndarray:
    """Integer frequencies (positions, lanes, table) for made-up tokens; the first lanes of more are the same text."""
    entries = model.vocab_size + 3 * math.isqrt(model.vocab_size)
    positions = max(1, min(context, MAX_TABLE_BYTES // (4 * entries * lanes)))
    tokens = made_up_tokens(lanes, positions, model.vocab_size)
    predictor = Predictor(model, lanes, 1, context, threads)
    torch.set_num_threads(threads)
    predictor.start()
    previous, tables = np.full(lanes, model.begin), []
    for position in range(positions):
        tables.append(coding_tables(predictor.step(previous)).astype(np.uint32))
        previous = tokens[:, position]
    return np.stack(tables)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), load_config(sys.argv[3], sys.argv[4:]))
    leave(0)
