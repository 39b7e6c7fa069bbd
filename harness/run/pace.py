"""How fast a step is here: seconds that a run's length is told from before it starts."""

import functools
import statistics
import time
from collections.abc import Callable

import torch

from harness.machine.progress import clock
from harness.machine.ranks import Ranks
from harness.optim.optimizer import Optimizer

MAX_TIMED = 5
# Of a short run, every so many steps are worth one that is timed.
STEPS_PER_TIMED = 10
# A first step that takes so many times what there is time for is not repeated.
TOO_LONG = 8
# After a longer one nobody waits for more of them, only to be told how long all steps take.
LONG_DRY_STEP_SECONDS = 20.0


def seconds_of_a_step(step: Callable[[], object], ranks: Ranks, seconds: float = 1.0, most: int = MAX_TIMED) -> float:
    """Time `step`: the median of `most` calls, or as many as fit into `seconds`, after one to warm up.

    All ranks call it together, and it as often as the slowest has time for.
    """
    first = _timed(step, ranks.device)
    wanted = 0 if first > TOO_LONG * seconds else min(most, max(1, int(seconds / first)))
    times = min(ranks.gather(wanted))
    return statistics.median([_timed(step, ranks.device) for _ in range(times)]) if times else first


def duration_line(
    timed_step: Callable[[int], object],
    optimizers: list[Optimizer],
    ranks: Ranks,
    num_steps: dict[int, int],
    first_seconds: float,
) -> str:
    """Say how long all steps will take, and until when, at the rate of some steps on made-up tokens.

    `num_steps` are given by the tokens of a step. The first one, of the most tokens, took `first_seconds` on this rank;
    where that was long, it is taken for all.
    """
    seconds = dict.fromkeys(num_steps, max(ranks.gather(first_seconds)))
    if max(seconds.values()) < LONG_DRY_STEP_SECONDS:
        for optimizer in optimizers:
            freeze_learning_rates(optimizer)
        for tokens, number in num_steps.items():
            step, most = functools.partial(timed_step, tokens), min(MAX_TIMED, number // STEPS_PER_TIMED)
            seconds[tokens] = seconds_of_a_step(step, ranks, seconds=0.3, most=most)
    total = sum(number * seconds[tokens] for tokens, number in num_steps.items())
    end = time.strftime("%H:%M", time.localtime(time.time() + total))
    return f"duration    about {clock(total)} at {total / sum(num_steps.values()):.3g} s a step, until {end}"


def freeze_learning_rates(optimizer: Optimizer) -> None:
    """Set learning rates to 0, so that steps on made-up tokens leave the weights as they are."""
    for part in optimizer.parts:
        for group in part.param_groups:
            group["lr"] = 0.0


def _timed(step: Callable[[], object], device: torch.device) -> float:
    start = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start
