"""The weights that a run ended with, as its directory holds them."""

import json
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from harness.config.run import RunConfig
from harness.errors import UsageError
from harness.model.transformer import make_model
from harness.run.directory import GRID_KEY, WEIGHTS_FILE, check_done


def load_weights(
    run_dir: Path, config: RunConfig, vocab_size: int
) -> tuple[dict[str, np.ndarray], dict[str, np.float32]]:
    """The final float32 weights of a run in the model's order, and the steps of those that lie on a grid.

    Raises UsageError where the run is not finished or its weights do not fit its configuration.
    """
    check_done(run_dir)
    path = run_dir / WEIGHTS_FILE
    try:
        with safe_open(path, framework="numpy") as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            steps = {name: np.float32(step) for name, step in json.loads(file.metadata()[GRID_KEY]).items()}
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{path}: not readable ({error}); train again") from None
    shapes = {name: tuple(p.shape) for name, p in _meta_model(config, vocab_size).named_parameters()}
    if {name: tensor.shape for name, tensor in weights.items()} != shapes or not steps.keys() <= shapes.keys():
        raise UsageError(f"{path}: tensors do not fit {run_dir}/config.yaml; train again")
    if not all(np.isfinite(tensor).all() for tensor in weights.values()):
        raise UsageError(f"{path}: holds weights that are not finite; train again with lower learning rates")
    return {name: weights[name] for name in shapes}, steps


def _meta_model(config: RunConfig, vocab_size: int) -> nn.Module:
    with torch.device("meta"):
        return make_model(config.model, vocab_size, config.seed)
