"""A policy is learnt: gradient descent on the weights of all examples at all steps, and what it has brought."""

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from eval.gradient.simplex import project
from eval.gradient.training import MOST_OF_UNIFORM, Training, Trajectory, check_costs, state_stride
from eval.studies.config import PolicyConfig
from eval.studies.kept import Kept
from eval.studies.sets import Sets, make_sets, own_rows
from harness.files import write_file
from harness.machine.ranks import Ranks, on_first_rank

_NUMBERS_AT_A_TIME = 1 << 22
# Changes that are a smaller part of the mean weight change nothing that a file of sixteenths could hold.
_LEAST_CHANGE = 1e-3


@dataclass(kw_only=True, slots=True)
class PolicyPoint:
    """One learnt policy beside the constant one; losses are mean nats of an example, or of a symbol of it."""

    examples: int
    steps: int
    seed: int
    parameters: int
    symbols: int
    """A loss is compared with the logarithm of so many."""
    desired_nats: list[float] = field(default_factory=list)
    """Loss on the desired set, mean over all steps, after each epoch; the first is that of the constant policy."""
    test_nats: list[float] = field(default_factory=list)
    """The same on the test set."""
    corrupted_weights: list[float] = field(default_factory=list)
    """Sum of the weights of corrupted examples, mean over all steps, after each epoch."""
    similarities: list[list[float]] = field(default_factory=list)
    """Epoch, and mean over the desired gradient's products with each example's gradient over their deviation."""
    constant_curve: list[float] = field(default_factory=list)
    """Loss on the test set after each step, by the constant policy."""
    learnt_curve: list[float] = field(default_factory=list)
    corrupted_by_step: list[float] = field(default_factory=list)
    """Sum of the learnt weights of corrupted examples at each step."""
    zero_corrupted: float | None = None
    """Fraction of the learnt weights of corrupted examples that are 0; None without any."""
    zero_clean: float | None = None
    seconds: float = 0.0
    """What the epochs took."""

    def ratio(self, nats: float) -> float:
        """How many times as short as symbols of equal probability (the published compression ratio)."""
        return math.log(self.symbols) / nats

    @property
    def acceleration(self) -> float:
        """Steps over the first step at which the learnt policy's test loss is the constant one's last; 0 if never."""
        reached = np.flatnonzero(np.array(self.learnt_curve) <= self.constant_curve[-1])
        return self.steps / (int(reached[0]) + 1) if len(reached) else 0.0


def stem(examples: int, steps: int, seed: int) -> str:
    """Name of a job's files."""
    return f"n{examples}_t{steps}_s{seed}"


def point_path(config: PolicyConfig, examples: int, steps: int, seed: int) -> Path:
    """Path of a finished job's point."""
    return config.directory / "points" / f"{stem(examples, steps, seed)}.json"


def measure_policy(config: PolicyConfig, ranks: Ranks, examples: int, steps: int, seed: int) -> None:
    """Learn the policy of one job from where it was left, and keep it with its point.

    Raises RunFailure where training diverges, UsageError where the corpus has too few sentences.
    """
    sets = make_sets(config, examples, seed, ranks)
    learning = _Learning(config, sets, ranks, steps, seed)
    for line in learning.epochs():
        if ranks.is_first:
            print(line, flush=True)
    point, policy = learning.point(), learning.whole_policy()
    on_first_rank(ranks, _write, config, sets, point, policy)
    learning.kept.remove()


def _write(config: PolicyConfig, sets: Sets, point: PolicyPoint, policy: np.ndarray) -> None:
    from harness.policy.weights import Policy

    path = point_path(config, point.examples, point.steps, point.seed)
    for name in ("points", "policies"):
        (config.directory / name).mkdir(parents=True, exist_ok=True)
    base = config.directory / "policies" / path.stem
    means = [part.mean(axis=0) for part in np.array_split(policy, min(config.stages, len(policy)))]
    write_file(base.with_suffix(".policy"), Policy.of_weights(np.stack(means)).to_bytes())
    if sets.text is not None:
        write_file(base.with_suffix(".txt"), sets.text.tobytes())
    write_file(path, (json.dumps(asdict(point), indent=1) + "\n").encode())


def read_points(config: PolicyConfig) -> list[PolicyPoint]:
    """Read the points of all finished jobs."""
    paths = [point_path(config, *job) for job in config.jobs()]
    return [PolicyPoint(**json.loads(path.read_text())) for path in paths if path.exists()]


