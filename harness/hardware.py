"""What this machine is: precision it is fast at, its peak rate, and the environment a number was made in."""

import hashlib
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

import psutil
import torch

from harness.errors import UsageError

# Variables by which users choose other kernels than their processor's best.
ISA_LIMITS = (
    "ATEN_CPU_CAPABILITY",
    "ONEDNN_MAX_CPU_ISA",
    "MKL_ENABLE_INSTRUCTIONS",
    "MKL_CBWR",
    "NPY_DISABLE_CPU_FEATURES",
)
PACKAGES = (
    "torch",
    "deepspeed",
    "numpy",
    "numba",
    "constriction",
    "pyarrow",
    "sentencepiece",
    "datasets",
    "safetensors",
)

# Dense peaks in FLOP/s from the vendors' data sheets, by a part of the device's name: bf16 (None: not native) and fp32
# without tensor cores, since PyTorch leaves TF32 off. The first name found in the device's name counts.
GPU_PEAK_FLOPS: dict[str, tuple[float | None, float]] = {
    "H200": (989e12, 67e12),
    "H100": (989e12, 67e12),
    "A100": (312e12, 19.5e12),
    "RTX 4090": (165e12, 82.6e12),
    "L40S": (362e12, 91.6e12),
    "A10": (125e12, 31.2e12),
    "V100": (None, 15.7e12),
}


def resolve_precision(wanted: str, device: torch.device) -> torch.dtype:
    """The dtype of matrix products for `train.precision`: `auto` takes bf16 where the hardware has it natively."""
    if wanted == "auto":
        if device.type == "cuda":
            fast = torch.cuda.get_device_capability(device) >= (8, 0)
        else:
            abilities = torch.cpu.get_capabilities()
            fast = abilities.get("amx_bf16", False) or abilities.get("avx512_bf16", False)
            # With ATEN_CPU_CAPABILITY set lower, PyTorch refuses some of the products.
            fast = fast and torch.backends.cpu.get_cpu_capability().startswith("AVX512")
        wanted = "bf16" if fast else "fp32"
    return torch.bfloat16 if wanted == "bf16" else torch.float32


def compute_deterministically() -> None:
    """The same run twice gives the same bits."""
    # cuBLAS reads this when it starts; without it the deterministic mode refuses to multiply on a GPU.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # The same as use_deterministic_algorithms(True), which would import the compiler, for two seconds.
    torch.set_deterministic_debug_mode("error")
    # The mode also fills every new tensor before its first use, which costs time and which nothing here needs.
    torch.utils.deterministic.fill_uninitialized_memory = False


def peak_flops(dtype: torch.dtype, device: torch.device) -> float:
    """Peak FLOP/s of one rank: the data sheet's of a known GPU, else as measured."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        bf16, fp32 = next((peaks for known, peaks in GPU_PEAK_FLOPS.items() if known in name), (None, None))
        known_peak = bf16 if dtype == torch.bfloat16 else fp32
        if known_peak:
            return known_peak
    return matmul_flops(dtype, device)


def matmul_flops(dtype: torch.dtype, device: torch.device) -> float:
    """FLOP/s of the best of a few square matrix products."""
    size = 8192 if device.type == "cuda" else 1024
    a = torch.ones(size, size, dtype=dtype, device=device)
    best = float("inf")
    for _ in range(6):
        start = time.perf_counter()
        # Reading one value waits for the GPU.
        (a @ a)[0, 0].item()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def identity(device: torch.device, dtype: torch.dtype, packages: tuple[str, ...]) -> dict[str, str]:
    """What decides the last bits of a run besides its configuration and data, and must not change in its middle."""
    return {
        "precision": str(dtype).removeprefix("torch."),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": str(torch.get_num_threads()),
        "code": code_sha256()[:16],
        **{name: metadata.version(name) for name in packages},
    }


def isa_limits() -> dict[str, str]:
    """What users have set to keep kernels from this processor's best instructions."""
    return {name: os.environ[name] for name in ISA_LIMITS if name in os.environ}


def code_sha256(paths: Iterable[Path] | None = None) -> str:
    """Digest of sources; by default of those that train."""
    root = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(paths or (root / "harness").rglob("*.py")):
        digest.update(f"{path.relative_to(root)}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def random_state() -> dict[str, torch.Tensor]:
    """State of this process's random numbers on the CPU and its GPU."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def load_random_state(state: dict[str, torch.Tensor]) -> None:
    """Inverse of `random_state`."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"])


def peak_memory_bytes() -> int:
    """Most memory that this process has held: of its GPU, or resident on the CPU."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def check_memory(needed_bytes: int) -> None:
    """Raises UsageError where so much is not free, before anything is allocated."""
    free = psutil.virtual_memory().available
    if needed_bytes > free:
        raise UsageError(
            f"needs about {needed_bytes / 1e9:.1f} GB of memory to decode, {free / 1e9:.1f} GB are free; decode it on "
            "a larger machine"
        )


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error of PyTorch says that memory has run out; on a CPU it is a plain RuntimeError."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def environment(world_size: int, dtype: torch.dtype | None = None) -> dict:
    """Versions, instruction set, threads, world size and commit: what a claimed number was made with."""
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine(),
        "isa_limits": isa_limits(),
        "threads": torch.get_num_threads(),
        "world_size": world_size,
        "precision": str(dtype).removeprefix("torch.") if dtype else None,
        "git_commit": git_commit(),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def git_commit() -> str | None:
    """Commit of the checkout that this code lies in, with `+` where files differ from it; None outside one."""
    root = Path(__file__).parents[1]
    try:
        commit = subprocess.run(["git", "-C", root, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10)
        status = subprocess.run(
            ["git", "-C", root, "status", "--porcelain"], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    if commit.returncode:
        return None
    return commit.stdout.strip() + ("+" if status.stdout.strip() else "")


def write_json(path: Path, content: dict) -> None:
    """Write JSON so that a reader sees the old file or the whole new one."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(content, indent=2, sort_keys=False, allow_nan=False) + "\n")
    temporary.replace(path)
