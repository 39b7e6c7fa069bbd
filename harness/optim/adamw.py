"""AdamW with one kernel for all of its elementwise work, on CPU and GPU."""

import inspect

import torch


class EagerOptimizer(torch.optim.Optimizer):
    """A torch optimizer that is never compiled: making and using one does not import the compiler, for 3 seconds."""

    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.Optimizer.zero_grad)


class AdamW(EagerOptimizer):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019).

    PyTorch's fused kernel reads and writes each number once: 28 bytes a weight and step where separate operations take
    90.
    """

    def __init__(self, groups: list[dict], betas: tuple[float, ...]):
        """Groups name their `lr` and `weight_decay`."""
        super().__init__(groups, {"betas": betas})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """One step on the gradients; parameters without one stay as they are."""
        for group in self.param_groups:
            trained = [p for p in group["params"] if p.grad is not None]
            if not trained:
                continue
            for p in trained:
                if not self.state[p]:
                    self.state[p] |= {
                        "step": torch.zeros((), device=p.device),
                        "exp_avg": torch.zeros_like(p),
                        "exp_avg_sq": torch.zeros_like(p),
                    }
            states = [self.state[p] for p in trained]
            first, second, steps = ([state[key] for state in states] for key in ("exp_avg", "exp_avg_sq", "step"))
            torch._foreach_add_(steps, 1)
            # The function that `torch.optim.AdamW(fused=True)` calls.
            torch._fused_adamw_(
                trained,
                [p.grad for p in trained],
                first,
                second,
                [],
                steps,
                lr=float(group["lr"]),
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                weight_decay=group["weight_decay"],
                eps=1e-8,
                amsgrad=False,
                maximize=False,
            )
