"""What `codelength doctor` looks at, besides the disk: a function a check."""

import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import psutil

from harness.machine.children import num_cores
from launch.jobs.queue import last_words

OLDEST_PYTHON = (3, 11)
FEW_MEMORY_BYTES, FEW_SHM_BYTES, FEW_OPEN_FILES = 2_000_000_000, 256_000_000, 1024
IMPORT_SECONDS, ALL_REDUCE_SECONDS, SLURM_SECONDS, KILL_SECONDS = 30.0, 30.0, 5.0, 5.0


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of a check."""

    status: str
    """`ok`; `warn`: works without; `missing`: necessary."""
    found: str
    remedy: str = ""
    """What mends it, empty where all is well."""


def check_python() -> Finding:
    """Check the version of Python."""
    found = f"{platform.python_version()} {sys.executable}"
    oldest = ".".join(map(str, OLDEST_PYTHON))
    if sys.version_info < OLDEST_PYTHON:
        return Finding("missing", found, f"install Python {oldest} or newer, and codelength in it")
    return Finding("ok", found)


def check_torch() -> Finding:
    """Check PyTorch, its build, and whether that fits the machine."""
    try:
        import torch
    except ImportError as error:
        return Finding("missing", f"cannot be imported: {error}", "pip install --force-reinstall torch")
    found = f"{torch.__version__}, {f'CUDA {torch.version.cuda}' if torch.version.cuda else 'CPU'} build"
    if shutil.which("nvidia-smi") and not torch.version.cuda:
        return Finding("warn", f"{found} beside an NVIDIA driver", "install the CUDA build of PyTorch, to use the GPUs")
    return Finding("ok", found)


def check_devices() -> Finding:
    """Check the devices: GPUs with NCCL, or the CPU with gloo."""
    import torch
    import torch.distributed as dist

    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        if not dist.is_nccl_available():
            return Finding("missing", f"{names}, no NCCL", "install a build of PyTorch with NCCL")
        version = ".".join(map(str, torch.cuda.nccl.version()))
        return Finding("ok", f"{torch.cuda.device_count()} GPU: {names}; NCCL {version}")
    if torch.version.cuda:
        return Finding("warn", "no GPU that PyTorch sees; CPU", "see nvidia-smi and CUDA_VISIBLE_DEVICES")
    if not dist.is_gloo_available():
        return Finding("missing", "CPU, no gloo", "install a build of PyTorch with gloo")
    return Finding("ok", f"CPU ({torch.backends.cpu.get_cpu_capability()}), gloo")


def check_deepspeed() -> Finding:
    """Check whether DeepSpeed can be imported; that takes seconds and prints, so it has a process of its own."""
    remedy = "pip install 'codelength[deepspeed]', for backend.name=deepspeed"
    try:
        version = metadata.version("deepspeed")
    except metadata.PackageNotFoundError:
        return Finding("warn", "not installed", remedy)
    start = time.perf_counter()
    status, output = run_limited([sys.executable, "-c", "import deepspeed"], IMPORT_SECONDS)
    if status:
        return Finding("warn", f"{version}, cannot be imported: {last_words(output)[:200]}", remedy)
    return Finding("ok", f"{version}, imports in {time.perf_counter() - start:.1f} s")


def check_compilers() -> Finding:
    """Check the compilers that only DeepSpeed's optional operators ask for."""
    absent = [name for name in ("g++", "ninja") if not shutil.which(name)]
    if absent:
        found = f"no {' and no '.join(absent)}; nothing here needs them, only optional DeepSpeed operators do"
        return Finding("warn", found, "apt install g++ ninja-build")
    return Finding("ok", "g++, ninja (only optional DeepSpeed operators need them)")


