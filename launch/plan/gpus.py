"""What a run can be planned for: GPUs by name, the one of this machine, or its processors."""

import time
from dataclasses import dataclass

import psutil
import torch

from harness.errors import UsageError
from harness.machine.gpus import GPUS, PCIE_4, known_gpu
from harness.machine.hardware import has_native_bf16, matmul_flops

# CUDA context and kernels, NCCL's buffers, cuBLAS's workspaces: an assumption on the safe side.
GPU_FIXED_BYTES = 2_500_000_000
# Python with PyTorch, and with DeepSpeed, before a model is there (tests/benchmarks/memory_model.py).
CPU_FIXED_BYTES = {"ddp": 450_000_000, "deepspeed": 520_000_000}
COPIED_BYTES, COPIES = 512_000_000, 5


@dataclass(frozen=True, slots=True)
class Device:
    """The device of one rank; rates are in FLOP/s and bytes a second, None on a CPU, where steps are measured."""

    name: str
    memory_bytes: float
    fp32_flops: float | None = None
    """Peak without tensor cores (PyTorch leaves TF32 off)."""
    bf16_flops: float | None = None
    """Dense peak; None too where a GPU has no bf16 products of its own."""
    memory_bytes_per_second: float | None = None
    link_bytes_per_second: float | None = None
    """To other GPUs, in one direction."""
    link: str = ""
    """What that goes over."""

    @property
    def is_gpu(self) -> bool:
        """Whether the device is a GPU."""
        return self.name != "cpu"

    def fixed_bytes(self, backend: str) -> int:
        """Memory in bytes that a process takes before it has a model."""
        return GPU_FIXED_BYTES if self.is_gpu else CPU_FIXED_BYTES[backend]


DEVICES = {
    gpu.name: Device(
        gpu.name,
        gpu.memory_bytes,
        gpu.fp32_flops,
        gpu.bf16_flops,
        gpu.memory_bytes_per_second,
        gpu.link_bytes_per_second,
        "NVLink" if gpu.has_nvlink else "PCIe",
    )
    for gpu in GPUS.values()
}


def find_device(name: str | None, ranks: int, wanted: str) -> Device:
    """Find the GPU of this name; `cpu` is this machine, its memory shared by `ranks` processes; None is what is here.

    `wanted` is `backend.device`. Raises UsageError for a name that is not known, or that the run would not use.
    """
    if name is None:
        name = "cpu" if wanted == "cpu" or not torch.cuda.is_available() else "here"
    elif (wanted == "cpu") != (name == "cpu") and wanted != "auto":
        raise UsageError(f"--gpu {name}: backend.device={wanted}; leave one of them out")
    if name == "cpu":
        return Device("cpu", psutil.virtual_memory().total / ranks)
    if name == "here":
        return _device_here(torch.device("cuda", 0))
    if name not in DEVICES:
        raise UsageError(f"--gpu {name}: unknown; known are {', '.join(DEVICES)}, and cpu for this machine")
    return DEVICES[name]


def _device_here(device: torch.device) -> Device:
    """The GPU of this machine, from the table or as measured: what is not listed, such as a slice of one."""
    name = torch.cuda.get_device_name(device)
    if gpu := known_gpu(name):
        return DEVICES[gpu.name]
    bf16 = matmul_flops(torch.bfloat16, device) if has_native_bf16(device) else None
    memory_bytes = float(torch.cuda.get_device_properties(device).total_memory)
    fp32, rate = matmul_flops(torch.float32, device), _copy_bytes_per_second(device)
    return Device(f"{name} (measured)", memory_bytes, fp32, bf16, rate, PCIE_4, "PCIe 4, assumed")


def _copy_bytes_per_second(device: torch.device) -> float:
    """Bytes read and written in a second by the best of a few copies inside a GPU's memory."""
    source = torch.zeros(COPIED_BYTES, dtype=torch.uint8, device=device)
    target, best = torch.empty_like(source), float("inf")
    for _ in range(COPIES):
        torch.cuda.synchronize(device)
        start = time.perf_counter()
        target.copy_(source)
        torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return 2 * COPIED_BYTES / best
