"""A run directory: made for one configuration, marked DONE at the end, never reused for another."""

import json
import os
import re
import socket
from collections.abc import Iterator
from contextlib import chdir, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from harness.config.run import RunConfig, changed_keys, dump_config, load_config
from harness.corpus.prepared import Data, data_directory, open_data
from harness.data.tokenizer import Tokenizer
from harness.errors import UsageError
from harness.files import make_directory, read_file, replacing, sha256, write_file, write_json
from harness.lock import DirectoryLock
from harness.machine.hardware import environment
from harness.machine.ranks import Ranks, on_first_rank
from harness.run.ledger import Part, part_problem

if TYPE_CHECKING:
    from harness.labels.tokenizer import LabelTokenizer

# Metadata of the weights file: JSON of the step per tensor, for the tensors that fine-tuning put on a grid.
GRID_KEY = "grid_steps"
# Names of tensors of the weights file that are standard deviations, those of a variational code.
DEVIATION_SUFFIX = ".deviation"

CONFIG_FILE, ENVIRONMENT_FILE, DONE_MARKER = "config.yaml", "environment.json", "DONE"
WEIGHTS_FILE, MEMBERS_FILE, START_FILE = "weights.safetensors", "members.json", "start.json"
POLICY_FILE = "policy.bin"


def open_on_all_ranks(config: RunConfig, ranks: Ranks) -> Data:
    """Open prepared data on every rank; the first one of each machine reads all of them and recomputes their SHA-256.

    Raises UsageError, on all ranks, where they are missing or damaged on one, or machines hold different ones.
    """
    problem, fingerprints = "", None
    try:
        data = open_data(config, verify=ranks.is_first_on_this_machine)
        if data.tokenizer.kind == "labels":
            # Texts have no inputs.
            from harness.labels.tokenizer import check_shape

            check_shape(config.model.inputs, cast("LabelTokenizer", data.tokenizer))
        fingerprints = data.train.fingerprint, data.heldout.fingerprint
    except UsageError as error:
        problem = str(error) if ranks.is_first else f"{socket.gethostname()}: {error}"
    answers = ranks.gather((problem, fingerprints))
    problems = [words for words, _ in answers if words]
    if problems:
        raise UsageError(problems[0])
    if len(set(answers)) > 1:
        raise UsageError(
            f"{data.directory}: differs among machines; use a data_dir that all of them share, or copy it there"
        )
    return data


@dataclass(frozen=True, slots=True)
class Opened:
    """A run's directory, locked for this job."""

    is_done: bool
    """Whether training has ended already."""
    lock: DirectoryLock | None
    """On the first rank, while there is something to do."""

    def check(self) -> None:
        """Check on the first rank that no other job has taken the directory over; else raises RunFailure."""
        if self.lock:
            self.lock.check()


@contextmanager
def opened_run_directory(config: RunConfig, ranks: Ranks, dtype: torch.dtype) -> Iterator[Opened]:
    """Lock and open the run's directory for the length of the context.

    Raises UsageError where another job is at work there, and naming the keys that differ where what lies there is
    another run.
    """
    locks: list[DirectoryLock] = []
    try:
        is_done = on_first_rank(ranks, _open, config, ranks, dtype, locks)
        yield Opened(is_done, locks[0] if locks else None)
    finally:
        for lock in locks:
            lock.release()


def is_done(run_dir: Path) -> bool:
    """Whether training has ended."""
    return (run_dir / DONE_MARKER).exists()


def mark_done(run_dir: Path, ledger_parts: list[list[Part]]) -> None:
    """Record that training has ended, and with which ledger and weights."""
    write_json(run_dir / DONE_MARKER, {"ledger": ledger_parts, "weights": sha256(run_dir / WEIGHTS_FILE)})


def check_done(run_dir: Path) -> None:
    """Check that training has ended, and ledger and weights are as it wrote them; else raises UsageError."""
    if not is_done(run_dir):
        raise UsageError(f"{run_dir}: training is not complete; run `codelength train` with the same configuration")
    try:
        # Earlier releases left it empty.
        text = read_file(run_dir / DONE_MARKER)
        written = json.loads(text) if text else {"ledger": [], "weights": sha256(run_dir / WEIGHTS_FILE)}
        problems = [part_problem(run_dir, rank, parts) for rank, parts in enumerate(written["ledger"])]
        if sha256(run_dir / WEIGHTS_FILE) != written["weights"]:
            problems.append(f"{WEIGHTS_FILE} is not what was written")
    except OSError as error:
        problems = [f"{error.filename}: {error.strerror}"]
    except (ValueError, KeyError, TypeError):
        problems = [f"{DONE_MARKER} is not readable"]
    if problems := [problem for problem in problems if problem]:
        raise UsageError(f"{run_dir}: damaged ({problems[0]}); restore the file, or train again under another name")


