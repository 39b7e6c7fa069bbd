"""An all-reduce that `codelength doctor` tries: `torchrun ... -m launch.doctor.all_reduce gloo|nccl`."""

import os
import sys
import time
from datetime import timedelta

import torch
import torch.distributed as dist

SECONDS_TO_WAIT = 20.0
NUM_SMALL, NUM_LARGE, LARGE_FLOATS = 200, 5, 4_000_000


def main(backend: str) -> None:
    """Add tensors of all ranks, check the sums, and print latency and bandwidth on rank 0.

    Raises RuntimeError where a sum is wrong.
    """
    local_rank = int(os.environ["LOCAL_RANK"])
    device = torch.device("cuda", local_rank) if backend == "nccl" else torch.device("cpu")
    if backend == "nccl":
        torch.cuda.set_device(device)
    dist.init_process_group(backend, timeout=timedelta(seconds=SECONDS_TO_WAIT))
    rank, world_size = dist.get_rank(), dist.get_world_size()
    small_seconds = seconds_of_sum(1, NUM_SMALL, rank, world_size, device)
    large_seconds = seconds_of_sum(LARGE_FLOATS, NUM_LARGE, rank, world_size, device)
    dist.destroy_process_group()
    if rank == 0:
        rate = 4 * LARGE_FLOATS / large_seconds
        print(f"{backend} {1e6 * small_seconds:,.0f} us for 4 bytes, {rate / 1e9:.2f} GB/s for 16 MB", flush=True)


def seconds_of_sum(num_floats: int, times: int, rank: int, world_size: int, device: torch.device) -> float:
    """Seconds of one all-reduce of float32, the mean over `times` of them after one to warm up."""
    # Reading a sum back waits for the GPU.
    start = 0.0
    for index in range(times + 1):
        values = torch.full((num_floats,), float(rank + 1), device=device)
        dist.all_reduce(values)
        expected = world_size * (world_size + 1) / 2
        if values.min().item() != expected or values.max().item() != expected:
            raise RuntimeError(f"rank {rank}: the sum is {values[0].item()} and should be {expected}")
        start = time.perf_counter() if index == 0 else start
    return (time.perf_counter() - start) / times


if __name__ == "__main__":
    main(sys.argv[1])
