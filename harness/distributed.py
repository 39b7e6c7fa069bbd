"""Ranks: who am I, how many are we, and the few sums that everybody must agree on."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among its peers."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this rank writes what is written once."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait for every rank."""
        if self.world_size > 1:
            dist.barrier()

    def sum(self, *values: float) -> list[float]:
        """Float64 sums of each value over all ranks."""
        if self.world_size == 1:
            return [float(value) for value in values]
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return total.tolist()

    def any(self, flag: bool) -> bool:
        """Whether any rank says so."""
        return self.sum(float(flag))[0] > 0

    def share_error(self, error: Exception | None) -> Exception | None:
        """The first rank's error on every rank, so that all stop together instead of waiting for one another."""
        if self.world_size == 1:
            return error
        holder = [error]
        dist.broadcast_object_list(holder, src=0)
        return holder[0]


@contextmanager
def joined_ranks(timeout_seconds: float) -> Iterator[Ranks]:
    """Join the process group that torchrun (or srun through torchrun) describes; one process needs none."""
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    use_cuda = torch.cuda.is_available()
    if use_cuda:
        torch.cuda.set_device(local_rank)
    device = torch.device("cuda", local_rank) if use_cuda else torch.device("cpu")
    if world_size == 1:
        yield Ranks(rank=0, world_size=1, device=device)
        return
    dist.init_process_group("nccl" if use_cuda else "gloo", timeout=timedelta(seconds=timeout_seconds))
    try:
        yield Ranks(rank=dist.get_rank(), world_size=world_size, device=device)
    finally:
        dist.destroy_process_group()
