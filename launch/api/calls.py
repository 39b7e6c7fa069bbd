"""What the commands do, as functions: a run as an object, files in and out."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from eval.curves.area import OnlineLength
from eval.curves.read import Curve
from eval.length import Length
from harness.config.run import RunConfig
from harness.data.order import Sequences
from harness.errors import UsageError
from harness.machine.children import num_cores
from harness.run.directory import WEIGHTS_FILE, check_done, load_run_config, open_run_data
from harness.run.ledger import OnlineCode, read_online_code, read_rows

from .decoding import restoring_threads, silent

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, slots=True)
class Run:
    """A finished run: what lies in its directory, read when it is asked for."""

    directory: Path

    @property
    def config(self) -> RunConfig:
        """The configuration that it was trained with."""
        return load_run_config(self.directory)

    @property
    def online(self) -> OnlineCode:
        """The online code of its training corpus, in bits, by step; an ideal length.

        Weights that a run starts from and a policy that it learns by are not in it; `lengths` counts them.

        Raises UsageError where the data that it was trained on are not there.
        """
        config = self.config
        data = open_run_data(self.directory, config)
        sequences = Sequences(data.train, config.model.context)
        return read_online_code(self.directory, sequences.num_sequences, data.train.num_tokens)

    @property
    def report(self) -> dict:
        """What `report.json` says: sizes in bytes, code lengths in bits. Raises UsageError before `evaluate`."""
        from eval.report.record import load_reports

        return load_reports([self.directory])[0]

    def lengths(self) -> dict[str, Length]:
        """Every code of the report by name: `online`, `offline`, `projected`, and other compressors'.

        Of the training corpus are `online`, `projected` and names that begin with `corpus_`.
        """
        from eval.report.record import flat_record, lengths

        return lengths(flat_record(self.report))

    def weights(self) -> dict[str, np.ndarray]:
        """The float32 weights after training, pruning and fine-tuning, by name."""
        from safetensors.numpy import load_file

        return load_file(self.directory / WEIGHTS_FILE)

    def ledger(
        self, columns: Sequence[str] = ("step", "sequence", "epoch", "nats", "nats_sum")
    ) -> "Iterator[pa.Table]":
        """Losses of every sequence at every step, a table for each file; `nats` are of its tokens, in order."""
        yield from read_rows(self.directory, list(columns))


def open_run(directory: str | os.PathLike) -> Run:
    """Open a finished run; raises UsageError where `directory` holds none, or its files are damaged."""
    load_run_config(Path(directory))
    check_done(Path(directory))
    return Run(Path(directory))


def train(config: RunConfig) -> Run:
    """Train a run in this process, or go on where it was stopped; prepares the data where needed.

    Raises UsageError for wrong input and RunFailure where the work fails. For several processes use
    `codelength train --processes N` or torchrun.
    """
    from eval.weights.start import read_start
    from harness.train import train_run

    if config.dry_run:
        raise UsageError("dry_run=true: leaves no run; use `codelength train` to see what it prints")
    train_run(config, read_start(config))
    return open_run(config.run_dir)


@restoring_threads
def evaluate(directory: str | os.PathLike, settings: Sequence[str] = (), threads: int | None = None) -> dict:
    """Write the archive of a run, decode it in a fresh process, and return the report.

    `settings` are `eval.key=value`. Raises UsageError and RunFailure as `codelength eval` does.
    """
    from eval.offline import evaluate as offline

    return offline.evaluate(Path(directory), list(settings), threads or num_cores(), silent, quiet=True)


@restoring_threads
def compress(
    directory: str | os.PathLike, text: bytes, output: str | os.PathLike, threads: int | None = None
) -> Length:
    """Write `text` as an archive that holds the model of a run; returns its length, which is not decoded yet."""
    from eval.offline import evaluate as offline

    run_dir, config = Path(directory), load_run_config(Path(directory))
    data = open_run_data(run_dir, config)
    return offline.compress(run_dir, config, data, text, Path(output), threads or num_cores(), silent).length


@restoring_threads
def send(config: RunConfig, output: str | os.PathLike, source: str | os.PathLike | None = None) -> dict:
    """Write the online code of a file, or without one of the training corpus; returns how its bits come about.

    Raises UsageError and RunFailure as `codelength send` does.
    """
    from eval.online.send import open_input
    from eval.online.send import send as send_text
    from harness.job import joined_job
    from harness.run.waiting import prepare_for_job

    path = None if source is None else Path(source)
    if path is None:
        prepare_for_job(config)
    with joined_job(config) as ranks:
        return asdict(send_text(config, open_input(config, path, ranks), Path(output), ranks, silent))


def online_length(
    tokens: Sequence[float],
    loss_nats: Sequence[float],
    num_tokens: float | None = None,
    vocab_size: float | None = None,
) -> OnlineLength:
    """Compute the area under a loss curve: `loss_nats` per token after so many `tokens`, 1-D, in order of time.

    `num_tokens` is the number of different tokens of the data (default: the last point's); `vocab_size` bounds the
    loss before the first point. Raises UsageError where the points are no curve.
    """
    from eval.curves import area

    read, losses = (np.asarray(values, dtype=np.float64) for values in (tokens, loss_nats))
    if read.ndim != 1 or read.shape != losses.shape:
        raise UsageError(f"tokens, loss_nats: shapes {read.shape} and {losses.shape}; give two lists of equal length")
    is_curve = np.isfinite(read).all() and (np.diff(read) > 0).all() and (read >= 1).all()
    if not (is_curve and np.isfinite(losses).all() and (losses > 0).all()):
        raise UsageError("tokens, loss_nats: tokens must increase from at least 1, losses be finite and above 0")
    return area.online_length(Curve(name="points", tokens=read, loss_nats=losses), num_tokens, vocab_size)
