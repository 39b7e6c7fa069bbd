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
from harness.run.directory import DEVIATION_SUFFIX, GRID_KEY, WEIGHTS_FILE, check_done


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
            names = [name for name in file.keys() if not name.endswith(DEVIATION_SUFFIX)]  # noqa: SIM118 (not a dict)
            weights = {name: file.get_tensor(name) for name in names}
            steps = {name: np.float32(step) for name, step in json.loads(file.metadata()[GRID_KEY]).items()}
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{path}: not readable ({error}); train again") from None
    shapes = {name: tuple(p.shape) for name, p in _meta_model(config, vocab_size).named_parameters()}
    if {name: tensor.shape for name, tensor in weights.items()} != shapes or not steps.keys() <= shapes.keys():
        raise UsageError(f"{path}: tensors do not fit {run_dir}/config.yaml; train again")
    if not all(np.isfinite(tensor).all() for tensor in weights.values()):
        raise UsageError(f"{path}: holds weights that are not finite; train again with lower learning rates")
    return {name: weights[name] for name in shapes}, steps


def load_deviations(run_dir: Path, weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The standard deviations of the `weights` that a variational run ended with, positive float32.

    Raises UsageError where the run has none that fit.
    """
    path = run_dir / WEIGHTS_FILE
    try:
        with safe_open(path, framework="numpy") as file:
            deviations = {name: file.get_tensor(f"{name}{DEVIATION_SUFFIX}") for name in weights}
    except (OSError, SafetensorError) as error:
        raise UsageError(f"{path}: holds no deviations ({error}); train again with rule.kind=variational") from None
    is_right = all(s.shape == weights[name].shape and (s > 0).all() for name, s in deviations.items())
    if not is_right or not all(np.isfinite(s).all() for s in deviations.values()):
        raise UsageError(f"{path}: deviations that do not fit its weights; train again with lower learning rates")
    return deviations


def _meta_model(config: RunConfig, vocab_size: int) -> nn.Module:
    with torch.device("meta"):
        return make_model(config.model, vocab_size, config.seed)
