"""Training: `codelength train CONFIG [key=value ...]` or `torchrun --nproc-per-node 2 -m harness.train CONFIG ...`."""

import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from harness.backends.ddp import DDPBackend
from harness.batches import Batches, MicroBatch
from harness.checkpoint import RunState, save_checkpoint
from harness.config import RunConfig, config_sha256, load_config
from harness.data import Data
from harness.distributed import Ranks, joined_ranks
from harness.errors import CodelengthError, RunFailure, UsageError
from harness.hardware import compute_deterministically, peak_flops, resolve_precision
from harness.ledger import LedgerWriter
from harness.meter import Meter
from harness.model import Transformer
from harness.monitor import make_monitor
from harness.optimizer import Optimizer
from harness.rundir import (
    GRID_KEY,
    WEIGHTS_FILE,
    is_done,
    latest_state,
    mark_done,
    on_first_rank,
    open_run_directory,
    prepared_on_first_rank,
)
from harness.schedule import Phase, ramp_factor
from harness.sparsity.prune import tamade
from harness.sparsity.rules import make_rule

LOGS_PER_HISTOGRAM = 20


def token_nats(module: nn.Module, tokens: Tensor, dtype: torch.dtype) -> Tensor:
    """Code length in nats (float32) of each of `tokens` (n, length) given those before it in its row."""
    with torch.autocast(tokens.device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        logits = module(tokens)
    return F.cross_entropy(logits.float().flatten(0, 1), tokens.flatten(), reduction="none").view_as(tokens)


class StopRequest:
    """Set by SIGINT or SIGTERM; the loop looks at it between steps, nothing is saved inside a handler."""

    def __init__(self):
        self.requested = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._set)

    def _set(self, number: int, frame: object) -> None:
        self.requested = True


