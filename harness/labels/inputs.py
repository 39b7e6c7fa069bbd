"""Inputs of labels: an array in a file beside the shard, memory-mapped, and its digest."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import numpy as np

from harness.errors import RunFailure, UsageError
from harness.files import reason, replacing
from harness.labels.tokenizer import LabelTokenizer

INPUTS_FILES = {"train": "train.inputs.npy", "heldout": "heldout.inputs.npy"}
TYPES = ("|u1", "<f4")
_BLOCK_ROWS = 1 << 12


class Given(Protocol):
    """Labels that are given inputs."""

    inputs: np.ndarray | None


def inputs_digest(inputs: np.ndarray) -> bytes:
    """SHA-256 of `inputs` (n, channels, rows, columns), their type and shape."""
    digest = hashlib.sha256(f"{inputs.dtype.str}:{inputs.shape}".encode())
    for start in range(0, len(inputs), _BLOCK_ROWS):
        digest.update(np.ascontiguousarray(inputs[start : start + _BLOCK_ROWS]).data)
    return digest.digest()


def write_inputs(path: Path, inputs: np.ndarray) -> None:
    """Write inputs (n, channels, rows, columns), uint8 or float32, in one rename; RunFailure where that fails."""
    try:
        with replacing(path) as file:
            np.lib.format.write_array(file, np.ascontiguousarray(inputs), allow_pickle=False)
    except OSError as error:
        raise RunFailure(f"{path}: cannot be written ({reason(error)})") from error


def open_all_inputs(directory: Path, tokenizer: LabelTokenizer, shards: Mapping[str, Given]) -> None:
    """Give the shards of both splits their inputs, which lie beside them; raises what `open_inputs` raises."""
    for split, shard in shards.items():
        shard.inputs = open_inputs(directory / INPUTS_FILES[split], tokenizer, split)


def open_inputs(path: Path, tokenizer: LabelTokenizer, split: str) -> np.ndarray:
    """Map the inputs of a split, read-only; UsageError where they are not those that the tokenizer names."""
    remedy = "run `codelength data` with the same configuration, which prepares it again"
    try:
        inputs = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UsageError(f"{path}: cannot be read ({error}); {remedy}") from None
    digest = tokenizer.train_digest if split == "train" else tokenizer.heldout_digest
    if inputs.dtype.str not in TYPES or inputs.shape[1:] != tokenizer.input_shape or inputs_digest(inputs) != digest:
        raise UsageError(f"{path}: not the inputs that the labels were prepared with (SHA-256 differs); {remedy}")
    return inputs
