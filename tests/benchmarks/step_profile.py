"""Where the time of a training step goes, by cause.

    python -m tests.benchmarks.step_profile [--device cpu|cuda] [--models 0.7M 25M] [--sequences 8] [--rounds 5]

A profiler's times, each counted for the nearest cause around it; on a GPU those of its kernels. Prints Markdown: the
share of each cause, milliseconds a step without the profiler, and useful FLOP/s against the rate of a matrix product in
the same run. One thread.
"""

import argparse
import statistics
import time

import torch
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile

from harness.config.run import RunConfig
from harness.learner import Learner
from harness.machine.hardware import compute_deterministically, matmul_flops, processor_name, resolve_precision
from harness.machine.ranks import Ranks, choose_device
from tests.benchmarks.training_speed import SIZES, make_config, print_row

# Part of the name of an event, and the cause that it and all below it count for; the first match from the inside out.
CAUSES = (
    ("RuledMuon.step", "Muon"),
    ("RuledAdamW.step", "AdamW"),
    ("_BlockAttention", "attention"),
    ("scaled_dot_product", "attention"),
    ("_flash_attention", "attention"),
    ("_RMSNorm", "norms"),
    ("rms_norm", "norms"),
    ("layer_norm", "norms"),
    ("NativeLayerNorm", "norms"),
    ("_Rotated", "rotary positions"),
    ("_SquaredReLU", "activation"),
    ("gelu", "activation"),
    ("Gelu", "activation"),
    ("log_softmax", "loss"),
    ("LogSoftmax", "loss"),
    ("nll_loss", "loss"),
    ("NllLoss", "loss"),
    ("aten::mm", "matrix products"),
    ("aten::addmm", "matrix products"),
    ("aten::linear", "matrix products"),
    ("embedding", "embedding"),
    ("Embedding", "embedding"),
)
NAMES = (*dict.fromkeys(cause for _, cause in CAUSES), "other")
SHAPES = SIZES | {"308M": (1600, 10, 25, 512, 2)}
KINDS = (("modern", "muon"), ("published", "adamw"))


def main() -> None:
    """Print a column for each model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--models", nargs="+", choices=SHAPES, default=["0.7M", "25M"])
    parser.add_argument("--sequences", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    compute_deterministically()
    device = choose_device(options.device)
    dtype = resolve_precision("auto", device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name()
    print(f"{name}, torch {torch.__version__}, {dtype}, {options.sequences} sequences of 512 a step\n")
    columns = {}
    for size in options.models:
        for architecture, kind in KINDS:
            config = make_config((*SHAPES[size][:4], options.sequences), architecture, kind)
            columns[f"{size} {architecture}, {kind}"] = measure(config, device, dtype, options.rounds)
    print_row(["cause", *columns])
    print_row([":---", *["---:"] * len(columns)])
    for cause in columns[next(iter(columns))]:
        print_row([cause, *(column[cause] for column in columns.values())])


def measure(config: RunConfig, device: torch.device, dtype: torch.dtype, rounds: int) -> dict[str, str]:
    """Shares by cause, time and rate of a step."""
    learner = Learner(config, 256, Ranks(0, 1, device), dtype)
    batch, seconds, peaks = learner.probe(), [], []
    for _ in range(3):
        learner.train(batch, "profile")
    for _ in range(rounds):
        start = time.perf_counter()
        learner.train(batch, "profile")
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
        peaks.append(matmul_flops(dtype, device))
    on_gpu = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_gpu) as run:
        learner.train(batch, "profile")
        if on_gpu:
            torch.cuda.synchronize(device)
    times = dict.fromkeys(NAMES, 0.0)
    for event in run.events():
        if event.device_type == torch.autograd.DeviceType.CPU:
            times[cause_of(event)] += event.self_device_time_total if on_gpu else event.self_cpu_time_total
    total, median = sum(times.values()) or 1.0, statistics.median(seconds)
    useful = batch.num_tokens / median * learner.flops_per_token
    shares = {name: f"{own / total:.1%}" for name, own in times.items()}
    share_of_peak = useful / statistics.median(peaks)
    return shares | {"ms a step": f"{1e3 * median:.1f}", "of the matmul peak": f"{share_of_peak:.0%}"}


def cause_of(event: FunctionEvent) -> str:
    """What an event counts for: its own name's cause, or that of the nearest event around it that has one.

    Optimizers come first: whatever they compute is theirs.
    """
    names, around = [], event
    while around is not None:
        names.append(around.name)
        around = around.cpu_parent
    for name in names:
        if "RuledMuon.step" in name or "RuledAdamW.step" in name:
            return "Muon" if "Muon" in name else "AdamW"
    return next((cause for name in names for part, cause in CAUSES if part in name), "other")


if __name__ == "__main__":
    main()
