"""The training loop of one rank."""

import functools
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch

from harness.config.run import RunConfig, training_sha256
from harness.corpus.prepared import Data
from harness.data.batches import Ahead, StepBatch, make_batches
from harness.data.schedule import Phase, plan_phases
from harness.errors import Paused, RunFailure, Stopped
from harness.machine.hardware import identity, peak_flops, peak_memory_bytes
from harness.machine.ranks import Ranks, on_first_rank
from harness.machine.stop import Asked, StopRequest
from harness.model.start import Start
from harness.online.code_length import CodeLength
from harness.online.ensemble import Ensemble
from harness.online.replay import ReplaySchedule
from harness.optim.stopping import Convergence
from harness.pruning.phase import prune
from harness.pruning.sample import Sample
from harness.run.checkpoint import RunState, committed_checkpoints, newest_checkpoint, read_state, restoring
from harness.run.checkpoint_writer import CheckpointWriter
from harness.run.directory import mark_done, write_members, write_weights
from harness.run.ledger import LedgerWriter, check_ledger, ledger_damage
from harness.run.metrics import MetricSums, flops_per_token
from harness.run.monitor import make_monitor
from harness.run.pace import duration_line
from harness.run.preflight import derived_numbers
from harness.units import bits_from_nats

SECONDS_BETWEEN_HISTOGRAMS = 180.0


