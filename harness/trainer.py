"""The training loop of one rank."""

import pickle
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from harness.backends.base import Backend, load_local_state, local_state, reset
from harness.backends.ddp import DDPBackend
from harness.backends.deepspeed import DeepSpeedBackend
from harness.batches import Batches, MicroBatch
from harness.checkpoint import (
    RunState,
    committed_checkpoints,
    newest_checkpoint,
    read_rank_state,
    read_state,
    save_checkpoint,
)
from harness.config import RunConfig, training_sha256
from harness.data import Data
from harness.distributed import Ranks
from harness.errors import RunFailure, Stopped, UsageError
from harness.hardware import (
    identity,
    load_random_state,
    peak_flops,
    peak_memory_bytes,
    random_state,
)
from harness.ledger import LedgerWriter
from harness.meter import Meter
from harness.model import Transformer, token_nats
from harness.monitor import make_monitor
from harness.optimizer import Optimizer
from harness.rundir import mark_done, on_first_rank, write_weights
from harness.schedule import Phase, plan_phases, ramp_factor
from harness.sparsity.phase import prune
from harness.sparsity.rules import make_rule
from harness.stop import StopRequest
from harness.summary import derived_numbers

LOGS_PER_HISTOGRAM = 20


def make_backend(config: RunConfig, ranks: Ranks, micro_batch: int) -> Backend:
    """The backend that the configuration names."""
    if config.backend.name == "deepspeed":
        return DeepSpeedBackend(ranks, config.backend, config.optimizer.clip_norm, micro_batch)
    return DDPBackend(ranks)


