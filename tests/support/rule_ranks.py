"""One rank of a job that takes 50 steps with each rule, on batches of its own; prints digests by rank (JSON)."""

import hashlib
import json
import sys

import numpy as np
import torch

from harness.backends.base import all_partitions
from harness.config.run import config_from
from harness.data.batches import MicroBatch, StepBatch
from harness.data.schedule import Moment
from harness.learner import Learner
from harness.machine.ranks import Ranks, joined_ranks, leave

STEPS, ROWS, LENGTH = 50, 2, 16
MODEL = {"model.width": 16, "model.layers": 1, "model.heads": 1, "model.context": LENGTH, "eval.chunk_bytes": LENGTH}
MODEL |= {"train.batch_sequences": 2 * ROWS, "train.precision": "fp32", "optimizer.warmup_tokens": 0}


def trained(ranks: Ranks, settings: dict) -> Learner:
    """A learner after all steps; every rank has read other tokens."""
    config = config_from(MODEL | settings)
    learner = Learner(config, 256, ranks, torch.float32)
    learner.start_rule(num_tokens=1000)
    rng = np.random.default_rng(ranks.rank)
    for step in range(STEPS):
        tokens = rng.integers(256, size=(ROWS, LENGTH))
        rows = MicroBatch(np.zeros(ROWS, dtype=np.int64), tokens, np.ones((ROWS, LENGTH), dtype=bool))
        learner.set_schedule(Moment(step / STEPS, (step + 1) / STEPS, (step + 1) * ROWS * LENGTH))
        learner.train(StepBatch(0, ranks.world_size * tokens.size, [rows]), f"step {step}")
    return learner


def digests(learner: Learner) -> dict[str, str]:
    """SHA-256 of the weights, and of all that optimizer and rule keep."""
    found = {"weights": hashlib.sha256(), "state": hashlib.sha256()}
    for p, state in all_partitions(learner.optimizer):
        found["weights"].update(p.detach().numpy().tobytes())
        for key in sorted(state):
            value = state[key]
            found["state"].update(value.numpy().tobytes() if isinstance(value, torch.Tensor) else str(value).encode())
    return {name: digest.hexdigest() for name, digest in found.items()}


def main() -> None:
    """Every setting of the command line, one after the other."""
    with joined_ranks(60.0) as ranks:
        for name, settings in json.loads(sys.argv[1]).items():
            learner = trained(ranks, settings)
            moved = max(float(abs(p - q).max()) for p, q in zip(
                learner.backend.module.parameters(), learner.new_model().parameters(), strict=True
            ))  # fmt: skip
            kept = [key for _, state in all_partitions(learner.optimizer) for key in state if key.startswith("rule_")]
            both = ranks.gather(digests(learner))
            if ranks.is_first:
                print(json.dumps({"name": name, "ranks": both, "moved": moved, "kept": sorted(set(kept))}), flush=True)
            learner.backend.close()
        ranks.barrier()


if __name__ == "__main__":
    main()
    leave(0)