def write_weights(
    run_dir: Path, weights: dict[str, Tensor], grid_steps: dict[str, float], deviations: dict[str, Tensor]
) -> None:
    """Write the float32 weights, with the step of the grid that a tensor lies on, and deviations if there are any."""
    weights = weights | {f"{name}{DEVIATION_SUFFIX}": tensor for name, tensor in deviations.items()}
    # Adding zero turns -0.0 into 0.0, as gathering parts does: the file is the same on every backend.
    tensors = {name: tensor.float().add(0.0).cpu().contiguous() for name, tensor in weights.items()}
    with replacing(run_dir / WEIGHTS_FILE) as file:
        try:
            save_file(tensors, file.name, {GRID_KEY: json.dumps(grid_steps)})
        except SafetensorError as error:
            number = re.search(r"os error (\d+)", str(error))
            if not number:
                raise
            raise OSError(int(number[1]), os.strerror(int(number[1]))) from None


def write_members(run_dir: Path, member_bits: dict[str, float]) -> None:
    """Write the code length in bits of each member of the online code's mixture alone; nothing without one."""
    if member_bits:
        write_json(run_dir / MEMBERS_FILE, member_bits)


def read_members(run_dir: Path) -> dict[str, float]:
    """Read what `write_members` has written."""
    path = run_dir / MEMBERS_FILE
    return json.loads(read_file(path)) if path.exists() else {}


def write_start(run_dir: Path, num_bytes: int) -> None:
    """Write what the weights take that a run starts from: a part of the length of its online code."""
    write_json(run_dir / START_FILE, {"weights_bytes": num_bytes})


def read_start_bytes(run_dir: Path) -> int:
    """Read what `write_start` has written; 0 where a run starts from random weights."""
    path = run_dir / START_FILE
    return int(json.loads(read_file(path))["weights_bytes"]) if path.exists() else 0


def write_policy(run_dir: Path, content: bytes) -> None:
    """Keep the policy that a run has learnt by: chosen with knowledge of the text, it is a part of the online code."""
    write_file(run_dir / POLICY_FILE, content)


def policy_bytes(run_dir: Path) -> int:
    """Size of what `write_policy` has kept; 0 where all sequences have counted alike."""
    path = run_dir / POLICY_FILE
    return path.stat().st_size if path.exists() else 0


def charged_bytes(run_dir: Path, tokenizer: Tokenizer) -> dict[str, int]:
    """What an online code is charged with beside its text: the weights it starts from, its policy, its tokenizer.

    Merges are chosen with knowledge of the text; that of labels says which inputs are meant, and costs nothing.
    """
    return {
        "start_bytes": read_start_bytes(run_dir),
        "policy_bytes": policy_bytes(run_dir),
        "tokenizer_bytes": 0 if tokenizer.kind == "labels" else len(tokenizer.model_bytes()),
    }


def load_run_config(run_dir: Path, overrides: list[str] | tuple[str, ...] = ()) -> RunConfig:
    """Load the configuration that a run was started with, with `key=value` overrides.

    Raises UsageError where `run_dir` is not a run.
    """
    if not (run_dir / CONFIG_FILE).exists():
        raise UsageError(f"{run_dir}: not a run directory (no {CONFIG_FILE}); run `codelength train` first")
    return load_config(run_dir / CONFIG_FILE, overrides)


def run_base(run_dir: Path, config: RunConfig) -> Path:
    """Find the folder that the relative paths of a run's configuration begin in: one where its data are.

    This folder, the one that the run was started in, or the one that its runs were moved to together with its data.
    """
    bases, recorded, absolute = [Path.cwd()], config.run_dir, run_dir.absolute()
    with suppress(OSError, ValueError, KeyError, TypeError):
        bases.append(Path(json.loads((run_dir / ENVIRONMENT_FILE).read_text())["folder"]))
    if not recorded.is_absolute() and absolute.parts[-len(recorded.parts) :] == recorded.parts:
        bases.append(Path(*absolute.parts[: -len(recorded.parts)]))
    for base in bases:
        with suppress(OSError), chdir(base):
            if data_directory(config).exists():
                return base
    return bases[0]


def open_run_data(run_dir: Path, config: RunConfig, verify: bool = False) -> Data:
    """Open the data that a run was trained on, also from another folder; `verify` reads them whole.

    Raises UsageError where they are missing or damaged.
    """
    base = run_base(run_dir, config)
    with chdir(base):
        return open_data(replace(config, data_dir=str(base / config.data_dir)), verify)


def check_same_run(config: RunConfig) -> None:
    """Check that the run directory was started with this configuration; else raises UsageError with the keys."""
    run_dir = config.run_dir
    if not (run_dir / CONFIG_FILE).exists():
        return
    changes = changed_keys(load_run_config(run_dir), config)
    if changes:
        raise UsageError(
            f"{run_dir}: this run was started with another configuration ({'; '.join(changes)}); "
            "set name=... for a new run"
        )


def _open(config: RunConfig, ranks: Ranks, dtype: torch.dtype, locks: list[DirectoryLock]) -> bool:
    """Take the directory and write down the job's configuration; whether training has ended already."""
    run_dir = config.run_dir
    check_same_run(config)
    if is_done(run_dir):
        return True
    make_directory(run_dir)
    lock = DirectoryLock(run_dir)
    if message := lock.acquire():
        print(message, flush=True)
    locks.append(lock)
    # Another job may have ended while this one looked.
    if is_done(run_dir):
        return True
    write_file(run_dir / CONFIG_FILE, dump_config(config).encode())
    made_with = environment(ranks.world_size, ranks.device, dtype) | {"folder": str(Path.cwd())}
    write_json(run_dir / ENVIRONMENT_FILE, made_with)
    return False
