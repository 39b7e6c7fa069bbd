"""The interface between the training loop and a way of distributing it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor, nn

from harness.optimizer import Optimizer

BACKENDS = ("ddp",)


@dataclass(kw_only=True, slots=True)
class BackendConfig:
    """How ranks share the work."""

    name: str = "ddp"
    """`ddp`: weights on every rank, gradients averaged."""
    timeout_seconds: float = 600.0
    """A collective that waits longer than this ends the job."""

    def problems(self) -> list[str]:
        """Every bad value, a line each."""
        found = []
        if self.name not in BACKENDS:
            found.append(f"backend.name={self.name}: unknown; use one of {', '.join(BACKENDS)}")
        if not self.timeout_seconds > 0:
            found.append(f"backend.timeout_seconds={self.timeout_seconds}: must be positive")
        return found


class Backend(Protocol):
    """Five methods; the loop knows nothing else about distribution."""

    def prepare(self, model: nn.Module, optimizer: Optimizer) -> None:
        """Take both; the weights of rank 0 become those of all ranks."""

    def backward(self, compute_loss: Callable[[nn.Module], Tensor], last: bool) -> None:
        """Accumulate the gradient of `compute_loss(module)`; average over ranks with the `last` one of a step."""

    def step(self) -> None:
        """One optimizer step on the averaged gradients."""

    def save(self, directory: Path) -> None:
        """Write this rank's part of the weights and of the optimizer's state."""

    def load(self, directory: Path) -> None:
        """Inverse of `save`."""
