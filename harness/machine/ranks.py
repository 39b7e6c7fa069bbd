"""Ranks: who am I, how many are we, and the few sums that everybody must agree on."""

import os
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NoReturn, TypedDict, TypeVar, Unpack

import torch
import torch.distributed as dist
from torch import Tensor

from harness.errors import CodelengthError, OtherRankFailed, RunFailure, UsageError

T = TypeVar("T")

if TYPE_CHECKING:

    class _Group(TypedDict, total=False):
        store: dist.Store
        rank: int
        world_size: int


MAX_PORT = 65_535
"""Of numbers that describe a rank, ports are the largest."""
DEVICES = ("auto", "cuda", "cpu")
# Without them NCCL chooses algorithms by what it measures and finds, so that a run that goes on elsewhere in a cluster
# may sum in another order. What users have set counts.
NCCL_SETTINGS = {"NCCL_ALGO": "Ring", "NCCL_NVLS_ENABLE": "0"}


@dataclass(frozen=True, slots=True)
class Ranks:
    """The ranks of a job, as this process sees them, and what they exchange."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this rank writes what is written once."""
        return self.rank == 0

    @property
    def is_first_on_this_machine(self) -> bool:
        """Whether this rank is the first one of its machine."""
        return os.environ.get("LOCAL_RANK", str(self.rank)) == "0"

    @property
    def num_on_this_machine(self) -> int:
        """Number of ranks on this machine; all of them where the environment does not say."""
        return int(os.environ.get("LOCAL_WORLD_SIZE", self.world_size))

    def barrier(self) -> None:
        """Wait for every rank."""
        if self.world_size > 1:
            dist.barrier()

    def sum(self, *values: float) -> list[float]:
        """Sum each value over all ranks, in float64; these are numbers of the host, which no GPU waits for."""
        return self.sum_tensor(torch.tensor(values, dtype=torch.float64)).tolist()

    def sum_tensor(self, tensor: Tensor) -> Tensor:
        """Sum `tensor` over all ranks, in place, on the device that it is on."""
        if self.world_size > 1:
            dist.all_reduce(tensor)
        return tensor

    def broadcast_tensor(self, tensor: Tensor) -> Tensor:
        """Broadcast the first rank's `tensor` to every rank, in place."""
        if self.world_size > 1:
            dist.broadcast(tensor, src=0)
        return tensor

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank."""
        return self.sum(float(flag))[0] > 0

    def broadcast(self, value: object, source: int = 0) -> Any:
        """Broadcast the `value` of one rank, the first, to all; it may be an error, so that all stop together."""
        if self.world_size == 1:
            return value
        holder = [value]
        dist.broadcast_object_list(holder, src=source)
        return holder[0]

    def gather(self, value: object) -> list[Any]:
        """Gather every rank's `value` on every rank, by rank."""
        if self.world_size == 1:
            return [value]
        values = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def agreed(self, values: dict[str, str]) -> dict[str, str]:
        """Merge the `values` of all ranks: where ranks differ, as machines of a cluster may, all of theirs by rank."""
        everyone = self.gather(values)
        columns = {key: [answer[key] for answer in everyone] for key in values}
        return {key: column[0] if len(set(column)) == 1 else ", ".join(column) for key, column in columns.items()}


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
    error, result = ranks.broadcast((error, result))
    if error:
        raise error
    return result


def check_launch() -> None:
    """Check that the environment describes this process's place among others; else raises UsageError."""
    environment = os.environ
    tasks = environment.get("SLURM_STEP_NUM_TASKS", "1")
    if "WORLD_SIZE" not in environment and tasks.isdecimal() and int(tasks) > 1 and "SLURM_STEP_ID" in environment:
        if environment.get("SLURM_PROCID", "0") != "0":
            raise OtherRankFailed("")
        raise UsageError(
            f"SLURM_STEP_NUM_TASKS={tasks}: srun has started this command {tasks} times, each to train the same run "
            "alone; start one task a node with --processes or torchrun in it, or use `codelength submit`"
        )
    for name, least in {"WORLD_SIZE": 1, "RANK": 0, "LOCAL_WORLD_SIZE": 1, "LOCAL_RANK": 0, "MASTER_PORT": 0}.items():
        text = environment.get(name, str(least))
        if not (text.isascii() and text.isdecimal() and least <= int(text[:9]) <= MAX_PORT and len(text) < 9):
            raise UsageError(f"{name}={text}: must be a whole number from {least} to {MAX_PORT}; torchrun sets it")
    world_size = int(environment.get("WORLD_SIZE", "1"))
    if int(environment.get("RANK", "0")) >= world_size:
        raise UsageError(f"RANK={environment['RANK']}: must be below WORLD_SIZE={world_size}; torchrun sets both")
    if world_size == 1:
        return
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if not environment.get(name)]
    if missing:
        raise UsageError(
            f"WORLD_SIZE={world_size}: says that this process is one of {world_size}, but {' and '.join(missing)} are "
            "not set; start it with torchrun or --processes, or unset WORLD_SIZE"
        )


