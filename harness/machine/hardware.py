"""What this machine is: precision it is fast at, its peak rate, and the environment a number was made in."""

import hashlib
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

import torch

from harness.machine.gpus import known_gpu
from harness.machine.ranks import NCCL_SETTINGS

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


def resolve_precision(wanted: str, device: torch.device) -> torch.dtype:
    """Choose the dtype of matrix products for `train.precision`: `auto` takes bf16 where it is native."""
    if wanted == "auto":
        wanted = "bf16" if has_native_bf16(device) else "fp32"
    return torch.bfloat16 if wanted == "bf16" else torch.float32


def muon_precision(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """Choose the dtype in which Muon makes updates orthogonal, in a run of precision `dtype`.

    A processor without native bf16 emulates it, and takes 15 to 60 times as long as in float32 (docs/speed.md).
    """
    return dtype if has_native_bf16(device) else torch.float32


def has_native_bf16(device: torch.device) -> bool:
    """Whether matrix products in bf16 run on units of their own."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    abilities = torch.cpu.get_capabilities()
    has_units = abilities.get("amx_bf16", False) or abilities.get("avx512_bf16", False)
    # With ATEN_CPU_CAPABILITY set lower, PyTorch refuses some of the products.
    return has_units and torch.backends.cpu.get_cpu_capability().startswith("AVX512")


def compute_deterministically() -> None:
    """Make PyTorch deterministic, so that the same run twice gives the same bits."""
    # cuBLAS reads this when it starts; without it the deterministic mode refuses to multiply on a GPU.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # The same as use_deterministic_algorithms(True), which would import the compiler, for two seconds.
    torch.set_deterministic_debug_mode("error")
    # The mode also fills every new tensor before its first use, which costs time and which nothing here needs.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def peak_flops(dtype: torch.dtype, device: torch.device) -> float:
    """Give the peak FLOP/s of one rank: from the data sheet of a known GPU, else as measured."""
    if device.type == "cuda" and (gpu := known_gpu(torch.cuda.get_device_name(device))):
        listed = gpu.bf16_flops if dtype == torch.bfloat16 else gpu.fp32_flops
        if listed:
            return listed
    return matmul_flops(dtype, device)


def matmul_flops(dtype: torch.dtype, device: torch.device) -> float:
    """Measure FLOP/s: the best of a few square matrix products in a tenth of a second."""
    size = 8192 if device.type == "cuda" else 1024
    a = torch.ones(size, size, dtype=dtype, device=device)
    best, until = float("inf"), time.perf_counter() + 0.1
    for _ in range(6):
        start = time.perf_counter()
        # Reading one value waits for the GPU.
        (a @ a)[0, 0].item()
        now = time.perf_counter()
        best = min(best, now - start)
        if now > until:
            break
    return 2 * size**3 / best


def identity(
    device: torch.device, dtype: torch.dtype, packages: tuple[str, ...], host_computes: bool = True
) -> dict[str, str]:
    """Collect what decides a run's last bits besides configuration and data, and must not change in its middle.

    The host's instructions and threads do where `host_computes`; beside a GPU it may only read and write.
    """
    host = {"cpu_capability": torch.backends.cpu.get_cpu_capability(), "threads": str(torch.get_num_threads())}
    return {
        "precision": str(dtype).removeprefix("torch."),
        "muon_precision": str(muon_precision(dtype, device)).removeprefix("torch."),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        **({"nccl": nccl_settings(device)} if device.type == "cuda" else {}),
        **(host if host_computes or device.type == "cpu" else {}),
        "code": code_sha256()[:16],
        **{name: metadata.version(name) for name in packages},
    }


def nccl_settings(device: torch.device) -> str | None:
    """Give the version of NCCL and the variables that decide in which order it sums; None on a CPU."""
    if device.type != "cuda":
        return None
    version = ".".join(map(str, torch.cuda.nccl.version()))
    return " ".join([version, *(f"{name}={os.environ[name]}" for name in NCCL_SETTINGS if name in os.environ)])


def isa_limits() -> dict[str, str]:
    """Collect the variables that keep kernels from this processor's best instructions."""
    return {name: os.environ[name] for name in ISA_LIMITS if name in os.environ}


def code_sha256(paths: Iterable[Path] | None = None) -> str:
    """Digest sources; by default those that train."""
    root = Path(__file__).parents[2]
    digest = hashlib.sha256()
    for path in sorted(paths or (root / "harness").rglob("*.py")):
        digest.update(f"{path.relative_to(root)}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def random_state(device: torch.device) -> dict[str, torch.Tensor]:
    """Get the state of this process's random numbers on the CPU and, where that is its device, on its GPU."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def load_random_state(state: dict[str, torch.Tensor]) -> None:
    """Set the state of random numbers that `random_state` has given."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"])


def peak_memory_bytes(device: torch.device) -> int:
    """Measure the most memory that this process has held: of its GPU, or resident on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error of PyTorch says that memory has run out; on a CPU it is a plain RuntimeError."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def environment(world_size: int, device: torch.device, dtype: torch.dtype | None = None) -> dict:
    """Collect what a number was made with: versions, instruction set, threads, world size and commit."""
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "nccl": nccl_settings(device),
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


def c_library() -> str:
    """Name the C library and its version, since its functions differ in last bits; else the system's."""
    return " ".join(platform.libc_ver()).strip() or platform.platform(terse=True)


def processor_name() -> str:
    """Name the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def git_commit() -> str | None:
    """Name the commit of the checkout of this code, with `+` where files differ from it; None outside one."""
    root = Path(__file__).parents[2]
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
