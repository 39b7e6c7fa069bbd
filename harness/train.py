"""Training: `codelength train CONFIG [key=value ...]` or `torchrun --nproc-per-node 2 -m harness.train CONFIG ...`."""

import os
import sys
from collections.abc import Callable
from dataclasses import replace

from harness.machine.stop import PAUSE_SIGNAL, Interrupted, end_at_signals, interruptible, outlive_terminal

if __name__ == "__main__":
    # The imports below take seconds.
    end_at_signals(PAUSE_SIGNAL)

import torch

from harness.config.run import RunConfig, load_config
from harness.corpus.prepared import Data
from harness.data.schedule import plan_phases
from harness.data.steps import StepOrder
from harness.errors import CodelengthError, UsageError, print_error, prints_error
from harness.job import joined_job
from harness.machine.hardware import resolve_precision
from harness.machine.output import print_anything
from harness.machine.ranks import Ranks, check_launch, choose_device, leave, on_first_rank
from harness.model.start import Start
from harness.policy.weights import Policy, load_policy
from harness.run.directory import open_on_all_ranks, opened_run_directory, write_policy, write_start
from harness.run.waiting import prepare_for_job
from harness.trainer import Trainer


def train_run(config: RunConfig, start: Start | None = None) -> None:
    """Prepare the data where needed, and train the run to its end on all ranks of this job.

    `start` has the weights of the archive that `online.start` names, which nothing in this package can read.

    Raises UsageError for wrong input, RunFailure where the work fails, and Stopped where it was asked to.
    """
    check_launch()
    if config.online.start and start is None:
        raise UsageError(
            f"online.start={config.online.start}: archives are read by `codelength train` alone; use it in place of "
            "`python -m harness.train`"
        )
    # What would be refused afterwards is refused before hours of preparation.
    choose_device(config.backend.device)
    config.train.micro_batch(int(os.environ.get("WORLD_SIZE", "1")))
    prepare_for_job(config)
    with joined_job(config) as ranks:
        dtype = resolve_precision(config.train.precision, ranks.device)
        data = open_on_all_ranks(config, ranks)
        if start:
            start.check_tokenizer(config.tokenizer.kind, data.tokenizer.model_bytes())
        # What cannot be shared out is refused before a directory is made for it.
        text, length = data.train, config.model.context
        order = StepOrder(config.train, text.num_tokens, length, text.fingerprint, config.seed)
        plan_phases(config.train, order, config.prune.prunings)
        policy = _policy(config, text.num_tokens)
        data = replace(data, policy=policy)
        if config.dry_run:
            _train(config, data, ranks, dtype, start)
            return
        with opened_run_directory(config, ranks, dtype) as directory:
            if not directory.is_done:
                if start:
                    on_first_rank(ranks, write_start, config.run_dir, len(start.coded))
                if policy:
                    on_first_rank(ranks, write_policy, config.run_dir, policy.to_bytes())
                _train(config, data, ranks, dtype, start, directory.check)
            elif ranks.is_first:
                print(f"{config.run_dir}: training is complete; nothing to do")


def _policy(config: RunConfig, num_tokens: int) -> Policy | None:
    """The policy of a run, if it has one; raises UsageError where it does not fit the text."""
    if not config.train.policy:
        return None
    return load_policy(config.train.policy, -(-num_tokens // config.model.context))


def _train(
    config: RunConfig,
    data: Data,
    ranks: Ranks,
    dtype: torch.dtype,
    start: Start | None,
    check: Callable[[], None] | None = None,
) -> None:
    trainer = Trainer(config, data, ranks, dtype, start)
    try:
        trainer.describe()
        if check:
            trainer.run(check)
        ranks.barrier()
    finally:
        trainer.close()


def main(arguments: list[str]) -> int:
    """Entry point of one rank: CONFIG and `key=value` overrides; returns the exit status."""
    print_anything()
    outlive_terminal()
    try:
        if not arguments:
            raise UsageError("usage: torchrun --nproc-per-node N -m harness.train CONFIG [key=value ...]")
        with interruptible(PAUSE_SIGNAL):
            train_run(load_config(arguments[0], arguments[1:]))
    except (CodelengthError, Interrupted) as error:
        if prints_error(error):
            for line in str(error).splitlines():
                print_error(line)
        return error.exit_status
    except OSError as error:
        print_error(f"{error.filename or 'system'}: {error.strerror or error}")
        return 1
    return 0


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
