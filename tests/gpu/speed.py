"""Speed of training steps on a device: rate, share of the peak, waits for the device, and where the time goes."""

import time
import warnings

import torch
from torch.profiler import ProfilerActivity, profile

from harness.config.run import RunConfig, load_config
from harness.data.schedule import Moment
from harness.learner import Learner
from harness.machine.hardware import compute_deterministically, matmul_flops, peak_flops, resolve_precision
from harness.machine.ranks import Ranks, choose_device
from tests.gpu.jobs import ROOT, Place

# Width, layers, heads, context, sequences a step; those of the published models at 25 M and 308 M.
SHAPES = {
    "full": {
        "0.7M": (128, 3, 1, 512, 32),
        "25M": (640, 5, 10, 512, 64),
        "308M": (1600, 10, 25, 512, 32),
    },
    "small": {"tiny": (64, 1, 1, 64, 4)},
}
# Architecture, optimizer, and whether blocks are compiled.
KINDS = (
    ("modern", "muon", False),
    ("modern", "muon", True),
    ("modern", "adamw", False),
    ("published", "adamw", False),
    ("published", "adamw", True),
)
WARM_UP, MEASURED = 4, 12


def speed(place: Place) -> dict:
    """Rates by model, optimizer and architecture."""
    compute_deterministically()
    device = choose_device(place.device)
    measurements = {"matmul_flops": {str(d): matmul_flops(d, device) for d in (torch.float32, torch.bfloat16)}}
    for name, shape in SHAPES[place.sizes].items():
        for architecture, kind, compiled in KINDS:
            key = f"{name} {architecture} {kind}{' compiled' if compiled else ''}"
            measurements[key] = measured(make_config(shape, architecture, kind, place.device, compiled), device)
            print(key, {k: v for k, v in measurements[key].items() if k != "kernels"}, flush=True)
            if device.type == "cuda":
                torch.cuda.empty_cache()
    return measurements


def make_config(shape: tuple[int, ...], architecture: str, kind: str, device: str, compiled: bool = False) -> RunConfig:
    """A run of that shape."""
    width, layers, heads, context, sequences = shape
    settings = {
        "model.width": width,
        "model.layers": layers,
        "model.heads": heads,
        "model.context": context,
        "model.architecture": architecture,
        "optimizer.kind": kind,
        "train.batch_sequences": sequences,
        "train.batch_schedule": [],
        "model.smear": 0,
        "eval.chunk_bytes": min(512, context),
        "backend.device": device,
        "train.compile": compiled,
    }
    return load_config(ROOT / "configs" / "wiki-mini.yaml", [f"{key}={value}" for key, value in settings.items()])


def measured(config: RunConfig, device: torch.device) -> dict:
    """Tokens a second, MFU, peak memory, waits of a step for the device, and the largest shares of its time."""
    dtype = resolve_precision(config.train.precision, device)
    learner = Learner(config, 256, Ranks(0, 1, device), dtype)
    batch = learner.probe()

    def step(number: int) -> None:
        learner.set_schedule(Moment(number / 1000, (number + 1) / 1000, number))
        learner.train(batch, "speed")

    for number in range(WARM_UP):
        step(number)
    started = time.perf_counter()
    for number in range(MEASURED):
        step(number)
    _wait(device)
    seconds = (time.perf_counter() - started) / MEASURED
    rate = batch.num_tokens / seconds
    return {
        "parameters": learner.num_parameters,
        "precision": str(dtype),
        "milliseconds_per_step": round(1000 * seconds, 2),
        "tokens_per_second": round(rate),
        "mfu": round(rate * learner.flops_per_token / peak_flops(dtype, device), 4),
        "memory_bytes": torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
        "waits_per_step": waits(lambda: step(0)) if device.type == "cuda" else None,
        "kernels": kernels(lambda: step(0), device),
    }


def waits(step) -> int:
    """How often a step waits for the GPU."""
    torch.cuda.set_sync_debug_mode("warn")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        step()
    torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(one.message) for one in said)


def kernels(step, device: torch.device) -> list[tuple[str, float]]:
    """The kernels that take most of a step, with their share of it."""
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_gpu
    with profile(activities=activities) as run:
        for _ in range(3):
            step()
        _wait(device)
    averages = run.key_averages()
    times = {one.key: one.self_device_time_total if on_gpu else one.self_cpu_time_total for one in averages}
    total = sum(times.values()) or 1.0
    return [(name[:90], round(own / total, 4)) for name, own in sorted(times.items(), key=lambda x: -x[1])[:14]]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
