"""GPUs that a run can be planned for: memory and peak rates from the vendors' data sheets."""

from dataclasses import dataclass

import psutil

from harness.errors import UsageError
from harness.hardware import GPU_PEAK_FLOPS

# CUDA context, NCCL's and cuBLAS's own memory: an assumption, not a measurement.
GPU_FIXED_BYTES = 1_000_000_000
# Python with PyTorch, and with DeepSpeed, before a model is there (tests/benchmarks/memory_model.py).
CPU_FIXED_BYTES = {"ddp": 450_000_000, "deepspeed": 520_000_000}


@dataclass(frozen=True, slots=True)
class Device:
    """What one rank runs on."""

    name: str
    memory_bytes: float
    """With 10^9 bytes a gigabyte: the 7 % that a GPU has more go to the rounding of allocators."""
    fp32_flops: float | None
    """Peak FLOP/s without tensor cores (PyTorch leaves TF32 off)."""
    bf16_flops: float | None
    """Peak FLOP/s, dense; None where bf16 is not native."""

    @property
    def is_gpu(self) -> bool:
        """Whether it is one."""
        return self.name != "cpu"

    def fixed_bytes(self, backend: str) -> int:
        """What a process takes before it has a model."""
        return GPU_FIXED_BYTES if self.is_gpu else CPU_FIXED_BYTES[backend]


GPUS = {
    name: Device(name, gigabytes * 1e9, fp32_flops=GPU_PEAK_FLOPS[family][1], bf16_flops=GPU_PEAK_FLOPS[family][0])
    for name, family, gigabytes in (
        ("v100-16g", "V100", 16),
        ("a10", "A10", 24),
        ("rtx4090", "RTX 4090", 24),
        ("v100-32g", "V100", 32),
        ("a100-40g", "A100", 40),
        ("l40s", "L40S", 48),
        ("a100-80g", "A100", 80),
        ("h100-80g", "H100", 80),
        ("h200", "H200", 141),
    )
}


def find_device(name: str, ranks: int) -> Device:
    """The GPU of this name; `cpu` is this machine, its memory shared by `ranks` processes.

    Raises UsageError for a name that is not known.
    """
    if name == "cpu":
        return Device("cpu", psutil.virtual_memory().total / ranks, None, None)
    if name not in GPUS:
        raise UsageError(f"--gpu {name}: unknown; known are {', '.join(GPUS)}, and cpu for this machine")
    return GPUS[name]