class Trainer:
    """One run on one rank: phases main -> prune -> finetune over a fixed order of sequences."""

    def __init__(self, config: RunConfig, data: Data, ranks: Ranks, dtype: torch.dtype):
        self.config, self.data, self.ranks, self.dtype = config, data, ranks, dtype
        micro_batch = config.train.micro_batch(ranks.world_size)
        context, batch_sequences = config.model.context, config.train.batch_sequences
        self.batches = Batches(data.train, context, batch_sequences, micro_batch, config.seed, ranks)
        self.phases = plan_phases(config.train, self.batches.order.steps, has_finetuning=config.prune.kind != "none")
        self.num_steps = self.phases[-1].end_step
        self.model = self._new_model()
        self.num_parameters, self.flops_per_token = self.model.num_parameters, self.model.flops_per_token()
        self.backend = make_backend(config, ranks, micro_batch)
        # The rule waits until the dry step is over.
        self.optimizer = Optimizer(self.model, config.optimizer, None, self.backend.make_parts)
        self.backend.prepare(self.model, self.optimizer)
        self.state = RunState(
            step=0,
            pruned=config.prune.kind == "none",
            first_nats_sum=0.0,
            first_raw_bytes=0,
            ledger_parts=[0] * ranks.world_size,
            identity={
                "config": training_sha256(config)[:16],
                "data": data.train.fingerprint,
                "world_size": str(ranks.world_size),
                **ranks.agreed(identity(ranks.device, dtype, self.backend.packages)),
            },
        )
        self.meter = Meter()

    def describe(self) -> None:
        """Print the derived numbers, then find out with one dry step whether they fit."""
        if self.ranks.is_first:
            config, shard = self.config, self.data
            micro = self.batches.micro_batch
            lines = derived_numbers(config, shard, self.phases, self.num_parameters, self.ranks, micro, self.dtype)
            print("\n".join(lines), flush=True)
        seconds = self._dry_step()
        if self.ranks.is_first:
            print(f"dry step    {seconds:.2f} s, peak memory of rank 0 {peak_memory_bytes() / 1e6:,.0f} MB", flush=True)

    def run(self) -> None:
        """Train from the newest checkpoint, or from the start, to the end."""
        config, ranks, run_dir = self.config.train, self.ranks, self.config.run_dir
        stop = StopRequest(run_dir)
        self._resume()
        self.peak_flops = peak_flops(self.dtype, ranks.device) * ranks.world_size
        self.ledger = LedgerWriter(run_dir, ranks.rank, self.state.ledger_parts[ranks.rank])
        with make_monitor(run_dir, self.num_steps, ranks.rank, self.state.step + 1) as self.monitor:
            saved_at = time.monotonic()
            for step in range(self.state.step, self.num_steps):
                phase = next(p for p in self.phases if step < p.end_step)

                # once: between main and fine-tuning
                if phase.name == "finetune" and not self.state.pruned:
                    self._prune()
                    self.meter = Meter()

                # one optimizer step
                is_finetune = phase.name == "finetune"
                self.optimizer.set_learning_rate(step - phase.first_step, phase.num_steps, is_finetune)
                if self.optimizer.rule:
                    self.optimizer.rule.strength = ramp_factor(step, phase.num_steps * self.config.rule.ramp)
                self._train_step(step)
                self.state.step = step + 1

                # once in a while: metrics
                if self.state.step % config.log_every_steps == 0 or self.state.step == phase.end_step:
                    self._log(phase, with_tensors=step // config.log_every_steps % LOGS_PER_HISTOGRAM == 0)
                    self.meter = Meter()

                # once in a while: a checkpoint, when all ranks agree
                save_is_due = ranks.is_first and time.monotonic() - saved_at > 60 * config.checkpoint_minutes
                agreed = ranks.sum(save_is_due, stop.by_signal, ranks.is_first and stop.by_file)
                must_save, by_signal, by_file = (count > 0 for count in agreed)
                must_stop = (by_signal or by_file) and self.state.step < self.num_steps
                if must_save or must_stop:
                    path, saved_at = self._save(), time.monotonic()
                if must_stop:
                    text = f"stopped after step {self.state.step}, saved in {path}; the same command goes on"
                    if by_signal:
                        raise Stopped(text)
                    on_first_rank(ranks, stop.fulfil)
                    self.monitor.message(text)
                    return
            if not self.state.pruned:
                self._prune()
            self._finish(stop)

    def _new_model(self) -> Transformer:
        """The model before the first step, the same each time."""
        torch.manual_seed(self.config.seed)
        model = Transformer(self.config.model, self.data.tokenizer.vocab_size).to(self.ranks.device)
        model.checkpoint_activations = self.config.train.activation_checkpointing
        return model

    def _backward(self, micro_batch: MicroBatch, num_tokens: int, last: bool) -> tuple[np.ndarray, float]:
        """Nats of each token, float32, and their sum; the gradient of the sum over `num_tokens` is accumulated."""
        tokens, mask = self._on_device(micro_batch)
        seen: list[Tensor] = []

        def compute_loss(module: nn.Module) -> Tensor:
            nats = token_nats(module, tokens, self.dtype)
            nats_sum = nats.masked_fill(~mask, 0.0).sum(dtype=torch.float64)
            seen.extend((nats.detach(), nats_sum.detach()))
            # Backends average gradients over ranks: the factor makes that the mean over the step's tokens.
            return nats_sum * (self.ranks.world_size / num_tokens)

        self.backend.backward(compute_loss, last)
        return seen[0].cpu().numpy(), float(seen[1])

    def _train_step(self, step: int) -> None:
        batch = self.batches.of_step(step)
        for index, micro_batch in enumerate(batch.micro_batches):
            last = index == len(batch.micro_batches) - 1
            nats, loss_nats_sum = self._backward(micro_batch, batch.num_tokens, last)
            if not np.isfinite(loss_nats_sum):
                raise RunFailure(f"step {step}, rank {self.ranks.rank}: the loss is {loss_nats_sum}; {self._remedy()}")
            raw_bytes = (self.data.tokenizer.token_bytes[micro_batch.tokens] * micro_batch.mask).sum(axis=1)
            self.ledger.append(step, batch.epoch, micro_batch.sequences, nats, micro_batch.mask, raw_bytes)
            self.meter.add(loss_nats_sum, int(micro_batch.mask.sum()), int(raw_bytes.sum()), batch.epoch == 0)
        self.backend.step()
        self.meter.steps += 1

    def _remedy(self) -> str:
        saved = committed_checkpoints(self.config.run_dir)
        kept = f"the last good checkpoint is {saved[-1]}" if saved else "no checkpoint had been saved"
        return f"lower optimizer.learning_rate or optimizer.muon_learning_rate ({kept})"

    def _dry_step(self) -> float:
        """One step that leaves no trace, to find what cannot work before anything is written; returns its seconds.

        It also makes DDP arrange its gradients once and for all, so that a run that goes on sums them in the same order
        as one that was never stopped.
        """
        started = time.perf_counter()
        batch = self.batches.of_step(0)
        _, loss_nats_sum = self._backward(batch.micro_batches[0], batch.num_tokens, last=True)
        self.backend.step()
        if not np.isfinite(loss_nats_sum):
            raise RunFailure(f"dry step, rank {self.ranks.rank}: the loss is {loss_nats_sum} before any training")
        reset(self.backend, self.optimizer, {name: p.detach() for name, p in self._new_model().named_parameters()})
        return time.perf_counter() - started

    def _log(self, phase: Phase, with_tensors: bool) -> None:
        metrics = self.meter.reduce(self.ranks, self.state, self.flops_per_token, self.peak_flops)
        step = self.state.step
        metrics["nonzeros"] = self.backend.count_nonzeros()
        self.monitor.log_step(step, phase.name, metrics)
        if with_tensors or step == phase.end_step:
            self.monitor.log_tensors(step, self.backend.weights())
        self.monitor.progress(
            step,
            phase.name,
            bits_per_byte=metrics["loss_bits_per_byte"],
            online_bits=metrics["online_bits"],
            raw_bytes=metrics["online_raw_bytes"],
            tokens_per_second=metrics["tokens_per_second"],
            mfu=metrics["mfu"],
            seconds_left=metrics["seconds_per_step"] * (self.num_steps - step),
        )

    def _prune(self) -> None:
        sample = self.batches.sample(self.config.prune.sample_sequences)

        def mean_loss(model: nn.Module) -> float:
            nats_sum = tokens = 0.0
            for micro_batch in sample:
                ids, mask = self._on_device(micro_batch)
                nats_sum += float(token_nats(model, ids, self.dtype).masked_fill(~mask, 0.0).sum(dtype=torch.float64))
                tokens += int(micro_batch.mask.sum())
            nats_sum, tokens = self.ranks.sum(nats_sum, tokens)
            return nats_sum / tokens

        report, self.state.grid_steps = prune(
            self.backend, self.optimizer, self._new_model(), mean_loss, self.config.prune
        )
        self.state.pruned = True
        self.monitor.message(
            f"prune: |weight| >= {report.threshold:.3g} keeps {report.nonzeros:,} of {self.num_parameters:,} "
            f"weights ({report.nonzeros / self.num_parameters:.1%}); loss {report.loss_before:.4f} -> "
            f"{report.loss_after:.4f} nats/token on {self.config.prune.sample_sequences} training sequences"
        )

    def _resume(self) -> None:
        checkpoint, messages = newest_checkpoint(self.config.run_dir, self.ranks)
        if checkpoint:
            self._load(checkpoint)
            messages.append(f"resume      from step {self.state.step:,} ({checkpoint})")
        elif messages:
            messages.append("resume      no undamaged checkpoint is left: from step 0")
        self.optimizer.set_rule(None if self.state.pruned else make_rule(self.config.rule))
        if self.ranks.is_first and messages:
            print("\n".join(messages), flush=True)

    def _load(self, checkpoint: Path) -> None:
        self.state = read_state(checkpoint, self.state.identity)
        try:
            own = read_rank_state(checkpoint, self.ranks.rank)
            holder = own if "backend" in own else read_rank_state(checkpoint, 0)
            load_local_state(self.backend, self.optimizer, holder["backend"])
            load_random_state(own["random"])
            self.meter = Meter(**own["meter"])
        except (OSError, KeyError, TypeError, ValueError, RuntimeError, pickle.UnpicklingError):
            # Its digests are right: somebody else has written it.
            raise UsageError(
                f"{checkpoint}: not a checkpoint of this run; remove it to go on from the one before"
            ) from None

    def _save(self) -> Path:
        self.state.ledger_parts = self.ranks.gather(self.ledger.flush())
        own = {"random": random_state(), "meter": self.meter.state()}
        if self.backend.shares_out or self.ranks.is_first:
            own["backend"] = local_state(self.backend, self.optimizer)
        keep = self.config.train.keep_checkpoints
        return save_checkpoint(self.config.run_dir, self.state, own, self.ranks, keep)

    def _finish(self, stop: StopRequest) -> None:
        self.ledger.flush()
        self.ranks.barrier()
        # All ranks gather; the first keeps what it gets.
        weights = {name: tensor.cpu() for name, tensor in self.backend.weights() if self.ranks.is_first}
        on_first_rank(self.ranks, write_weights, self.config.run_dir, weights, self.state.grid_steps)
        on_first_rank(self.ranks, stop.withdraw)
        on_first_rank(self.ranks, mark_done, self.config.run_dir)
        self.monitor.message(f"weights, ledger and metrics are in {self.config.run_dir}")

    def _on_device(self, micro_batch: MicroBatch) -> tuple[Tensor, Tensor]:
        device = self.ranks.device
        return torch.from_numpy(micro_batch.tokens).to(device), torch.from_numpy(micro_batch.mask).to(device)
