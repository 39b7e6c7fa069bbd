"""A run directory: made for one configuration, marked DONE at the end, never reused for another."""

import json
from collections.abc import Callable
from contextlib import chdir, suppress
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch
from safetensors.torch import save_file
from torch import Tensor

from harness.config import RunConfig, changed_keys, dump_config, load_config
from harness.data import Data, data_directory, open_data, prepare_data
from harness.distributed import Ranks
from harness.errors import CodelengthError, RunFailure, UsageError
from harness.files import replacing, write_file, write_json
from harness.hardware import environment

# Metadata of the weights file: JSON of the step per tensor, for the tensors that fine-tuning put on a grid.
GRID_KEY = "grid_steps"
T = TypeVar("T")

CONFIG_FILE, ENVIRONMENT_FILE, DONE_MARKER = "config.yaml", "environment.json", "DONE"
WEIGHTS_FILE, MEMBERS_FILE = "weights.safetensors", "members.json"


def on_first_rank(ranks: Ranks, work: Callable[..., T], *arguments: object) -> T:
    """Run `work` on rank 0 while the others wait; its result, or its error, is that of all of them."""
    error = result = None
    if ranks.is_first:
        try:
            result = work(*arguments)
        except CodelengthError as problem:
            error = problem
        except OSError as problem:
            error = RunFailure(f"{problem.filename}: {problem.strerror}")
    # So that all stop together instead of waiting for one another.
    error, result = ranks.share((error, result))
    if error:
        raise error
    return result


def prepared_on_first_rank(config: RunConfig, ranks: Ranks) -> Data:
    """Prepare the data once, then open them on every rank."""
    on_first_rank(ranks, lambda: prepare_data(config) and None)
    return open_data(config)


def open_run_directory(config: RunConfig, ranks: Ranks, dtype: torch.dtype) -> None:
    """Make the directory, or check that what lies there is the same run.

    Raises UsageError naming the keys that differ.
    """
    on_first_rank(ranks, _open, config, ranks, dtype)


def is_done(run_dir: Path) -> bool:
    """Whether training has ended."""
    return (run_dir / DONE_MARKER).exists()


def mark_done(run_dir: Path) -> None:
    """Say that training has ended."""
    write_file(run_dir / DONE_MARKER, b"")


def write_weights(run_dir: Path, weights: dict[str, Tensor], grid_steps: dict[str, float]) -> None:
    """Write the float32 weights, with the step of the grid that a tensor lies on."""
    # Adding zero turns -0.0 into 0.0, as gathering shares does: the file is the same on every backend.
    tensors = {name: tensor.float().add(0.0).cpu().contiguous() for name, tensor in weights.items()}
    with replacing(run_dir / WEIGHTS_FILE) as file:
        save_file(tensors, file.name, {GRID_KEY: json.dumps(grid_steps)})


def write_members(run_dir: Path, member_bits: dict[str, float]) -> None:
    """Write what each member of the online code's mixture would have taken alone, in bits; nothing without one."""
    if member_bits:
        write_json(run_dir / MEMBERS_FILE, member_bits)


def read_members(run_dir: Path) -> dict[str, float]:
    """What `write_members` wrote."""
    path = run_dir / MEMBERS_FILE
    return json.loads(path.read_text()) if path.exists() else {}


def load_run_config(run_dir: Path, overrides: list[str] | tuple[str, ...] = ()) -> RunConfig:
    """The resolved configuration that a run was started with, with `key=value` overrides.

    Raises UsageError where `run_dir` is not a run.
    """
    if not (run_dir / CONFIG_FILE).exists():
        raise UsageError(f"{run_dir}: not a run directory (no {CONFIG_FILE}); run `codelength train` first")
    return load_config(run_dir / CONFIG_FILE, overrides)


def run_base(run_dir: Path, config: RunConfig) -> Path:
    """The folder that the relative paths of a run's configuration begin in: one where its data are found.

    This folder, the one that the run was started in, or the one that its runs were moved to together with its data.
    """
    bases, own, absolute = [Path.cwd()], config.run_dir, run_dir.absolute()
    with suppress(OSError, ValueError, KeyError, TypeError):
        bases.append(Path(json.loads((run_dir / ENVIRONMENT_FILE).read_text())["folder"]))
    if not own.is_absolute() and absolute.parts[-len(own.parts) :] == own.parts:
        bases.append(Path(*absolute.parts[: -len(own.parts)]))
    for base in bases:
        with suppress(OSError), chdir(base):
            if data_directory(config).exists():
                return base
    return bases[0]


def open_run_data(run_dir: Path, config: RunConfig) -> Data:
    """The data that a run was trained on, also from another folder.

    Raises UsageError where they are missing or damaged.
    """
    base = run_base(run_dir, config)
    with chdir(base):
        return open_data(replace(config, data_dir=str(base / config.data_dir)))


def check_same_run(config: RunConfig) -> None:
    """Raises UsageError, naming the keys, where the run directory was started with another configuration."""
    run_dir = config.run_dir
    if not (run_dir / CONFIG_FILE).exists():
        return
    changes = changed_keys(load_run_config(run_dir), config)
    if changes:
        raise UsageError(
            f"{run_dir}: this run was started with another configuration ({'; '.join(changes)}); "
            "set name=... for a new run"
        )


def _open(config: RunConfig, ranks: Ranks, dtype: torch.dtype) -> None:
    run_dir = config.run_dir
    check_same_run(config)
    run_dir.mkdir(parents=True, exist_ok=True)
    if not is_done(run_dir):
        write_file(run_dir / CONFIG_FILE, dump_config(config).encode())
        made_with = environment(ranks.world_size, ranks.device, dtype) | {"folder": str(Path.cwd())}
        write_json(run_dir / ENVIRONMENT_FILE, made_with)
