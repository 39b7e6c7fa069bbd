"""Time of the hand-written gradients of harness/model/functions.py against autograd's, side by side in one run.

python -m tests.benchmarks.model_functions [--width 128] [--sequences 8]
"""

import argparse
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.model.functions import EPSILON, rms_norm, squared_relu

REPEATS = 20


def seconds(function: Callable[[Tensor], Tensor], x: Tensor, gradient: Tensor) -> float:
    """Median time of a forward and backward pass."""
    times = []
    for _ in range(REPEATS):
        leaf = x.detach().requires_grad_()
        start = time.perf_counter()
        function(leaf).backward(gradient)
        times.append(time.perf_counter() - start)
    return sorted(times)[REPEATS // 2]


def main() -> None:
    """Print a line per function and type."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--sequences", type=int, default=8)
    options = parser.parse_args()
    torch.set_num_threads(1)
    pairs = {
        "rms_norm": (rms_norm, lambda x: F.rms_norm(x, (x.shape[-1],), eps=EPSILON), options.width),
        "squared_relu": (squared_relu, lambda x: F.relu(x).square(), 4 * options.width),
    }
    for dtype in (torch.float32, torch.bfloat16):
        for name, (ours, autograd, width) in pairs.items():
            x, gradient = (torch.randn(options.sequences, 512, width).to(dtype) for _ in range(2))
            mine, theirs = seconds(ours, x, gradient), seconds(autograd, x, gradient)
            kind = str(dtype).removeprefix("torch.")
            print(f"{name:14}{kind:10}{1e3 * mine:7.2f} ms, autograd {1e3 * theirs:7.2f} ms, ratio {mine / theirs:.2f}")


if __name__ == "__main__":
    main()
