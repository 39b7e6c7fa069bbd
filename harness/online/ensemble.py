"""The transformers of an online code: how they learn from each batch, and whose weights predict the next one."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from harness.config.run import RunConfig
from harness.data.batches import StepBatch
from harness.data.schedule import Moment
from harness.learner import Learner, StepLosses
from harness.machine.ranks import Ranks
from harness.model.start import Start
from harness.model.transformer import ModelConfig
from harness.online.replay import ReplaySchedule
from harness.optim.stopping import Convergence

Weights = Iterable[tuple[str, Tensor]]
_EMA_WARMUP = 10


class Ensemble:
    """The transformers of an online code: the run's own, then those of `online.models`, on the same batches."""

    _means: list[dict[str, Tensor]]
    _kept: list[dict[str, Tensor]]

    def __init__(
        self, config: RunConfig, vocab_size: int, ranks: Ranks, dtype: torch.dtype, start: Start | None = None
    ):
        """`start` has the first weights of the run's own transformer, which learns on from them at rates of its own."""
        self.config, self.online, self.ranks = config, config.online, ranks
        self.shapes: list[ModelConfig] = config.expert_models()
        own = replace(config, optimizer=config.optimizer.scaled(self.online.start_rate_factor)) if start else config
        self.learners = [Learner(own, vocab_size, ranks, dtype, start)]
        self.learners += [Learner(replace(config, model=shape), vocab_size, ranks, dtype) for shape in self.shapes[1:]]
        self.identity = {"start": start.sha256[:16]} if start else {}
        """What a run that goes on must share besides its settings."""
        self._forget()

    @property
    def main(self) -> Learner:
        """The transformer that the run trains."""
        return self.learners[0]

    def candidates(self) -> list[Weights]:
        """List the weights that the run's own transformer may predict with, the current ones first."""
        return [list(self._predicting(0)), *(kept.items() for kept in self._kept)]

    def others(self) -> list[Weights]:
        """List the weights that the other transformers predict with."""
        return [self._predicting(index) for index in range(1, len(self.learners))]

    def learn(
        self, step: int, moment: Moment, batch: StepBatch, replays: ReplaySchedule, asked: Sequence[float] = ()
    ) -> StepLosses | None:
        """Take the step of a new batch and those that follow it, all at the learning rates of `moment`.

        Returns the losses of the run's own transformer.

        `asked` is as in `Learner.train`. None in a block code, which does not train on a batch at its first visit.
        Raises RunFailure where a loss is not finite.
        """
        where = f"step {step}"
        if self.config.train.retrain_at:
            self._train_anew(replays.training(step), where)
            self._keep(step)
            return None
        losses = self._train(moment, batch, where, asked)
        if replays.batches.adaptive:
            replays.batches.adaptive.observe(batch, losses.micro_batches)
        for replay in replays.replays(step):
            self._train(moment, replay, f"{where}, replay")
        self._keep(step)
        return losses

    def dry_step(self, step_tokens: int | None = None) -> str:
        """Take one step of each on made-up tokens; returns digests of the weights. `reset` undoes it."""
        return " ".join(learner.dry_step(step_tokens) for learner in self.learners)

    def timed_step(self, step_tokens: int) -> None:
        """Take a bare step of each on made-up tokens, as long as one of training takes; `reset` undoes it."""
        for learner in self.learners:
            learner.train(learner.probe(step_tokens), "dry step")

    def reset(self) -> None:
        """Go back to before the first step."""
        for learner in self.learners:
            learner.reset()
        self._forget()

    def weights_digest(self) -> bytes:
        """Digest all weights by BLAKE2b, 8 bytes, the same on every rank."""
        digests = [learner.weights_digest() for learner in self.learners]
        return digests[0] if len(digests) == 1 else hashlib.blake2b(b"".join(digests), digest_size=8).digest()

    def state(self) -> dict:
        """What a checkpoint of this rank holds; what all ranks have in common only the first one keeps."""
        rank_state = {"learners": [learner.state() for learner in self.learners], "num_means": self._num_means}
        if self.ranks.is_first or not (self._means or self._kept):
            rank_state |= {"means": self._means, "kept": self._kept}
        return rank_state

    def load(self, rank_state: dict, common_state: dict) -> None:
        """Go on from the saved states of this rank and of the first."""
        for learner, mine, shared in zip(self.learners, rank_state["learners"], common_state["learners"], strict=True):
            learner.load(mine, shared)
        device, shared = self.ranks.device, rank_state if "means" in rank_state else common_state
        self._means, self._kept = (
            [{name: tensor.to(device) for name, tensor in weights.items()} for weights in shared[key]]
            for key in ("means", "kept")
        )
        self._num_means = rank_state["num_means"]

    def close(self) -> None:
        """Release what the backends hold."""
        for learner in self.learners:
            learner.backend.close()

    def _forget(self) -> None:
        self._means = []
        self._num_means = 0
        self._kept = []

    def _predicting(self, index: int) -> Weights:
        return self._means[index].items() if self._means else self.learners[index].backend.weights()

    def _train(self, moment: Moment, batch: StepBatch, where: str, asked: Sequence[float] = ()) -> StepLosses:
        losses = []
        for learner in self.learners:
            learner.set_schedule(moment)
            losses.append(learner.train(batch, where, asked if learner is self.main else ()))
        if batch.num_tokens > batch.num_untrained:
            self._average()
        return losses[0]

    def _train_anew(self, training: Iterable[tuple[StepBatch, Moment]] | None, where: str) -> None:
        if training is None:
            return
        rules = [learner.optimizer.rule for learner in self.learners]
        for learner, rule in zip(self.learners, rules, strict=True):
            learner.reset()
            learner.optimizer.set_rule(rule)
        self._means, self._num_means = [], 0
        convergence = Convergence(self.config.stopping)
        for batch, moment in training:
            losses = self._train(moment, batch, where)
            convergence.add(losses.nats_sum / batch.num_tokens)
            if convergence.is_reached:
                break

    @torch.no_grad()
    def _average(self) -> None:
        """Move the running means of the weights; young ones move faster, as means of few values should."""
        if not self.online.ema:
            return
        self._num_means += 1
        rate = max(1 - self.online.ema, _EMA_WARMUP / (_EMA_WARMUP + self._num_means))
        if not self._means:
            self._means = [_copied(learner.backend.weights()) for learner in self.learners]
        for means, learner in zip(self._means, self.learners, strict=True):
            for name, weights in learner.backend.weights():
                means[name].lerp_(weights.float(), rate)

    def _keep(self, step: int) -> None:
        """Keep the weights that predict now for later batches to choose, in place of the oldest ones."""
        if self.online.checkpoints > 1 and (step + 1) % self.online.checkpoint_steps == 0:
            newest = _copied(self._predicting(0))
            self._kept = [newest, *self._kept][: self.online.checkpoints - 1]


def _copied(weights: Weights) -> dict[str, Tensor]:
    return {name: tensor.detach().float().clone() for name, tensor in weights}
