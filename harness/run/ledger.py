"""The record of code lengths: nats of every token at its first visit, before the update that learns from it.

Each rank writes Parquet parts `ledger/rank-RRRRR/part-NNNNNN.parquet`, one row for what a step read of a sequence:
step, sequence, epoch, num_tokens, raw_bytes, nats (list<float32>; null on later visits), nats_sum (float64), code_nats
and code_nats_sum. The sum of nats over rows of epoch 0 is the area under the loss curve. It is the length of the online
(prequential) code too, unless the settings of that code name more than the weights that train: then code_nats are what
it takes, and they are null otherwise. Replays are in no row.
"""

import functools
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from harness.data.batches import MicroBatch
from harness.errors import RunFailure, UsageError
from harness.files import make_directory, naming, replacing, sha256, with_retries
from harness.machine.ranks import Ranks, on_first_rank
from harness.run.checkpoint import FORMAT_VERSION
from harness.units import bits_from_nats, bits_per_byte

SCHEMA = pa.schema(
    [
        ("step", pa.int64()),
        ("sequence", pa.int64()),
        ("epoch", pa.int32()),
        ("num_tokens", pa.int32()),
        ("raw_bytes", pa.int64()),
        ("nats", pa.list_(pa.float32())),
        ("nats_sum", pa.float64()),
        ("code_nats", pa.list_(pa.float32())),
        ("code_nats_sum", pa.float64()),
    ],
    metadata={"codelength.ledger": "2"},
)
_NULL_AT_TIMES = ("nats", "code_nats", "code_nats_sum")
ROWS_PER_PART = 8192
Part = tuple[int, str]
"""Rows of a part, and the first hexadecimal digits of its SHA-256."""
DIGEST_CHARACTERS = 16


class LedgerWriter:
    """Writes one rank's rows; parts are complete files, so a killed run leaves no half-written one.

    Rows are made, and full parts written, in a thread, while the next step is computed. An error of it is raised by the
    next call.
    """

    def __init__(self, run_dir: Path, rank: int, parts: Sequence[Part] = ()):
        """`parts` are kept (those that a checkpoint vouches for); later ones are removed."""
        self.directory = rank_directory(run_dir, rank)
        make_directory(self.directory)
        self.parts = list(parts)
        kept = {self.directory / part_name(number) for number in range(len(self.parts))}
        for path in self.directory.iterdir():
            if path.suffix in (".parquet", ".tmp") and path not in kept:
                path.unlink()
        self._rows: list[dict[str, object]] = []
        self._worker = ThreadPoolExecutor(1, "ledger")
        self._pending: Future[None] | None = None

    def append(
        self,
        step: int,
        epoch: int,
        micro_batch: MicroBatch,
        nats: np.ndarray,
        raw_bytes: np.ndarray,
        code_nats: np.ndarray | None = None,
    ) -> None:
        """Record a micro-batch: `nats` (n, length) of training, `code_nats` of the online code where they differ.

        The arrays are not to be written to afterwards.
        """
        self._wait()
        self._pending = self._worker.submit(self._append, step, epoch, micro_batch, nats, raw_bytes, code_nats)

    def flush(self) -> list[Part]:
        """Write the buffered rows as a part, durably; returns all parts."""
        self._wait()
        self._flush()
        return list(self.parts)

    def close(self) -> None:
        """End the thread that writes; rows that were not flushed are dropped."""
        self._worker.shutdown(cancel_futures=True)

    def _wait(self) -> None:
        if self._pending:
            pending, self._pending = self._pending, None
            pending.result()

    def _append(
        self,
        step: int,
        epoch: int,
        micro_batch: MicroBatch,
        nats: np.ndarray,
        raw_bytes: np.ndarray,
        code_nats: np.ndarray | None,
    ) -> None:
        mask = micro_batch.mask
        sums = np.where(mask, nats, 0).sum(axis=1, dtype=np.float64)
        counts = mask.sum(axis=1)
        for row, sequence in enumerate(micro_batch.sequences):
            if counts[row] == 0:
                continue
            self._rows.append(
                {
                    "step": step,
                    "sequence": int(sequence),
                    "epoch": epoch,
                    "num_tokens": int(counts[row]),
                    "raw_bytes": int(raw_bytes[row]),
                    "nats": nats[row][mask[row]] if epoch == 0 else None,
                    "nats_sum": float(sums[row]),
                    "code_nats": None if code_nats is None else code_nats[row][mask[row]].astype(np.float32),
                    "code_nats_sum": None if code_nats is None else float(code_nats[row][mask[row]].sum()),
                }
            )
        if len(self._rows) >= ROWS_PER_PART:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            path = self.directory / part_name(len(self.parts))
            with replacing(path) as file:
                pq.write_table(pa.Table.from_pylist(self._rows, schema=SCHEMA), file, compression="zstd")
                file.flush()
                digest = sha256(Path(file.name))
            self.parts.append((len(self._rows), digest[:DIGEST_CHARACTERS]))
            self._rows = []


