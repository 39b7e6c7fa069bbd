"""How fast a step is here: seconds that a run's length is told from before it starts."""

import statistics
import time
from collections.abc import Callable

import torch

from harness.distributed import Ranks
from harness.optimizer import Optimizer

MAX_TIMED = 5
# A first step that takes so many times what there is time for is not repeated.
TOO_LONG = 8


def seconds_of_a_step(step: Callable[[], None], ranks: Ranks, seconds: float = 1.0) -> float:
    """The median of some calls of `step`, as many as `seconds` are enough for, after one to warm up.

    All ranks call it together, and it as often as the slowest has time for.
    """
    first = _timed(step, ranks.device)
    wanted = 0 if first > TOO_LONG * seconds else min(MAX_TIMED, max(1, int(seconds / first)))
    times = min(ranks.gather(wanted))
    return statistics.median([_timed(step, ranks.device) for _ in range(times)]) if times else first


def stand_still(optimizer: Optimizer) -> None:
    """Learning rates of 0, so that steps on made-up tokens lead nowhere however many there are."""
    for part in optimizer.parts:
        for group in part.param_groups:
            group["lr"] = 0.0


def _timed(step: Callable[[], None], device: torch.device) -> float:
    start = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start