def check_precision() -> Finding:
    """Measure which of bf16 and fp32 is faster, and say which one `train.precision=auto` takes."""
    import torch

    from harness.machine.hardware import has_native_bf16, matmul_flops, resolve_precision

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    fp32, bf16 = (matmul_flops(dtype, device) for dtype in (torch.float32, torch.bfloat16))
    chosen = "bf16" if resolve_precision("auto", device) == torch.bfloat16 else "fp32"
    faster = "bf16" if bf16 > fp32 else "fp32"
    ratio = bf16 / fp32
    place = "GPU" if device.type == "cuda" else f"{torch.get_num_threads()} thread(s)"
    rates = f"bf16 {bf16 / 1e9:,.0f}, fp32 {fp32 / 1e9:,.0f} GFLOP/s on {place}: {ratio:.1f} x"
    found = f"{rates}; train.precision=auto is {chosen}"
    if not has_native_bf16(device):
        found += "; bf16 would be emulated, so Muon's iteration runs in float32, with DDP and ZeRO alike"
    # Rates that are close say nothing on a machine that does other work too.
    if chosen != faster and not 0.8 < ratio < 1.25:
        return Finding("warn", found, f"set train.precision={faster}, the faster one here")
    return Finding("ok", found)


def check_training() -> Finding:
    """Measure how fast the demo's model trains here, in one process and in two."""
    import torch

    from harness.config.presets import product_folder
    from harness.config.run import RunConfig, load_config
    from harness.data.tokenizer import NUM_BYTE_VALUES
    from harness.machine.hardware import processor_name
    from launch.plan.pace import seconds_in_processes

    config: RunConfig = load_config(product_folder("configs") / "demo.yaml", [])
    num_gpus = torch.cuda.device_count()
    place = torch.cuda.get_device_name(0) if num_gpus else f"{processor_name()}, {num_cores()} core(s)"
    processes = 2 if num_gpus != 1 else 1
    seconds = seconds_in_processes(config, NUM_BYTE_VALUES, processes, "auto")
    tokens = config.train.batch_sequences * config.model.context
    rates = [f"{tokens / each:,.0f} tokens/s in {count}" for count, each in enumerate(seconds[:processes], start=1)]
    found = f"{place}: the demo's model at {', '.join(rates)} process(es)"
    if processes == 2 and seconds[1] > seconds[0]:
        return Finding("warn", found, "train in one process here; end what keeps this machine busy")
    return Finding("ok", found)


def check_threads() -> Finding:
    """Check the threads per process; more than one only helps on cores that nobody else uses."""
    import torch

    from harness.machine.hardware import matmul_flops

    cores = num_cores()
    setting = os.environ.get("OMP_NUM_THREADS")
    found = f"{cores} cores, OMP_NUM_THREADS {setting or 'not set'}"
    if cores > 1:
        before = torch.get_num_threads()
        rates = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            rates.append(matmul_flops(torch.float32, torch.device("cpu")))
        torch.set_num_threads(before)
        found += f"; 2 threads are {rates[1] / rates[0]:.1f} x as fast as 1"
    if cores > 1 and setting is None:
        return Finding("warn", found, "export OMP_NUM_THREADS=1 and use a process a core: busy cores slow threads down")
    return Finding("ok", found)


def check_slurm() -> Finding:
    """Check whether jobs can be submitted from here."""
    absent = [name for name in ("sinfo", "sbatch") if not shutil.which(name)]
    if absent:
        found = f"no {', no '.join(absent)}; only codelength submit needs SLURM"
        return Finding("warn", found, "work on a login node, or apt install slurm-client")
    status, output = run_limited(["sinfo", "--noheader", "--format=%P %D %t"], SLURM_SECONDS)
    if status:
        found = f"installed, does not answer: {last_words(output)[:200]}; only codelength submit needs it"
        return Finding("warn", found, "start slurmctld, or set SLURM_CONF to the configuration of your cluster")
    return Finding("ok", f"answers: {'; '.join(output.split(chr(10))[:3]).strip('; ') or 'no partitions'}")


