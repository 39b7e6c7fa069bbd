"""Compiled blocks learn what plain ones do."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from harness.config import RunConfig, config_from, load_config
from harness.distributed import Ranks
from harness.errors import UsageError
from harness.learner import Learner

SHAPE = {"model.width": 16, "model.layers": 1, "model.heads": 1, "model.context": 16, "eval.chunk_bytes": 16}
STEPS = 4


def losses(config: RunConfig) -> np.ndarray:
    """Nats of some steps on made-up tokens."""
    learner = Learner(config, 256, Ranks(0, 1, torch.device("cpu")), torch.float32)
    return np.stack([learner.train(learner.probe(), "test").micro_batches[0][0] for _ in range(STEPS)])


def test_compiled_blocks_learn_the_same_and_the_same_bits_twice():
    plain = config_from(SHAPE | {"train.batch_sequences": 2})
    compiled = replace(plain, train=replace(plain.train, compile=True))
    expected, once, twice = losses(plain), losses(compiled), losses(compiled)
    assert np.array_equal(once, twice)
    assert np.allclose(once, expected, rtol=0, atol=1e-4) and expected[-1].mean() < expected[0].mean() - 0.01


def test_zero_does_not_compile():
    with pytest.raises(UsageError, match=r"train\.compile=true: backend\.name=deepspeed runs uncompiled"):
        load_config("configs/wiki-mini.yaml", ["train.compile=true", "backend.name=deepspeed"])