@dataclass(frozen=True, slots=True)
class OnlineCode:
    """The online code of a training corpus, summed over all ranks."""

    aulc_bits: float
    """Sum of the training losses at first visits: the area under the loss curve."""
    ideal_bits: float
    """Length of the online code with all its settings; the area under the loss curve where these are plain."""
    tokens: int
    """Number of tokens coded."""
    raw_bytes: int
    """Bytes of text that these tokens stand for."""
    step_raw_bytes: np.ndarray
    """Bytes first read at each step, in order."""
    step_bits: np.ndarray
    """Code length of those bytes, float64."""

    @property
    def bits_per_byte(self) -> float:
        """Online code length per byte of the corpus."""
        return bits_per_byte(self.ideal_bits, self.raw_bytes)


def rank_directory(run_dir: Path, rank: int) -> Path:
    """Name the directory of a rank's parts."""
    return run_dir / "ledger" / f"rank-{rank:05d}"


def part_name(number: int) -> str:
    """Name the file of a part."""
    return f"part-{number:06d}.parquet"


def part_problem(run_dir: Path, rank: int, parts: Sequence[Part]) -> str:
    """Say what is wrong with a rank's parts on the disk, or nothing.

    Raises OSError where they cannot be read though they are there.
    """
    for number, (_, digest) in enumerate(parts):
        path = rank_directory(run_dir, rank) / part_name(number)
        try:
            written = with_retries(functools.partial(sha256, path))
        except (FileNotFoundError, NotADirectoryError):
            return f"ledger part {path} is missing"
        if written[:DIGEST_CHARACTERS] != digest:
            return f"ledger part {path} is not what was written"
    return ""


def ledger_damage(run_dir: Path, rank: int, state: dict[str, Any]) -> str:
    """Say what is wrong with the parts that a checkpoint's state lists, or nothing.

    Nothing where the state is of another format or number of ranks, which is refused with other words.
    """
    if state.get("format_version") != FORMAT_VERSION or rank >= len(state["ledger_parts"]):
        return ""
    return part_problem(run_dir, rank, state["ledger_parts"][rank])


def check_ledger(
    run_dir: Path, ranks: Ranks, parts: Sequence[Sequence[Part]], num_sequences: int, num_tokens: int
) -> None:
    """Read the ledger again from the disk, on all ranks; `parts` are those of each rank.

    Raises RunFailure where it is not what was written, or does not hold every sequence once and all tokens.
    """
    try:
        if problems := [text for text in ranks.gather(part_problem(run_dir, ranks.rank, parts[ranks.rank])) if text]:
            raise UsageError(problems[0])
        on_first_rank(ranks, lambda: read_online_code(run_dir, num_sequences, num_tokens) and None)
    except UsageError as error:
        raise RunFailure(f"{run_dir}: the ledger on the disk is not what was trained ({error})") from None


def part_paths(run_dir: Path) -> list[Path]:
    """List the parts of all ranks, in order of rank and part."""
    return sorted((run_dir / "ledger").glob("rank-*/part-*.parquet"))