class Trainer:
    """One run on one rank: phases main -> prune -> finetune over a fixed order of sequences."""

    def __init__(self, config: RunConfig, data: Data, ranks: Ranks, dtype: torch.dtype):
        self.config, self.data, self.ranks, self.dtype = config, data, ranks, dtype
        micro_batch = config.train.micro_batch(ranks.world_size)
        context, batch_sequences = config.model.context, config.train.batch_sequences
        self.batches = Batches(data.train, context, batch_sequences, micro_batch, config.seed, ranks)
        self.phases = self._plan_phases()
        self.num_steps = self.phases[-1].end_step
        torch.manual_seed(config.seed)
        self.model = Transformer(config.model, data.tokenizer.vocab_size).to(ranks.device)
        self.optimizer = Optimizer(self.model, config.optimizer, make_rule(config.rule))
        self.backend = DDPBackend(ranks)
        self.backend.prepare(self.model, self.optimizer)
        self.state = RunState(
            step=0,
            pruned=config.prune.kind == "none",
            first_nats_sum=0.0,
            first_raw_bytes=0,
            ledger_parts=[0] * ranks.world_size,
            world_size=ranks.world_size,
            fingerprint=data.train.fingerprint,
            config_sha256=config_sha256(config),
        )

    def run(self) -> None:
        """Train from the newest checkpoint, or from the start, to the end."""
        stop, config = StopRequest(), self.config.train
        self._resume()
        self.peak_flops = peak_flops(self.dtype, self.ranks.device) * self.ranks.world_size
        run_dir, rank = self.config.run_dir, self.ranks.rank
        self.ledger = LedgerWriter(run_dir, rank, self.state.ledger_parts[rank])
        with make_monitor(run_dir, self.num_steps, rank, self.state.step + 1) as self.monitor:
            self._describe()
            meter, saved_at, num_logs = Meter(), time.monotonic(), 0
            for step in range(self.state.step, self.num_steps):
                phase = next(p for p in self.phases if step < p.end_step)

                # once: between main and fine-tuning
                if phase.name == "finetune" and not self.state.pruned:
                    self._prune()
                    meter = Meter()

                # one optimizer step
                is_finetune = phase.name == "finetune"
                self.optimizer.set_learning_rate(step - phase.first_step, phase.num_steps, is_finetune)
                if self.optimizer.rule:
                    self.optimizer.rule.strength = ramp_factor(step, phase.num_steps * self.config.rule.ramp)
                self._train_step(step, meter)
                self.state.step = step + 1

                # once in a while: metrics, and what all ranks must agree on
                if (step + 1) % config.log_every_steps == 0 or step + 1 == phase.end_step:
                    self._log(phase, meter, with_tensors=num_logs % LOGS_PER_HISTOGRAM == 0)
                    meter, num_logs = Meter(), num_logs + 1
                    save_is_due = self.ranks.is_first and time.monotonic() - saved_at > 60 * config.checkpoint_minutes
                    must_stop = self.ranks.any(stop.requested) and step + 1 < self.num_steps
                    if self.ranks.any(save_is_due) or must_stop:
                        path, saved_at = self._save(), time.monotonic()
                    if must_stop:
                        raise RunFailure(f"stopped after step {step + 1}, saved in {path}; the same command goes on")
            if not self.state.pruned:
                self._prune()
            self._finish()

    def _plan_phases(self) -> list[Phase]:
        train, order = self.config.train, self.batches.order
        main = Phase("main", 0, order.steps(train.epochs))
        finetune_steps = order.steps(train.finetune_epochs) if self.config.prune.kind != "none" else 0
        finetune = Phase("finetune", main.end_step, finetune_steps)
        return [main, finetune] if finetune_steps else [main]

    def _train_step(self, step: int, meter: Meter) -> None:
        batch = self.batches.of_step(step)
        for index, micro_batch in enumerate(batch.micro_batches):
            tokens, mask = self._on_device(micro_batch)
            seen: list[Tensor] = []

            def compute_loss(module: nn.Module, tokens=tokens, mask=mask, seen=seen) -> Tensor:
                nats = token_nats(module, tokens, self.dtype)
                nats_sum = nats.masked_fill(~mask, 0.0).sum(dtype=torch.float64)
                seen.extend((nats.detach(), nats_sum.detach()))
                # DDP averages gradients over ranks: the factor makes that the mean over the step's tokens.
                return nats_sum * (self.ranks.world_size / batch.num_tokens)

            self.backend.backward(compute_loss, last=index == len(batch.micro_batches) - 1)
            nats, loss_nats_sum = seen[0].cpu().numpy(), float(seen[1])
            if not np.isfinite(loss_nats_sum):
                raise RunFailure(
                    f"step {step}, rank {self.ranks.rank}: the loss is {loss_nats_sum}; lower optimizer.learning_rate "
                    "or optimizer.muon_learning_rate (earlier checkpoints are untouched)"
                )
            raw_bytes = (self.data.tokenizer.token_bytes[micro_batch.tokens] * micro_batch.mask).sum(axis=1)
            self.ledger.append(step, batch.epoch, micro_batch.sequences, nats, micro_batch.mask, raw_bytes)
            meter.add(loss_nats_sum, int(micro_batch.mask.sum()), int(raw_bytes.sum()), batch.epoch == 0)
        self.backend.step()
        meter.steps += 1

    def _log(self, phase: Phase, meter: Meter, with_tensors: bool) -> None:
        metrics = meter.reduce(self.ranks, self.state, self.model.flops_per_token(), self.peak_flops)
        step = self.state.step
        metrics["nonzeros"] = sum(int(p.count_nonzero()) for p in self.model.parameters())
        self.monitor.log_step(step, phase.name, metrics)
        if with_tensors or step == phase.end_step:
            self.monitor.log_tensors(step, self.model.named_parameters())
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

        def mean_loss() -> float:
            nats_sum = tokens = 0.0
            for micro_batch in sample:
                ids, mask = self._on_device(micro_batch)
                nats_sum += float(
                    token_nats(self.model, ids, self.dtype).masked_fill(~mask, 0.0).sum(dtype=torch.float64)
                )
                tokens += int(micro_batch.mask.sum())
            nats_sum, tokens = self.ranks.sum(nats_sum, tokens)
            return nats_sum / tokens

        self.optimizer.zero_untrained()
        report = tamade(self.model, mean_loss, self.config.prune.tolerance, self.config.prune.resolution)
        self.optimizer.set_rule(None)
        self.optimizer.freeze_zeros()
        if self.config.prune.grid:
            self.optimizer.round_to_grid(self.config.prune.grid)
        self.state.pruned = True
        self.monitor.message(
            f"prune: |weight| >= {report.threshold:.3g} keeps {report.nonzeros:,} of {self.model.num_parameters:,} "
            f"weights ({report.nonzeros / self.model.num_parameters:.1%}); loss {report.loss_before:.4f} -> "
            f"{report.loss_after:.4f} nats/token on {self.config.prune.sample_sequences} training sequences"
        )

    def _resume(self) -> None:
        found = latest_state(self.config.run_dir, self.state)
        if found:
            self.state, checkpoint = found
            self.backend.load(checkpoint)
            if self.state.pruned:
                self.optimizer.set_rule(None)

    def _save(self) -> Path:
        parts = [0.0] * self.ranks.world_size
        parts[self.ranks.rank] = self.ledger.flush()
        self.state.ledger_parts = [int(count) for count in self.ranks.sum(*parts)]
        return save_checkpoint(
            self.config.run_dir, self.state, self.backend, self.ranks, self.config.train.keep_checkpoints
        )

    def _finish(self) -> None:
        self.ledger.flush()
        self.ranks.barrier()
        on_first_rank(self.ranks, self._write_weights)
        self.monitor.message(f"weights, ledger and metrics are in {self.config.run_dir}")

    def _write_weights(self) -> None:
        path = self.config.run_dir / WEIGHTS_FILE
        temporary = path.with_suffix(".tmp")
        named = dict(self.model.named_parameters())
        steps = {name: self.optimizer.grid_step(p) for name, p in named.items()}
        metadata = {GRID_KEY: json.dumps({name: step for name, step in steps.items() if step})}
        save_file({name: p.detach().float().cpu().contiguous() for name, p in named.items()}, temporary, metadata)
        temporary.replace(path)
        mark_done(self.config.run_dir)

    def _describe(self) -> None:
        """Derived numbers, before the first step."""
        config, shard, model = self.config, self.data.train, self.model
        tokens_per_step = config.train.batch_sequences * config.model.context
        micro = self.batches.micro_batch
        matrices = sum(p.numel() for p in model.parameters() if p.dim() >= 2)
        lines = (
            f"corpus      {config.corpus.kind}: {shard.raw_bytes:,} bytes = {shard.num_tokens:,} tokens "
            f"({config.tokenizer.kind}); held out {self.data.heldout.raw_bytes:,} bytes",
            f"model       {config.model.architecture}: {model.num_parameters:,} parameters, {matrices:,} in matrices",
            f"steps       {', '.join(f'{p.name} {p.num_steps:,}' for p in self.phases)} of {tokens_per_step:,} tokens "
            f"= {self.ranks.world_size} rank(s) x {config.train.batch_sequences // micro // self.ranks.world_size} "
            f"micro-batch(es) x {micro} sequences x {config.model.context}",
            f"arithmetic  {str(self.dtype).removeprefix('torch.')} products, float32 loss, {self.ranks.device.type}",
            f"sizes       ledger about {5 * shard.num_tokens / 1e6:,.1f} MB, checkpoint about "
            f"{12 * model.num_parameters / 1e6:,.1f} MB",
        )
        if self.state.step:
            lines += (f"resume      from step {self.state.step:,}",)
        self.monitor.message("\n".join(lines))

    def _on_device(self, micro_batch: MicroBatch) -> tuple[Tensor, Tensor]:
        device = self.ranks.device
        return torch.from_numpy(micro_batch.tokens).to(device), torch.from_numpy(micro_batch.mask).to(device)


def train_run(config: RunConfig) -> None:
    """Prepare the data where needed, and train the run to its end on all ranks of this job.

    Raises UsageError for wrong input and RunFailure where the work fails or is stopped.
    """
    compute_deterministically()
    with joined_ranks(config.backend.timeout_seconds) as ranks:
        dtype = resolve_precision(config.train.precision, ranks.device)
        data = prepared_on_first_rank(config, ranks)
        open_run_directory(config, ranks, dtype)
        if is_done(config.run_dir):
            if ranks.is_first:
                print(f"{config.run_dir}: training is complete; nothing to do")
            return
        Trainer(config, data, ranks, dtype).run()


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of one rank: CONFIG and `key=value` overrides; returns the exit status."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        if not arguments:
            raise UsageError("usage: torchrun --nproc-per-node N -m harness.train CONFIG [key=value ...]")
        train_run(load_config(arguments[0], arguments[1:]))
    except CodelengthError as error:
        # What is wrong with the input is wrong on every rank: one of them says so.
        if os.environ.get("RANK", "0") == "0" or not isinstance(error, UsageError):
            print(error, file=sys.stderr)
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
