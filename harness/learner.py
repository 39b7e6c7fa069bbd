"""The training step of one rank: what an ordinary run takes, and both ends of an online code take in lockstep."""

import hashlib
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from harness.backends.base import Backend, load_local_state, local_state, reset
from harness.backends.ddp import DDPBackend
from harness.config.run import RunConfig
from harness.data.batches import MicroBatch, StepBatch, parts_of_rank
from harness.data.schedule import Moment
from harness.errors import OtherRankFailed, RunFailure, UsageError
from harness.machine.hardware import load_random_state, muon_precision, random_state
from harness.machine.ranks import Ranks
from harness.model.start import Start
from harness.model.transformer import Transformer, make_model, token_nats
from harness.optim.optimizer import Optimizer, mark_parameters, parameter_groups
from harness.rules.config import make_rule


@dataclass(frozen=True, slots=True)
class StepLosses:
    """The losses that a step learnt from, before its update."""

    micro_batches: list[tuple[np.ndarray, float]]
    """For each micro-batch of this rank the nats of its tokens, float32 (n, length), and their sum."""
    nats_sum: float
    """Sum over all ranks."""
    asked: list[float]
    """Sums over all ranks of the numbers that were given with the step."""


class Learner:
    """Weights and optimizer of a run on one rank; everything follows from the configuration and the batches."""

    def __init__(
        self, config: RunConfig, vocab_size: int, ranks: Ranks, dtype: torch.dtype, start: Start | None = None
    ):
        """`start` has the weights before the first step, in place of random ones."""
        self._start = start
        self.config, self.vocab_size, self.ranks, self.dtype = config, vocab_size, ranks, dtype
        self.micro_batch = config.train.micro_batch(ranks.world_size)
        self.backend = self._make_backend()
        model = self._initial_model()
        self.num_parameters, self.flops_per_token = model.num_parameters, model.flops_per_token()
        self.groups = [
            group | {"params": [torch.empty_like(p, device="meta") for p in group["params"]]}
            for group in parameter_groups(model, config.optimizer)
        ]
        """The optimizer's parameter groups of the whole model, without its numbers."""
        # The rule starts with the text, whose length it may need.
        self.optimizer = Optimizer(model, config.optimizer, None, self.backend.make_parts)
        self.backend.prepare(model, self.optimizer)

    def new_model(self) -> Transformer:
        """The model before the first step, the same each time."""
        torch.manual_seed(self.config.seed)
        model = self._made()
        if self._start:
            self._start.install(model)
        return self._prepared(model.to(self.ranks.device))

    def _initial_model(self) -> Transformer:
        """`new_model` on every rank; where ranks share it out, the first one makes it and the others get it."""
        if not (self.backend.is_sharded and self.ranks.world_size > 1):
            return self.new_model()
        if self.ranks.is_first:
            model = self.new_model()
        else:
            with torch.device("meta"):
                shapes = self._made()
            model = self._prepared(shapes.to_empty(device=self.ranks.device))
        for tensor in (*model.parameters(), *model.buffers()):
            self.ranks.broadcast_tensor(tensor.detach())
        torch.manual_seed(self.config.seed)
        return model

    def _made(self) -> Transformer:
        return make_model(self.config.model, self.vocab_size, self.config.seed)

    def _prepared(self, model: Transformer) -> Transformer:
        model.checkpoint_activations = self.config.train.activation_checkpointing
        if self.config.train.compile:
            if self.ranks.device.type == "cpu" and "ATEN_CPU_CAPABILITY" in os.environ:
                # Compiled code takes the best instructions all the same; beside kernels without them losses were NaN.
                limit = os.environ["ATEN_CPU_CAPABILITY"]
                raise UsageError(f"train.compile=true: not with ATEN_CPU_CAPABILITY={limit}; unset one of them")
            for block in model.blocks:
                block.compile()
        mark_parameters(model, self.config.rule)
        return model

    def start_rule(self, num_tokens: int) -> None:
        """Use the configured rule from the next step on, for a text of `num_tokens` to train on."""
        self.optimizer.set_rule(make_rule(self.config.rule, self.config.optimizer.betas, num_tokens, self.config.seed))

    def set_schedule(self, moment: Moment) -> None:
        """Learning rates and strength of the rule of a step."""
        self.optimizer.set_learning_rate(moment)
        if self.optimizer.rule:
            self.optimizer.rule.strength = self.config.rule.strength(moment.done)

    def train(self, batch: StepBatch, where: str, asked: Sequence[float] = ()) -> StepLosses:
        """One optimizer step; `asked` are numbers of this rank that come back as sums over all of them.

        Raises RunFailure on every rank, naming `where`, when a loss of any is not finite; the weights are then as they
        were.
        """
        losses, num_learnt = [], batch.num_tokens - batch.num_untrained
        for index, micro_batch in enumerate(batch.micro_batches, start=1):
            losses.append(self._backward(micro_batch, num_learnt, last=index == len(batch.micro_batches)))
        result = self._agree(losses, where, asked)
        if num_learnt:
            self.backend.step()
        return result

    def dry_step(self, step_tokens: int | None = None) -> str:
        """One step on made-up tokens, to find what cannot work before anything is written; `reset` undoes it.

        `step_tokens` is as for `probe`.

        Returns a digest of its losses and of the weights after it: what this machine makes of the configuration.

        It also makes DDP arrange its gradients once and for all, so that a run that goes on sums them in the same order
        as one that was never stopped. The rule acts in it at full strength, whatever its schedule.
        """
        probe = self.probe(step_tokens)
        self.start_rule(probe.num_tokens)
        # Weights that start at zero hide all kernels but the last from a first step.
        for _ in range(3 if self.config.train.compile else 1):
            losses = self.train(probe, "dry step")
        self.optimizer.set_rule(None)
        digest = hashlib.blake2b(self.weights_digest(), digest_size=8)
        for nats, _ in losses.micro_batches:
            digest.update(np.ascontiguousarray(nats).data)
        return digest.hexdigest()

    def probe(self, step_tokens: int | None = None) -> StepBatch:
        """This rank's part of a step of `step_tokens` made-up tokens, by default of a full one.

        A step of less than a sequence is as long as one that reads the middle of it.
        """
        context = self.config.model.context
        step_tokens = step_tokens or self.config.train.batch_sequences * context
        rows, length = max(1, step_tokens // context), min(context, (context + step_tokens) // 2)
        length += self.config.model.overlap
        tokens = made_up_tokens(rows, length, self.vocab_size)
        parts = parts_of_rank(tokens, self.config.train.batch_sequences // self.micro_batch, self.ranks)
        return StepBatch(0, tokens.size, [self._with_inputs(_unmasked(part)) for part in parts])

    def _with_inputs(self, micro_batch: MicroBatch) -> MicroBatch:
        """A made-up micro-batch with made-up inputs, where the model reads any."""
        if not self.config.model.is_classifier:
            return micro_batch
        from harness.model.classifiers import made_up_inputs

        inputs = made_up_inputs(len(micro_batch.tokens), self.config.model.input_shape)
        return replace(micro_batch, inputs=inputs.numpy())

    def reset(self) -> None:
        """Back to before the first step."""
        weights = {name: p.detach() for name, p in self._initial_model().named_parameters()}
        reset(self.backend, self.optimizer, weights)

    def ended(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The weights that a run ends with and, where they are the means of a variational code, their deviations.

        All ranks gather; the first keeps what it gets, and the others nothing.
        """
        if self.config.rule.kind != "variational":
            return {name: tensor.cpu() for name, tensor in self.backend.weights() if self.ranks.is_first}, {}
        from harness.rules.variational import posterior_of

        states = [dict(part.state) for part in self.optimizer.parts]
        model = getattr(self.backend.module, "module", self.backend.module)
        posterior = [*posterior_of(model, states)] if self.ranks.is_first else []
        return {name: mean for name, mean, _ in posterior}, {name: s for name, _, s in posterior}

    def weights_digest(self) -> bytes:
        """BLAKE2b of all float32 weights, 8 bytes, the same on every rank."""
        digest = hashlib.blake2b(digest_size=8)
        for _, tensor in self.backend.weights():
            digest.update(tensor.float().cpu().contiguous().numpy().data)
        return digest.digest()

    def state(self) -> dict:
        """What a checkpoint of this rank holds; what all ranks have in common only the first one keeps."""
        own = {"random": random_state(self.ranks.device)}
        if self.backend.is_sharded or self.ranks.is_first:
            own["backend"] = local_state(self.backend, self.optimizer)
        return own

    def load(self, own: dict, first: dict) -> None:
        """Go on from the saved states of this rank and of the first."""
        load_local_state(self.backend, self.optimizer, (own if "backend" in own else first)["backend"])
        load_random_state(own["random"])

    def on_device(self, micro_batch: MicroBatch) -> tuple[Tensor, Tensor]:
        """Tokens and mask as tensors; on its way to a GPU nothing waits for them."""
        tensors = torch.from_numpy(micro_batch.tokens), torch.from_numpy(micro_batch.mask)
        if self.ranks.device.type == "cpu":
            return tensors
        tokens, mask = (tensor.pin_memory().to(self.ranks.device, non_blocking=True) for tensor in tensors)
        return tokens, mask

    def inputs_on_device(self, micro_batch: MicroBatch) -> Tensor | None:
        """What labels are given, as a tensor; None in a text."""
        return None if micro_batch.inputs is None else torch.from_numpy(micro_batch.inputs).to(self.ranks.device)

    def _make_backend(self) -> Backend:
        config, muon_dtype = self.config, muon_precision(self.dtype, self.ranks.device)
        if config.backend.name == "deepspeed":
            # Only such runs need the module, and those who receive what they have sent.
            from harness.backends.deepspeed import DeepSpeedBackend

            clip_norm = config.optimizer.clip_norm
            return DeepSpeedBackend(self.ranks, config.backend, clip_norm, self.micro_batch, muon_dtype)
        return DDPBackend(self.ranks, muon_dtype)

    def _agree(self, losses: list[tuple[Tensor, Tensor]], where: str, asked: Sequence[float]) -> StepLosses:
        """What all ranks know of a step before they take it, in one reduction and one wait for the device."""
        sums = torch.stack([nats_sum for _, nats_sum in losses])
        numbers = torch.tensor(asked, dtype=torch.float64).to(sums.device, non_blocking=True)
        status = torch.cat([sums.sum()[None], sums.isfinite().logical_not().sum()[None], numbers])
        self.ranks.sum_tensor(status)
        # Copies from a GPU go to pinned memory and are there once the last one of them is waited for.
        nats = [tensor.to("cpu", non_blocking=True) for tensor, _ in losses]
        sums = sums.to("cpu", non_blocking=True)
        nats_sum, num_broken, *agreed = status.tolist()
        own_sums = sums.tolist()
        if num_broken:
            broken = [each for each in own_sums if not math.isfinite(each)]
            if not broken:
                raise OtherRankFailed(f"{where}: the loss of another rank is not finite")
            raise RunFailure(
                f"{where}, rank {self.ranks.rank}: the loss is {broken[0]}; lower optimizer.learning_rate or "
                "optimizer.muon_learning_rate"
            )
        return StepLosses([(own.numpy(), total) for own, total in zip(nats, own_sums, strict=True)], nats_sum, agreed)

    def _backward(self, micro_batch: MicroBatch, num_learnt: int, last: bool) -> tuple[Tensor, Tensor]:
        """Nats of each token and their sum; the gradient of what is learnt from, over `num_learnt`, is accumulated.

        Without a token to learn from, none is.
        """
        tokens, mask = self.on_device(micro_batch)
        inputs = self.inputs_on_device(micro_batch)
        seen: list[Tensor] = []

        def compute_loss(module: nn.Module) -> Tensor:
            nats = token_nats(module, tokens, self.dtype, inputs)
            nats_sum = nats.masked_fill(~mask, 0.0).sum(dtype=torch.float64)
            seen.extend((nats.detach(), nats_sum.detach()))
            if micro_batch.untrained is not None:
                learnt = mask & torch.from_numpy(~micro_batch.untrained).to(mask.device)[:, None]
                nats_sum = nats.masked_fill(~learnt, 0.0).sum(dtype=torch.float64)
            if micro_batch.weights is not None:
                weights = torch.from_numpy(micro_batch.weights).to(mask.device)
                nats_sum = (nats.masked_fill(~mask, 0.0).sum(dim=1, dtype=torch.float64) * weights).sum()
            # Backends average gradients over ranks: the factor makes that the mean over the step's tokens.
            return nats_sum * (self.ranks.world_size / max(1, num_learnt))

        if num_learnt:
            self.backend.backward(compute_loss, last)
        else:
            with torch.no_grad():
                compute_loss(self.backend.module)
        return seen[0], seen[1]


def _unmasked(tokens: np.ndarray) -> MicroBatch:
    """A micro-batch of all of `tokens` (n, length), or of a row of padding where there is none."""
    rows, length = max(1, len(tokens)), tokens.shape[1]
    padded = np.pad(tokens, ((0, rows - len(tokens)), (0, 0)))
    return MicroBatch(np.zeros(rows, dtype=np.int64), padded, np.full((rows, length), len(tokens) > 0))


def made_up_tokens(rows: int, length: int, vocab_size: int) -> np.ndarray:
    """Token ids (rows, length), int64, that are the same everywhere; fewer rows are the first of more."""
    row, place = np.indices((rows, length))
    return (row * 17 + place * 31 + place * place // 7) % vocab_size
