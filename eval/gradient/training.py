"""Gradient descent on weighted examples, and the exact gradient of what it costs by every weight.

theta_{t+1} = theta_t - eta grad sum_n gamma_{t,n} l_n(theta_t). What is minimised is a sum of costs of the states, such
as the loss on a desired set (Gu et al., "Towards Optimal Learning of Language Models", 2024, section 3); its gradient
runs backwards through all steps with one second derivative, times a vector, a step.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from harness.errors import RunFailure
from harness.machine.ranks import Ranks

# Vectors of parameters, and policies, that are held besides the states.
_WORKING_STATES, _POLICIES = 8, 4
MOST_OF_UNIFORM = 100.0
"""A loss that is so many times that of symbols of equal probability has diverged."""


class Learner(Protocol):
    """Examples of this rank with their losses; a state is a vector (parameters,)."""

    num_examples: int

    def start(self) -> Tensor:
        """The state before the first step, the same on all ranks."""

    def losses(self, state: Tensor) -> Tensor:
        """Loss of each example (examples,) in nats."""

    def gradient(self, state: Tensor, weights: Tensor) -> Tensor:
        """Gradient (parameters,) of the sum of losses times `weights` (examples,)."""

    def adjoint(self, state: Tensor, weights: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of <gradient(state, weights), direction> by the weights (examples,) and the state (parameters,)."""


