"""How long the steps of a run take: on GPUs from data sheets, on a CPU as measured.

On a GPU a step takes the longest of three things, of which the others hide behind it at best: its operations at an
assumed fraction of the peak, what ranks send each other, and what the optimizer reads and writes. The rates of links
and memory are data sheets' times `REACHED`; links are those inside a machine, and a network between machines is taken
to be as fast, as one with a card a GPU nearly is.
"""

from dataclasses import dataclass

from harness.config.run import RunConfig
from harness.data.schedule import TrainConfig
from launch.plan.gpus import Device
from launch.plan.memory import FLOAT, HALF, Parameters

# Share of the rates of links and memory that collectives and optimizers reach: an assumption.
REACHED = 0.75
# AdamW in one kernel reads weight, gradient and both moments and writes all but the gradient; Muon's momentum, update
# and weights take as much.
UPDATE_BYTES = 7 * FLOAT
# Recomputing activations is one more forward pass, of which a step has as many as three.
RECOMPUTING = 4 / 3


@dataclass(frozen=True, slots=True)
class Rate:
    """Duration of a run at one rate of its steps."""

    arithmetic: str
    peak_flops: float | None
    """FLOP/s of a rank; None where steps are measured."""
    mfu: float | None
    """Assumed fraction of the peak."""
    hours: float
    gpu_hours: float
    step_seconds: float
    tokens_per_second: float
    bound_by: str
    """What takes the time: `operations`, `exchange` between ranks, `update` of the weights; or `measured`."""


def main_passes(train: TrainConfig, num_tokens: int) -> float:
    """Compute how often the main phase trains on a corpus of `num_tokens`, replays and block trainings included."""
    if train.retrain_at:
        return train.retrain_epochs * sum(train.retrain_at)
    replayed = min(1.0, train.replays_until / num_tokens) if train.replays_until else 1.0
    return train.epochs + train.replays * replayed


def exchanged_bytes(config: RunConfig, parameters: Parameters, ranks: int, is_bf16: bool) -> float:
    """Compute the bytes that a rank sends in a step: gradients and, with ZeRO, weights; all of it in a ring."""
    backend, fraction = config.backend, (ranks - 1) / ranks
    one = fraction * parameters.total * (HALF if backend.bf16_weights else FLOAT)
    passes = config.train.batch_sequences // (config.train.micro_batch(ranks) * ranks)
    forward = 3 if config.train.activation_checkpointing else 2
    # A sum is a reduction and a gathering. Stage 2 reduces every backward pass; stage 3 gathers in each pass too.
    times = {0: 2, 1: 2, 2: passes + 1, 3: (forward + 1) * passes}[backend.zero_stage]
    return times * one + fraction * parameters.muon * (HALF if is_bf16 else FLOAT)


def update_bytes(config: RunConfig, parameters: Parameters, ranks: int) -> float:
    """Compute the bytes that the optimizer of a rank reads and writes in a step."""
    return UPDATE_BYTES * parameters.total / (ranks if config.backend.zero_stage else 1)


def bounding_seconds(
    config: RunConfig, parameters: Parameters, device: Device, ranks: int, is_bf16: bool
) -> dict[str, float]:
    """Compute the seconds that exchange and update alone take in a step on GPUs, which may bound it."""
    assert device.link_bytes_per_second and device.memory_bytes_per_second
    sent, moved = exchanged_bytes(config, parameters, ranks, is_bf16), update_bytes(config, parameters, ranks)
    return {
        "exchange": sent / (device.link_bytes_per_second * REACHED),
        "update": moved / (device.memory_bytes_per_second * REACHED),
    }