class Trainer:
    """One run on one rank: main -> prune -> finetune, the latter two once or in rounds, over a fixed order."""

    def __init__(self, config: RunConfig, data: Data, ranks: Ranks, dtype: torch.dtype, start: Start | None = None):
        self.config, self.data, self.ranks, self.dtype = config, data, ranks, dtype
        self.ensemble = Ensemble(config, data.tokenizer.vocab_size, ranks, dtype, start)
        self.learner = self.ensemble.main
        self.backend, self.optimizer = self.learner.backend, self.learner.optimizer
        length, micro_batch = config.model.context, self.learner.micro_batch
        given = (data.policy, config.model.overlap)
        self.batches = make_batches(data.train, config.train, length, micro_batch, config.seed, ranks, *given)
        self._read = Ahead(self._read_step, is_pure=not self.batches.adaptive)
        self.replays = ReplaySchedule(config.train, self.batches)
        self.code_length = None
        if config.train.retrain_at or not config.online.trains_plainly:
            self.code_length = CodeLength(self.ensemble, data.tokenizer.vocab_size, data.train.num_tokens, ranks, dtype)
        packages: tuple[str, ...] = self.code_length.combiner.packages if self.code_length else ()
        # Laws of losses are fitted by the host.
        packages = (*packages, "numpy") if self.batches.adaptive else packages
        host_computes = bool(packages) or config.backend.offload_optimizer
        self.phases = plan_phases(config.train, self.batches.order, config.prune.prunings)
        self.num_steps = self.phases[-1].end_step
        self.state = RunState(
            ledger_parts=[[] for _ in range(ranks.world_size)],
            identity={
                "config": training_sha256(config)[:16],
                "data": self.batches.data_identity,
                **self.ensemble.identity,
                "world_size": str(ranks.world_size),
                **ranks.agreed(identity(ranks.device, dtype, (*self.backend.packages, *packages), host_computes)),
            },
        )
        self.sums, self.convergence, self._opened = MetricSums(), Convergence(config.stopping), ExitStack()
        self.saver = CheckpointWriter(config.run_dir, ranks, config.train.keep_checkpoints)

    def describe(self) -> None:
        """Print the derived numbers, then find out with one dry step whether they fit."""
        if self.ranks.is_first:
            config, shard = self.config, self.data
            groups, micro = [learner.groups for learner in self.ensemble.learners], self.batches.micro_batch
            lines = derived_numbers(config, shard, self.phases, groups, self.ranks, micro, self.dtype)
            print("\n".join(lines), flush=True)
        started = time.perf_counter()
        arithmetic = self.ensemble.dry_step()
        if self.config.train.compile:
            # Which kernels a compiler makes is in no version number.
            self.state.identity |= self.ranks.agreed({"compiled": arithmetic})
        seconds = time.perf_counter() - started
        if self.ranks.is_first:
            peak = peak_memory_bytes(self.ranks.device)
            print(f"dry step    {seconds:.2f} s, peak memory of rank 0 {peak / 1e6:,.0f} MB", flush=True)
        if not self.code_length:
            updates = self.batches.order.updates(self.num_steps)
            optimizers = [learner.optimizer for learner in self.ensemble.learners]
            line = duration_line(self.ensemble.timed_step, optimizers, self.ranks, updates, seconds)
            if self.ranks.is_first:
                print(line, flush=True)
        self.ensemble.reset()

    def run(self, check: Callable[[], None]) -> None:
        """Train from the newest checkpoint, or from the start, to the end.

        `check` raises RunFailure where the run's directory is no longer this job's; the first rank asks it before all
        that counts is written.
        """
        self._check = check
        config, ranks, run_dir = self.config.train, self.ranks, self.config.run_dir
        stop = StopRequest(run_dir)
        self._resume()
        self.peak_flops = peak_flops(self.dtype, ranks.device) * ranks.world_size
        self.ledger = LedgerWriter(run_dir, ranks.rank, self.state.ledger_parts[ranks.rank])
        self._opened.callback(self.ledger.close)
        with make_monitor(run_dir, self.num_steps, ranks.rank, self.state.step + 1) as self.monitor:
            self.saved_at, self.histograms_at = time.monotonic(), -SECONDS_BETWEEN_HISTOGRAMS
            histograms_are_due = False
            while self.state.step < self.num_steps:
                step = self.state.step
                phase = next(p for p in self.phases if step < p.end_step)

                # once in a while: between main and fine-tuning, or two stretches of it
                if self.state.prunings < phase.prunings:
                    self._prune()
                    self.sums = MetricSums()

                # one optimizer step
                asked, repeated_nats = self._train_step(step, phase, self._ask(stop))
                self.state.step = step + 1
                histograms_are_due |= asked.histograms > 0

                # once in a while: metrics
                if self.state.step % config.log_every_steps == 0 or self.state.step == phase.end_step:
                    self._log(phase, histograms_are_due)
                    self.sums, histograms_are_due = MetricSums(), False

                # once in a while: the end of a phase that has converged
                self._end_if_converged(phase, repeated_nats)

                # once in a while: a checkpoint
                if asked.is_written == ranks.world_size:
                    self.saver.finish()
                must_stop = (asked.stop_by_signal or asked.pause) and self.state.step < self.num_steps
                if asked.save or must_stop:
                    path, self.saved_at = self._save(), time.monotonic()
                if must_stop:
                    self.saver.finish()
                    text = f"stopped after step {self.state.step}, saved in {path}; the same command goes on"
                    if asked.stop_by_signal:
                        raise Stopped(text)
                    on_first_rank(ranks, stop.clear)
                    raise Paused(text)
            if self.state.prunings < self.config.prune.prunings:
                self._prune()
            self._finish(stop)

    def close(self) -> None:
        """Let go of threads and of what the backends hold."""
        self._read.close()
        self.saver.close()
        self._opened.close()
        self.ensemble.close()

    def _ask(self, stop: StopRequest) -> Asked:
        """What this rank wants of all of them, before a step: the step's own reduction tells the others."""
        now, is_first = time.monotonic(), self.ranks.is_first
        return Asked(
            save=is_first and now - self.saved_at > 60 * self.config.train.checkpoint_minutes,
            stop_by_signal=stop.by_signal,
            pause=stop.by_pause_signal or (is_first and stop.by_file),
            histograms=is_first and now - self.histograms_at > SECONDS_BETWEEN_HISTOGRAMS,
            is_written=self.saver.is_written,
        )

    def _read_step(self, step: int) -> tuple[StepBatch, list[np.ndarray]]:
        """What this rank reads at a step, and for each micro-batch the bytes of text of its rows (n,)."""
        batch, token_bytes = self.batches.of_step(step), self.data.tokenizer.token_bytes
        return batch, [(token_bytes[part.tokens] * part.mask).sum(axis=1) for part in batch.micro_batches]

    def _train_step(self, step: int, phase: Phase, asked: Asked) -> tuple[Asked, float | None]:
        """One step; returns what all ranks asked for and, where its tokens were read before, their nats a token."""
        batch, row_bytes = self._read(step)
        moment = self.batches.order.moment(step, phase)
        self.learner.set_schedule(moment)
        is_new = batch.epoch == 0
        coded = self.code_length.code(batch) if self.code_length and is_new else []
        try:
            if is_new:
                losses = self.ensemble.learn(step, moment, batch, self.replays, asked)
            else:
                losses = self.learner.train(batch, f"step {step}", asked)
        except RunFailure as error:
            self.saver.finish()
            saved = committed_checkpoints(self.config.run_dir)
            kept = f"the last good checkpoint is {saved[-1]}" if saved else "no checkpoint had been saved"
            raise type(error)(f"{error} ({kept})") from None
        if losses:
            own, agreed = losses.micro_batches, losses.asked
        else:
            # In a block code nothing is trained on at its first visit.
            own = [(nats.astype(np.float32), float(nats.sum())) for _, nats in coded]
            agreed = self.ranks.sum(*asked)
        for index, (micro_batch, (nats, loss_nats_sum)) in enumerate(zip(batch.micro_batches, own, strict=True)):
            raw_bytes, code_nats = row_bytes[index], coded[index][0] if coded else None
            self.ledger.append(step, batch.epoch, micro_batch, nats, raw_bytes, code_nats)
            code_nats_sum = 0.0 if not is_new else loss_nats_sum if code_nats is None else float(code_nats.sum())
            self.sums.add(loss_nats_sum, int(micro_batch.mask.sum()), int(raw_bytes.sum()), code_nats_sum, is_new)
        self.sums.steps += 1
        return Asked(*agreed), None if is_new or not losses else losses.nats_sum / batch.num_tokens

    def _end_if_converged(self, phase: Phase, repeated_nats: float | None) -> None:
        """Skip the rest of a phase once the loss of what it reads again, in nats a token, has stopped falling.

        While a rule is still to come or grows, losses say nothing about where they will settle.
        """
        done = self.batches.order.moment(self.state.step - 1, phase).done
        has_settled = phase.prunings or self.config.rule.strength(done) == 1
        if repeated_nats is not None and has_settled:
            self.convergence.add(repeated_nats)
        halves = self.convergence.halves()
        is_over = self.state.step == phase.end_step
        if halves and self.convergence.is_reached and not is_over:
            self.monitor.message(
                f"{phase.name}: converged after step {self.state.step:,} of {phase.end_step:,} "
                f"({halves[0]:.4f} -> {halves[1]:.4f} nats/token over {self.config.stopping.window_steps} steps)"
            )
            if self.sums.steps:
                self._log(phase, with_tensors=True)
                self.sums = MetricSums()
            self.state.step, is_over = phase.end_step, True
        if is_over:
            self.convergence.clear()
        self.state.recent_loss_nats = self.convergence.loss_nats

    def _log(self, phase: Phase, with_tensors: bool) -> None:
        step = self.state.step
        flops = flops_per_token(self.ensemble.learners, self.batches.order.replays_after(step - 1))
        metrics = self.sums.reduce(self.ranks, self.state, flops, self.peak_flops)
        metrics["nonzeros"] = self.backend.count_nonzeros()
        self.monitor.log_step(step, phase.name, metrics)
        if with_tensors or step == phase.end_step:
            self.monitor.log_tensors(step, self.backend.weights())
            self.histograms_at = time.monotonic()
        self.monitor.progress(
            step,
            phase.name,
            bits_per_byte=metrics["loss_bits_per_byte"],
            online_bits=metrics["online_bits"],
            raw_bytes=metrics["online_raw_bytes"],
            tokens_per_second=metrics["tokens_per_second"],
            mfu=metrics["mfu"],
            seconds_left=self.batches.order.tokens_left(step, self.num_steps) / metrics["tokens_per_second"],
        )

    def _prune(self) -> None:
        config, number = self.config.prune, self.state.prunings + 1
        text = self.data.train if config.text == "train" else self.data.heldout
        report, self.state.grid_steps = prune(
            self.backend,
            self.optimizer,
            self.learner.new_model(),
            Sample(self.learner, self.batches.sample(config.sample_sequences)),
            config,
            self.config.seed,
            is_last=number == config.rounds,
            text_tokens=text.num_tokens,
        )
        self.state.prunings = number
        name = f"prune {number} of {config.rounds}" if config.rounds > 1 else "prune"
        for line in report.lines(config):
            self.monitor.message(f"{name}: {line}")

    def _resume(self) -> None:
        run_dir, can_restart = self.config.run_dir, self.config.train.on_damage == "restart"
        remedy = "" if can_restart else "set train.on_damage=restart to train again from step 0"
        damage = functools.partial(ledger_damage, run_dir, self.ranks.rank)
        checkpoint, messages = newest_checkpoint(run_dir, self.ranks, remedy, damage)
        if checkpoint:
            self._load(checkpoint)
            messages.append(f"resume      from step {self.state.step:,} ({checkpoint})")
        elif messages:
            messages.append("resume      no undamaged checkpoint is left: from step 0")
        # Once pruned, fine-tuning goes without it.
        if not self.state.prunings:
            self.learner.start_rule(self.data.train.num_tokens)
        if self.ranks.is_first and messages:
            print("\n".join(messages), flush=True)

    def _load(self, checkpoint: Path) -> None:
        self.state = read_state(checkpoint, self.state.identity, "set name=... for a new run")
        with restoring(checkpoint, "run", "remove it to go on from the one before") as of_rank:
            own = of_rank(self.ranks.rank)
            is_whole = "backend" in own["learners"][0] and "means" in own
            first = own if is_whole else of_rank(0)
            self.ensemble.load(own, first)
            self.batches.load(own)
            if self.code_length:
                self.code_length.combiner.load(own["combiner"])
            self.sums = MetricSums(**own["sums"])
            self.convergence.loss_nats = self.state.recent_loss_nats

    def _save(self) -> Path:
        on_first_rank(self.ranks, self._check)
        self.state.ledger_parts = self.ranks.gather(self.ledger.flush())
        own = self.ensemble.state() | {"sums": self.sums.state()} | self.batches.state()
        if self.code_length:
            own["combiner"] = self.code_length.combiner.state()
        return self.saver.start(self.state, own)

    def _finish(self, stop: StopRequest) -> None:
        on_first_rank(self.ranks, self._check)
        self.saver.finish()
        self.state.ledger_parts = self.ranks.gather(self.ledger.flush())
        sequences, tokens = self.batches.sequences.num_sequences, self.data.train.num_tokens
        check_ledger(self.config.run_dir, self.ranks, self.state.ledger_parts, sequences, tokens)
        member_nats = self.code_length.combiner.member_nats() if self.code_length else {}
        members = {name: bits_from_nats(nats) for name, nats in member_nats.items()}
        on_first_rank(self.ranks, write_members, self.config.run_dir, members)
        weights, deviations = self.learner.ended()
        on_first_rank(self.ranks, write_weights, self.config.run_dir, weights, self.state.grid_steps, deviations)
        on_first_rank(self.ranks, stop.clear)
        on_first_rank(self.ranks, mark_done, self.config.run_dir, self.state.ledger_parts)
        self.monitor.message(f"weights, ledger and metrics are in {self.config.run_dir}")