class _Learning:
    """Descent on one policy, and its history."""

    def __init__(self, config: PolicyConfig, sets: Sets, ranks: Ranks, steps: int, seed: int):
        self.config, self.sets, self.ranks, self.steps = config, sets, ranks, steps
        self.examples = len(sets.is_corrupted)
        self.own = own_rows(self.examples, ranks)
        stride = state_stride(steps, config.recompute)
        self.training = Training(sets.train, sets.desired, config.learning_rate, ranks, stride, sets.test)
        start = sets.train.start()
        self.policy = start.new_full((steps, sets.train.num_examples), 1 / self.examples)
        self.is_corrupted = torch.from_numpy(sets.is_corrupted[self.own]).to(start.device)
        self.change = config.largest_change
        self._point = PolicyPoint(
            examples=self.examples, steps=steps, seed=seed, parameters=len(start), symbols=sets.symbols
        )
        self.kept = Kept(config.directory / "work" / f"{stem(self.examples, steps, seed)}.safetensors")

    def epochs(self) -> Iterator[str]:
        """Go on to the last epoch; a line after each."""
        import time

        epoch = self._resume()
        trajectory = self.training.run(self.policy)
        if not epoch:
            check_costs(trajectory.costs, self.config.learning_rate, MOST_OF_UNIFORM * math.log(self.sets.symbols))
            self._point.constant_curve = trajectory.watched[1:].tolist()
            self._record(0, trajectory)
            yield self._line(0)
        while epoch < self.config.epochs:
            started, epoch = time.monotonic(), epoch + 1
            improved = self._improved(trajectory)
            if improved is None:
                yield (
                    f"epoch {epoch}: no change of at least {_LEAST_CHANGE} of the mean weight lowers the loss; that is "
                    f"the end, or the gradient through {self.steps} steps says nothing any more: lower "
                    f"learning_rate={self.config.learning_rate:g}"
                )
                break
            trajectory = improved
            self._record(epoch, trajectory)
            self._point.seconds += time.monotonic() - started
            self._keep(epoch)
            yield self._line(epoch)
        self._finish(epoch, trajectory)

    def point(self) -> PolicyPoint:
        """What has been measured."""
        return self._point

    def whole_policy(self) -> np.ndarray:
        """The policy (steps, examples) of all ranks."""
        return np.concatenate(self.ranks.gather(self.policy.cpu().numpy()), axis=1)

    def _improved(self, trajectory: Trajectory) -> Trajectory | None:
        """Change the policy so that the loss falls; None where no change does."""
        gradient = self.training.gradient(self.policy, trajectory)
        largest = max(self.ranks.gather(float(gradient.abs().max())))
        if not (largest > 0 and math.isfinite(largest)):
            return None
        while self.change * self.examples >= _LEAST_CHANGE:
            proposed = self._projected(self.policy - self.change / largest * gradient)
            tried = self.training.run(proposed)
            if tried.total < trajectory.total:
                self.policy = proposed
                return tried
            self.change /= 4
        return None

    def _projected(self, values: Tensor) -> Tensor:
        """Each row's nearest weights, some rows at a time, since a row is needed as a whole."""
        out, rows = torch.empty_like(values), max(1, _NUMBERS_AT_A_TIME // self.examples)
        for first in range(0, self.steps, rows):
            part = values[first : first + rows]
            whole = part.new_zeros(len(part), self.examples)
            whole[:, self.own] = part
            out[first : first + rows] = project(self.ranks.sum_tensor(whole))[:, self.own]
        return out

    def _record(self, epoch: int, trajectory: Trajectory) -> None:
        point = self._point
        point.desired_nats.append(trajectory.total / self.steps)
        point.test_nats.append(float(trajectory.watched.sum()) / self.steps)
        point.corrupted_weights.append(float(np.mean(self._corrupted_by_step())))
        if epoch % self.config.similarity_every == 0:
            self._add_similarity(epoch, trajectory)

    def _add_similarity(self, epoch: int, trajectory: Trajectory) -> None:
        """SIM: mean(CT) / sd(CT) over examples with a weight, CT being <desired gradient, example's gradient>."""
        found = []
        for step, state in self.training.states_backwards(self.policy, trajectory):
            direction = self.ranks.sum_tensor(self.sets.desired.of_state(state))
            # What an example's weight does to <gradient, direction> is its own product.
            products, _ = self.sets.train.adjoint(state, self.policy[step], direction)
            counted = products[self.policy[step] > 0].double()
            count, total, squares = self.ranks.sum(len(counted), float(counted.sum()), float(counted.square().sum()))
            deviation = math.sqrt(max(squares / count - (total / count) ** 2, 0.0))
            found.append(total / count / deviation if deviation else 0.0)
        self._point.similarities.append([epoch, float(np.mean(found))])

    def _corrupted_by_step(self) -> list[float]:
        own = self.policy[:, self.is_corrupted].double().sum(dim=1).cpu()
        return self.ranks.sum_tensor(own).tolist()

    def _finish(self, epoch: int, trajectory: Trajectory) -> None:
        point, is_zero = self._point, self.policy == 0
        point.learnt_curve = trajectory.watched[1:].tolist()
        point.corrupted_by_step = self._corrupted_by_step()
        counts = [int(chosen.sum()) * self.steps for chosen in (self.is_corrupted, ~self.is_corrupted)]
        zeros = [int(is_zero[:, chosen].sum()) for chosen in (self.is_corrupted, ~self.is_corrupted)]
        bad_zeros, good_zeros, bad, good = self.ranks.sum(*zeros, *counts)
        point.zero_corrupted, point.zero_clean = bad_zeros / bad if bad else None, good_zeros / good if good else None
        if point.similarities[-1][0] != len(point.desired_nats) - 1:
            self._add_similarity(len(point.desired_nats) - 1, trajectory)

    def _line(self, epoch: int) -> str:
        point = self._point
        desired, test, corrupted = point.desired_nats[-1], point.test_nats[-1], point.corrupted_weights[-1]
        return (
            f"epoch {epoch}: desired {desired:.4f} nats (CR {point.ratio(desired):.3f}), test {test:.4f} "
            f"(CR {point.ratio(test):.3f}), corrupted weight {corrupted:.3f}, change {self.change:.1e}"
        )

    def _keep(self, epoch: int) -> None:
        everything = torch.from_numpy(self.whole_policy())
        words = {"epoch": epoch, "change": self.change, "point": asdict(self._point)}
        on_first_rank(self.ranks, self.kept.write, {"policy": everything}, words)

    def _resume(self) -> int:
        found = self.ranks.broadcast(on_first_rank(self.ranks, self.kept.read))
        if found is None:
            return 0
        tensors, words = found
        self.policy = tensors["policy"][:, self.own].to(self.policy.device).contiguous()
        self.change, self._point = words["change"], PolicyPoint(**words["point"])
        return words["epoch"]
