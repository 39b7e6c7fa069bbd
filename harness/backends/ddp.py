"""DistributedDataParallel, or the plain module where there is one process."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from harness.machine.ranks import Ranks
from harness.optim.optimizer import Optimizer, OptimizerConfig, Ruled, torch_parts


class DDPBackend:
    """Weights and optimizer state on every rank; gradients averaged in one reduction per step."""

    packages = ("torch",)
    is_sharded = False

    def __init__(self, ranks: Ranks, muon_dtype: torch.dtype = torch.float32):
        """`muon_dtype` is that in which Muon's updates are made orthogonal."""
        self.ranks, self.muon_dtype = ranks, muon_dtype

    def make_parts(self, groups: list[dict], config: OptimizerConfig) -> list[Ruled]:
        """AdamW, and Muon that shares its work out among the ranks."""
        return torch_parts(groups, config, self.muon_dtype, self.ranks.rank, self.ranks.world_size)

    def prepare(self, model: nn.Module, optimizer: Optimizer) -> None:
        """Take model and optimizer; the weights of rank 0 become those of all ranks."""
        self.model, self.optimizer = model, optimizer
        self.module: nn.Module = model
        if self.ranks.world_size > 1:
            # The only buffers are position tables, the same on every rank.
            self.module = DistributedDataParallel(model, forward_sync_buffers=False, gradient_as_bucket_view=True)

    def backward(self, compute_loss: Callable[[nn.Module], Tensor], last: bool) -> None:
        """Accumulate the gradient of `compute_loss(module)`; average over ranks with the `last` one of a step."""
        with self.module.no_sync() if not last and isinstance(self.module, DistributedDataParallel) else nullcontext():
            compute_loss(self.module).backward()

    def step(self) -> None:
        """Take one optimizer step on the averaged gradients."""
        self.optimizer.step()

    @contextmanager
    def partitions(self) -> Iterator[None]:
        """The partitions are the parameters themselves."""
        yield

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """The weights, by reference."""
        return ((name, p.detach()) for name, p in self.model.named_parameters())

    @torch.no_grad()
    def set_weights(self, weights: dict[str, Tensor]) -> None:
        """Replace the weights."""
        for name, p in self.model.named_parameters():
            p.copy_(weights[name])

    def refresh(self) -> None:
        """Nothing to do: the partitions are the module's weights."""

    def count_nonzeros(self) -> int:
        """Number of weights that are not zero."""
        return int(torch.stack([p.count_nonzero() for p in self.model.parameters()]).sum())

    def close(self) -> None:
        """Release the reducer, which would otherwise outlive its process group and wait for it."""
        self.module = self.model
