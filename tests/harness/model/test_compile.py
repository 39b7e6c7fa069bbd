"""Compiled blocks learn what plain ones do."""

import os

import pytest
import torch

from harness.config.run import load_config
from harness.errors import UsageError
from harness.learner import Learner
from harness.machine.ranks import Ranks
from tests.support.commands import ROOT
from tests.support.processes import python, result_of

# In a process of its own: the compiler leaves folders and variables behind.
PROGRAM = """
from dataclasses import replace
import numpy as np
import torch
from harness.config.run import config_from
from harness.machine.ranks import Ranks
from harness.learner import Learner

def losses(config):
    learner = Learner(config, 256, Ranks(0, 1, torch.device("cpu")), torch.float32)
    return np.stack([learner.train(learner.probe(), "test").micro_batches[0][0] for _ in range(4)])

shape = {"model.width": 16, "model.layers": 1, "model.heads": 1, "model.context": 16, "eval.chunk_bytes": 16}
plain = config_from(shape | {"train.batch_sequences": 2})
compiled = replace(plain, train=replace(plain.train, compile=True))
expected, once, twice = losses(plain), losses(compiled), losses(compiled)
assert np.array_equal(once, twice), "other bits"
assert np.allclose(once, expected, rtol=0, atol=1e-4), np.abs(once - expected).max()
assert expected[-1].mean() < expected[0].mean() - 0.01
"""


@pytest.mark.skipif("ATEN_CPU_CAPABILITY" in os.environ, reason="is refused")
def test_compiled_blocks_learn_the_same_and_the_same_bits_twice(tmp_path):
    environment = {"TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = result_of(python("-c", PROGRAM, cwd=tmp_path, env=environment))
    assert done.returncode == 0, done.stderr


def test_beside_kernels_of_other_instructions_nothing_is_compiled(monkeypatch):
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "avx2")
    tiny = ["model.width=16", "model.layers=1", "model.heads=1", "model.context=16", "eval.chunk_bytes=16"]
    config = load_config(ROOT / "configs/wiki-mini.yaml", [*tiny, "train.compile=true"])
    with pytest.raises(UsageError, match="not with ATEN_CPU_CAPABILITY=avx2; unset one of them"):
        Learner(config, 256, Ranks(0, 1, torch.device("cpu")), torch.float32)


def test_zero_does_not_compile():
    with pytest.raises(UsageError, match=r"train\.compile=true: backend\.name=deepspeed runs uncompiled"):
        load_config(ROOT / "configs/wiki-mini.yaml", ["train.compile=true", "backend.name=deepspeed"])