def read_rows(run_dir: Path, columns: list[str]) -> Iterator[pa.Table]:
    """Read the given columns, a table for each part.

    Raises UsageError where the ledger is missing or damaged.
    """
    paths = part_paths(run_dir)
    if not paths:
        raise UsageError(f"{run_dir}: no ledger; run `codelength train` first")
    if unknown := [name for name in columns if name not in SCHEMA.names]:
        raise UsageError(f"{run_dir}: its ledger has no column {unknown[0]}; it has {', '.join(SCHEMA.names)}")
    fields = pa.schema([SCHEMA.field(name) for name in columns])
    for path in paths:
        try:
            with naming(path):
                table = with_retries(functools.partial(pq.read_table, path, columns=columns))
            if table.schema.remove_metadata() != fields:
                raise pa.ArrowInvalid(f"columns are {', '.join(map(str, table.schema))}")
            if empty := [name for name in columns if name not in _NULL_AT_TIMES and table[name].null_count]:
                raise pa.ArrowInvalid(f"{empty[0]} has nulls")
        except (pa.ArrowException, OSError) as error:
            if isinstance(error, OSError) and error.errno:
                raise
            words = " ".join(str(error).split())[:100]
            raise UsageError(f"{path}: damaged ledger part, or one of another version ({words}); train again") from None
        yield table


def _holds_each_once(sequences: np.ndarray, num_tokens: np.ndarray, num_sequences: int) -> bool:
    """Whether rows hold all tokens of every sequence; all are of one length, but for a shorter last one.

    Rows are parts of sequences where `train.batch_schedule` cuts them.
    """
    if len(sequences) < num_sequences or sequences.min() < 0 or sequences.max() >= num_sequences:
        return False
    held = np.bincount(sequences, weights=num_tokens, minlength=num_sequences)
    return bool((held[:-1] == held[0]).all() and 0 < held[-1] <= held[0] and (num_tokens > 0).all())


def read_online_code(run_dir: Path, num_sequences: int, num_tokens: int) -> OnlineCode:
    """Sum the first visits and check that they hold every token of every sequence once.

    Raises UsageError where the ledger is missing, damaged or incomplete.
    """
    columns = ["step", "sequence", "num_tokens", "raw_bytes", "nats_sum", "code_nats_sum"]
    tables = [
        table.filter(pc.equal(table["epoch"], 0)).select(columns) for table in read_rows(run_dir, [*columns, "epoch"])
    ]
    rows = {name: np.concatenate([table[name].to_numpy() for table in tables]) for name in columns}
    seen = rows["sequence"]
    tokens = int(rows["num_tokens"].sum())
    if tokens != num_tokens or not _holds_each_once(seen, rows["num_tokens"], num_sequences):
        raise UsageError(
            f"{run_dir}: the ledger holds {len(np.unique(seen))} of {num_sequences} sequences in {len(seen)} rows and "
            f"{tokens} of {num_tokens} tokens; finish the run with `codelength train`"
        )
    trained, coded = rows["nats_sum"], rows["code_nats_sum"].astype(np.float64)
    nats = np.where(np.isnan(coded), trained, coded)
    if not all(np.isfinite(values).all() and (values >= 0).all() for values in (trained, nats, rows["raw_bytes"])):
        raise UsageError(f"{run_dir}: the ledger has losses or sizes that are no numbers or negative; train again")
    _, index = np.unique(rows["step"], return_inverse=True)
    bits = bits_from_nats(nats)
    step_raw_bytes = np.bincount(index, weights=rows["raw_bytes"]).astype(np.int64)
    return OnlineCode(
        aulc_bits=float(bits_from_nats(trained).sum()),
        ideal_bits=float(bits.sum()),
        tokens=tokens,
        raw_bytes=int(rows["raw_bytes"].sum()),
        step_raw_bytes=step_raw_bytes,
        step_bits=np.bincount(index, weights=bits),
    )
