"""The interface between the training loop and a way of distributing it.

A backend owns *partitions*: the float32 tensors that this rank's optimizer steps, with their state. They are the
parameters themselves, or flat parts of many of them; whatever is elementwise works on both.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from harness.bounds import bound_problems, bounded
from harness.machine.ranks import DEVICES
from harness.optim.optimizer import Optimizer, OptimizerConfig, Ruled
from harness.rules.rule import forget

BACKENDS = ("ddp", "deepspeed")
# Stores keep it in milliseconds, in 31 bits.
MAX_TIMEOUT_SECONDS = 2_000_000


@dataclass(kw_only=True, slots=True)
class BackendConfig:
    """Settings of the backend: how ranks divide the work."""

    name: str = bounded("ddp", choices=BACKENDS)
    """`ddp`: weights on every rank, gradients averaged; `deepspeed`: ZeRO, which shares them out."""
    device: str = bounded("auto", choices=DEVICES)
    """`cuda`, `cpu`, or `auto`: GPUs where every process of a machine has one of its own."""
    timeout_seconds: float = 600.0
    """A collective that waits longer than this ends the job."""
    zero_stage: int = bounded(0, least=0, most=3, words="must be 0, 1, 2 or 3")
    """DeepSpeed: what ranks share out: 1 optimizer state, 2 gradients too, 3 weights too; 0 nothing."""
    offload_optimizer: bool = False
    """DeepSpeed, stage 1 to 3: optimizer state lies in the memory of the host."""
    overlap: bool = False
    """DeepSpeed on GPUs, stage 1 to 3: reduce gradients during the backward pass; not shown to repeat every bit."""
    bf16_weights: bool = False
    """DeepSpeed, stage 1 to 3: weights and gradients are bf16, float32 weights are part of the optimizer's state."""

    def problems(self) -> list[str]:
        """Every bad value, a line each."""
        problems = bound_problems(self, "backend.")
        if not 0 < self.timeout_seconds <= MAX_TIMEOUT_SECONDS:
            problems.append(
                f"backend.timeout_seconds={self.timeout_seconds:g}: must be above 0 and at most {MAX_TIMEOUT_SECONDS:,}"
            )
        if self.zero_stage and self.name != "deepspeed":
            problems.append(f"backend.zero_stage={self.zero_stage}: needs backend.name=deepspeed")
        for key in ("offload_optimizer", "overlap", "bf16_weights"):
            if getattr(self, key) and not (self.name == "deepspeed" and self.zero_stage):
                problems.append(
                    f"backend.{key}=true: needs backend.name=deepspeed and a backend.zero_stage of 1, 2 or 3"
                )
        return problems


class Backend(Protocol):
    """The interface of a backend; its methods are called on all ranks together, unless they say otherwise."""

    module: nn.Module
    """What a forward pass runs."""

    @property
    def packages(self) -> tuple[str, ...]:
        """Packages whose versions decide the last bits."""

    @property
    def is_sharded(self) -> bool:
        """Whether ranks hold different partitions; else they are the same on all."""

    def make_parts(self, groups: list[dict], config: OptimizerConfig) -> list[Ruled]:
        """Make the torch optimizers that this backend can work with."""

    def prepare(self, model: nn.Module, optimizer: Optimizer) -> None:
        """Take model and optimizer; the weights of rank 0 become those of all ranks."""

    def backward(self, compute_loss: Callable[[nn.Module], Tensor], last: bool) -> None:
        """Accumulate the gradient of `compute_loss(module)`; average over ranks with the `last` one of a step."""

    def step(self) -> None:
        """Take one optimizer step on the averaged gradients."""

    def partitions(self) -> AbstractContextManager:
        """Put this rank's partitions into the optimizer's parameter groups for the length of the context."""

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Name and float32 weights of one tensor after another, in full, on every rank; not to be written to."""

    def set_weights(self, weights: dict[str, Tensor]) -> None:
        """Replace the weights, partitions included, by `weights`, which are the same on every rank."""

    def refresh(self) -> None:
        """Make the module's weights those of the partitions."""

    def count_nonzeros(self) -> int:
        """Number of weights that are not zero."""

    def close(self) -> None:
        """Release what the backend holds; called on each rank by itself."""


def all_partitions(optimizer: Optimizer) -> list[tuple[Tensor, dict]]:
    """List this rank's partitions with the optimizer's state of each; inside `Backend.partitions()`."""
    groups = [(part, group) for part in optimizer.parts for group in part.param_groups]
    return [(p, part.state[p]) for part, group in groups for p in group["params"]]


@torch.no_grad()
def local_state(backend: Backend, optimizer: Optimizer) -> dict:
    """Collect this rank's partitions and their state for a checkpoint, by reference."""
    with backend.partitions():
        partitions = all_partitions(optimizer)
        return {"partitions": [p.detach() for p, _ in partitions], "state": [dict(state) for _, state in partitions]}


@torch.no_grad()
def load_local_state(backend: Backend, optimizer: Optimizer, saved: dict) -> None:
    """Load what `local_state` has collected, in place.

    Raises ValueError where `saved` is the state of something else.
    """
    with backend.partitions():
        for (p, state), tensor, saved_state in zip(
            all_partitions(optimizer), saved["partitions"], saved["state"], strict=True
        ):
            if p.shape != tensor.shape:
                raise ValueError(f"a partition of {tuple(tensor.shape)} where {tuple(p.shape)} is needed")
            p.copy_(tensor)
            for key, value in saved_state.items():
                if isinstance(value, Tensor) and isinstance(state.get(key), Tensor):
                    state[key].copy_(value)
                else:
                    state[key] = value.to(p.device) if isinstance(value, Tensor) and value.dim() else value
    backend.refresh()


@torch.no_grad()
def reset(backend: Backend, optimizer: Optimizer, weights: dict[str, Tensor]) -> None:
    """Go back to before the first step: these `weights`, and an optimizer without state."""
    backend.set_weights(weights)
    with backend.partitions():
        for _, state in all_partitions(optimizer):
            forget(state)
            for key, value in state.items():
                state[key] = value.zero_() if isinstance(value, Tensor) else type(value)()


@torch.no_grad()
def gather_state(backend: Backend, optimizer: Optimizer, key: str, missing: float) -> dict[str, Tensor]:
    """Gather a tensor of the optimizer's state, by parameter, on every rank; `missing` where a partition has none.

    It travels in the place of the weights, so that every backend that gathers weights gathers any state.
    """
    with backend.partitions():
        partitions = all_partitions(optimizer)
        kept = [p.clone() for p, _ in partitions]
        for p, state in partitions:
            p.copy_(state[key]) if key in state else p.fill_(missing)
    full = {name: tensor.clone() for name, tensor in backend.weights()}
    with backend.partitions():
        for (p, _), weights in zip(all_partitions(optimizer), kept, strict=True):
            p.copy_(weights)
    return full


@torch.no_grad()
def scatter_state(backend: Backend, optimizer: Optimizer, key: str, full: dict[str, Tensor]) -> None:
    """Give every regularised partition its part of `full` as `state[key]`; the weights become `full`."""
    backend.set_weights(full)
    with backend.partitions():
        for part in optimizer.parts:
            for _, p, state in part.regularised():
                state[key] = p.detach().clone()