def _check_address() -> None:
    """Raises RunFailure where the first rank's address is no address: on this machine, so that this rank says so."""
    address, port = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
    try:
        socket.getaddrinfo(address, int(port))
    except (OSError, UnicodeError, OverflowError) as error:
        raise RunFailure(
            f"rank {os.environ['RANK']}: MASTER_ADDR={address}: cannot be resolved here "
            f"({getattr(error, 'strerror', None) or error}); name the first rank's machine by what all "
            "machines know, such as its IP address"
        ) from None


def choose_device(wanted: str, key: str = "backend.device") -> torch.device:
    """Choose the device for the setting `key`: `auto` takes a GPU where every process here has one of its own.

    Raises UsageError where there are too few.
    """
    num_gpus = 0 if wanted == "cpu" else torch.cuda.device_count()
    if num_gpus == 0 and wanted != "cuda":
        return torch.device("cpu")
    processes = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("WORLD_SIZE", "1"))
    if num_gpus < processes:
        fewer = f"--processes {num_gpus} (torchrun: --nproc-per-node {num_gpus}) or " if num_gpus else ""
        raise UsageError(
            f"{key}={wanted}: {processes} process(es) on this machine and {num_gpus} GPU(s); use {fewer}{key}=cpu"
        )
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device


def init_process_group(device: torch.device, timeout_seconds: float, **group: "Unpack[_Group]") -> None:
    """Join a process group: tensors of GPUs travel by NCCL, those of the host, objects and flags by gloo.

    `group` names store, rank and size where torchrun does not.
    """
    timeout = timedelta(seconds=timeout_seconds)
    if device.type == "cpu":
        dist.init_process_group("gloo", timeout=timeout, **group)
        return
    for name, value in NCCL_SETTINGS.items():
        os.environ.setdefault(name, value)
    dist.init_process_group("cpu:gloo,cuda:nccl", timeout=timeout, device_id=device, **group)


@contextmanager
def joined_ranks(timeout_seconds: float, wanted_device: str = "cpu") -> Iterator[Ranks]:
    """Join the process group that torchrun (or srun through torchrun) describes; one process needs none.

    A group that this process is in already is used and left as it is. Raises RunFailure where contact is lost, and
    UsageError where there is no such device, or the environment does not say which rank this is.
    """
    check_launch()
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    device = choose_device(wanted_device)
    if world_size == 1:
        yield Ranks(rank=0, world_size=1, device=device)
        return
    is_own_group = not dist.is_initialized()
    try:
        if is_own_group:
            _check_address()
            init_process_group(device, timeout_seconds)
        rank = dist.get_rank()
        yield Ranks(rank=rank, world_size=world_size, device=device)
    except RuntimeError as error:
        if not _is_lost_contact(error):
            raise
        raise RunFailure(
            f"rank {os.environ.get('RANK', '?')}: lost the other ranks: one has died, or took longer than "
            f"backend.timeout_seconds={timeout_seconds:g} ({_first_line(error)}); the same command goes on"
        ) from None
    finally:
        if is_own_group and dist.is_initialized():
            dist.destroy_process_group()


def leave(status: int) -> NoReturn:
    """End this rank at once, after everything has been written.

    What is left are destructors, and that of gloo's process group can wait, holding the interpreter's lock, for a
    thread of its own that waits for this lock.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _is_lost_contact(error: RuntimeError) -> bool:
    """Whether a collective failed; gloo raises plain RuntimeErrors."""
    words = ("gloo", "connection", "timed out", "timeout", "socket", "nccl", "store")
    return isinstance(error, dist.DistError) or any(word in str(error).lower() for word in words)


def _first_line(error: RuntimeError) -> str:
    """Its first line, without the place in PyTorch's sources that it begins with."""
    return str(error).splitlines()[0].rpartition("] ")[2][:120]
