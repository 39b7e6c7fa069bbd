"""DistributedDataParallel, or the plain module where there is one process."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from harness.distributed import Ranks
from harness.optimizer import Optimizer

STATE_FILE = "ddp.pt"


class DDPBackend:
    """Weights and optimizer state on every rank; gradients averaged in one reduction per step."""

    def __init__(self, ranks: Ranks):
        self.ranks = ranks

    def prepare(self, model: nn.Module, optimizer: Optimizer) -> None:
        """Take both; the weights of rank 0 become those of all ranks."""
        self.model, self.optimizer = model, optimizer
        self.module = model
        if self.ranks.world_size > 1:
            # The only buffers are position tables, the same on every rank.
            self.module = DistributedDataParallel(model, broadcast_buffers=False, gradient_as_bucket_view=True)

    def backward(self, compute_loss: Callable[[nn.Module], Tensor], last: bool) -> None:
        """Accumulate the gradient of `compute_loss(module)`; average over ranks with the `last` one of a step."""
        local_only = not last and self.module is not self.model
        with self.module.no_sync() if local_only else nullcontext():
            compute_loss(self.module).backward()

    def step(self) -> None:
        """One optimizer step on the averaged gradients."""
        self.optimizer.step()

    def save(self, directory: Path) -> None:
        """Rank 0 writes weights and optimizer state; they are the same on every rank."""
        if self.ranks.is_first:
            state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
            torch.save(state, directory / STATE_FILE)

    def load(self, directory: Path) -> None:
        """Read what `save` wrote, on every rank."""
        state = torch.load(directory / STATE_FILE, map_location=self.ranks.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