class Objective(Protocol):
    """What a state costs; parts of it that ranks add up."""

    def cost(self, step: int, state: Tensor, weights: Tensor | None) -> Tensor:
        """Cost of the state before `step`, float64; `weights` are those of the step, None after the last one."""

    def gradients(self, step: int, state: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Gradients of the cost by the state (parameters,) and by the weights, None where these do not matter."""


class Desired:
    """The mean loss of a desired set in every state but the first."""

    def __init__(self, examples: Learner, num_examples: int):
        """`num_examples` are those of all ranks."""
        self.examples, self.num_examples = examples, num_examples

    def cost(self, step: int, state: Tensor, weights: Tensor | None) -> Tensor:
        """The mean loss; 0 before the first step."""
        losses = self.examples.losses(state) if step else torch.zeros(1)
        return losses.double().sum() / self.num_examples

    def gradients(self, step: int, state: Tensor, weights: Tensor | None) -> tuple[Tensor, None]:
        """Of the mean loss by the state."""
        return self.of_state(state) if step else torch.zeros_like(state), None

    def of_state(self, state: Tensor) -> Tensor:
        """Gradient (parameters,) of the mean loss, also in the first state."""
        return self.examples.gradient(state, state.new_full((self.examples.num_examples,), 1 / self.num_examples))


class Prequential:
    """The loss of what a step is about to learn from: the area under the loss curve."""

    def __init__(self, examples: Learner):
        self.examples = examples

    def cost(self, step: int, state: Tensor, weights: Tensor | None) -> Tensor:
        """The weighted loss."""
        return torch.zeros((), dtype=torch.float64) if weights is None else (weights * self._losses(state)).sum()

    def gradients(self, step: int, state: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """By state and weights."""
        if weights is None:
            return torch.zeros_like(state), None
        return self.examples.gradient(state, weights), self.examples.losses(state)

    def _losses(self, state: Tensor) -> Tensor:
        return self.examples.losses(state).double()


@dataclass(frozen=True, slots=True)
class Trajectory:
    """One training: what its states cost, and some of them."""

    costs: Tensor
    """Cost of each state (steps + 1,), float64."""
    kept: list[Tensor]
    """This rank's part of every `stride`-th state from the first on."""
    last: Tensor
    """The last state (parameters,)."""
    watched: Tensor
    """What each state costs that is only looked at (steps + 1,), float64."""

    @property
    def total(self) -> float:
        """What is minimised."""
        return float(self.costs.sum())


class Training:
    """Training under a policy (steps, examples of this rank), and its gradient."""

    def __init__(
        self,
        learner: Learner,
        objective: Objective,
        rate: float,
        ranks: Ranks,
        stride: int = 1,
        watched: Objective | None = None,
    ):
        """`rate` is eta; states between every `stride`-th one are computed again when they are needed.

        What states cost by `watched` is told beside what is minimised.
        """
        self.learner, self.objective, self.rate = learner, objective, rate
        self.ranks, self.stride = ranks, stride
        self._observed = [objective, watched] if watched else [objective]
        self._first = learner.start()

    def run(self, policy: Tensor) -> Trajectory:
        """Train; costs that are not finite are left as they are."""
        state, kept = self._first, []
        costs: list[list[Tensor]] = []
        for step, weights in enumerate(policy):
            if step % self.stride == 0:
                kept.append(self._own(state))
            costs.append([each.cost(step, state, weights) for each in self._observed])
            state = self._next(state, weights)
        costs.append([each.cost(len(policy), state, None) for each in self._observed])
        each = torch.stack([torch.stack([cost.double().cpu() for cost in row]) for row in costs], dim=1)
        self.ranks.sum_tensor(each)
        return Trajectory(each[0], kept, state, each[-1])

    def gradient(self, policy: Tensor, trajectory: Trajectory) -> Tensor:
        """Gradient of the total by the policy (steps, examples of this rank)."""
        found = torch.empty_like(policy)
        sums = self.ranks.sum_tensor
        passed_back = sums(self.objective.gradients(len(policy), trajectory.last, None)[0])
        for step, state in self.states_backwards(policy, trajectory):
            of_weights, of_state = self.learner.adjoint(state, policy[step], passed_back)
            own_state, own_weights = self.objective.gradients(step, state, policy[step])
            found[step] = -self.rate * of_weights
            if own_weights is not None:
                found[step] += own_weights
            passed_back = passed_back + sums(own_state - self.rate * of_state)
        return found

    def states_backwards(self, policy: Tensor, trajectory: Trajectory) -> Iterator[tuple[int, Tensor]]:
        """Each step with the whole state (parameters,) before it, the last step first."""
        for index in reversed(range(len(trajectory.kept))):
            first = index * self.stride
            state = self._whole(trajectory.kept[index])
            states = [self._own(state)]
            for step in range(first, min(first + self.stride, len(policy)) - 1):
                state = self._next(state, policy[step])
                states.append(self._own(state))
            for offset in reversed(range(len(states))):
                yield first + offset, self._whole(states[offset])

    def _next(self, state: Tensor, weights: Tensor) -> Tensor:
        return state - self.rate * self.ranks.sum_tensor(self.learner.gradient(state, weights))

    def _own(self, state: Tensor) -> Tensor:
        """The part of a state that this rank keeps."""
        if self.ranks.world_size == 1:
            return state
        return state[self._bounds(len(state))].clone()

    def _whole(self, own: Tensor) -> Tensor:
        if self.ranks.world_size == 1:
            return own
        state = torch.zeros_like(self._first)
        state[self._bounds(len(state))] = own
        # Zeros are added: the bits stay as they are.
        return self.ranks.sum_tensor(state)

    def _bounds(self, size: int) -> slice:
        rank, count = self.ranks.rank, self.ranks.world_size
        return slice(size * rank // count, size * (rank + 1) // count)


def state_stride(num_steps: int, recompute: bool) -> int:
    """How far kept states are apart: 1, or about the square root of the steps."""
    return max(1, math.isqrt(num_steps)) if recompute else 1


def memory_bytes(num_steps: int, parameters: int, examples: int, world_size: int, recompute: bool) -> int:
    """Bytes that a rank holds in float32: states, and policies with their gradient."""
    stride = state_stride(num_steps, recompute)
    kept = -(-num_steps // stride) + (stride if stride > 1 else 0)
    states = parameters * (-(-kept // world_size) + _WORKING_STATES)
    return 4 * (states + _POLICIES * num_steps * -(-examples // world_size))


def most_steps(limit_bytes: int, parameters: int, examples: int, world_size: int, recompute: bool) -> int:
    """The largest number of steps that `memory_bytes` allows; 0 where there is none."""
    low, high = 0, 1 << 40
    while low < high:
        middle = (low + high + 1) // 2
        fits = memory_bytes(middle, parameters, examples, world_size, recompute) <= limit_bytes
        low, high = (middle, high) if fits else (low, middle - 1)
    return low


def check_costs(costs: Tensor, rate: float, most: float) -> None:
    """Raise RunFailure where a training has diverged: a cost is above `most` or no number; the step is named."""
    broken = torch.nonzero(~(costs <= most))
    if len(broken):
        step, words = int(broken[0]), f"learning_rate={rate:g}: training diverges"
        raise RunFailure(f"{words}, the loss is {float(costs[step]):g} after {step} steps; lower it")