def check_memory() -> Finding:
    """Check the memory of the machine and of this control group, and the shared memory of processes."""
    memory = psutil.virtual_memory()
    limit, shm = cgroup_limit_bytes(), Path("/dev/shm")
    shm_bytes = shutil.disk_usage(shm).total if shm.is_dir() else None
    found = f"{memory.available / 1e9:,.1f} of {memory.total / 1e9:,.1f} GB available"
    found += f", cgroup limit {limit / 1e9:,.1f} GB" if limit and limit < memory.total else ", no cgroup limit"
    found += "" if shm_bytes is None else f", /dev/shm {shm_bytes / 1e9:,.1f} GB"
    if min(memory.available, limit or memory.available) < FEW_MEMORY_BYTES:
        return Finding("warn", found, "end other programs, or ask for more memory (sbatch --mem, docker --memory)")
    if shm_bytes is not None and shm_bytes < FEW_SHM_BYTES:
        return Finding("warn", found, "start the container with --shm-size=1g: NCCL shares memory there")
    return Finding("ok", found)


def cgroup_limit_bytes() -> int | None:
    """Read the memory limit of this process's control group, version 2 or 1; None where there is none."""
    base = Path("/sys/fs/cgroup")
    try:
        group = Path("/proc/self/cgroup").read_text().splitlines()[-1].rpartition(":")[2].lstrip("/")
    except (OSError, IndexError):
        return None
    for path in (base / group / "memory.max", base / "memory.max", base / "memory" / "memory.limit_in_bytes"):
        try:
            return int(path.read_text())
        except (OSError, ValueError):
            continue
    return None


def check_open_files() -> Finding:
    """Check the limit of open files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    found = "unlimited" if soft == resource.RLIM_INFINITY else f"{soft:,}"
    if soft != resource.RLIM_INFINITY and soft < FEW_OPEN_FILES:
        return Finding("warn", f"{found} (hard limit {hard:,})", f"ulimit -n {FEW_OPEN_FILES}")
    return Finding("ok", found)


def check_all_reduce() -> Finding:
    """Let two processes under torchrun add their tensors: by gloo, and by NCCL where there are two GPUs."""
    import torch

    backends = ["gloo"] + ["nccl"] * (torch.cuda.device_count() >= 2)
    answers = []
    for backend in backends:
        # torchrun leaves a folder of logs in TMPDIR.
        with tempfile.TemporaryDirectory(prefix="codelength-doctor-") as folder:
            command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
            environment = {"TMPDIR": folder, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
            seconds = ALL_REDUCE_SECONDS / len(backends)
            status, output = run_limited([*command, "-m", "launch.doctor.all_reduce", backend], seconds, environment)
        lines = [line for line in output.splitlines() if line.startswith(f"{backend} ")]
        if status or not lines:
            remedy = f"export {backend.upper()}_SOCKET_IFNAME=NAME, a network of `ip link` (lo on a single node)"
            return Finding("missing", f"{backend} failed: {last_words(output)[:200]}", remedy)
        answers.append(lines[0])
    return Finding("ok", "2 processes, sums right; " + "; ".join(answers))


def check_commit() -> Finding:
    """Check whether results can name the sources that they were made with."""
    from harness.machine.hardware import git_commit

    commit = git_commit()
    if commit is None:
        remedy = "apt install git, and install from a clone: pip install -e ."
        return Finding("warn", "not known; results will not name it", remedy)
    return Finding("ok", commit[:12] + (", with files that differ from it" if commit.endswith("+") else ""))


def run_limited(command: list[str], seconds: float, environment: dict[str, str] | None = None) -> tuple[int, str]:
    """Run a command; returns status and output, or 124 and words about it where it takes longer than `seconds`."""
    process = subprocess.Popen(
        command,
        env=os.environ | (environment or {}),
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        output, _ = process.communicate(timeout=seconds)
        return process.returncode, output
    except subprocess.TimeoutExpired:
        # torchrun ends its workers when it is asked to, not when it is killed.
        process.terminate()
        try:
            process.communicate(timeout=KILL_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        return 124, f"no answer in {seconds:g} s"
