"""How many bits of a corpus a model has taken in, read off one run without a second one.

What each of the three rates shows is told in docs/online.md ("Final rates, and what a model has learnt").
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from eval.report.parts import heldout_nats
from eval.report.record import load_reports
from harness.config.run import RunConfig
from harness.corpus.prepared import Data
from harness.data.order import Sequences
from harness.data.shards import Shard
from harness.errors import UsageError
from harness.run.directory import load_run_config, open_run_data
from harness.run.ledger import OnlineCode, read_online_code, read_rows
from harness.units import bits_from_nats, bits_per_byte

FINAL_FRACTION = 0.05
_BLOCK_TOKENS = 1 << 20
_NUM_BYTE_VALUES = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluatedRun:
    """A run that was trained and evaluated on its held-out text, as its directory holds it."""

    run_dir: Path
    config: RunConfig
    report: dict
    data: Data
    online: OnlineCode


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelBits:
    """The online code of a corpus, split at the final rate of the model."""

    raw_bytes: int
    """n, bytes of the training corpus."""
    aulc_bits: float
    """Area under its loss curve."""
    heldout_bits_per_byte: float
    """Final rate of the float32 weights on held-out text."""
    archive_bits_per_byte: float
    """The same of the rounded weights in the archive."""
    training_bits_per_byte: float
    """Final rate on the training text."""
    frequency_bits_per_byte: float
    """Rate of the byte frequencies of the training text on held-out text."""
    corpus_frequency_bits_per_byte: float
    """The same on the training text itself: the entropy of its bytes."""

    @property
    def residual_bits(self) -> float:
        """Bits of the corpus at the final held-out rate: n r."""
        return self.raw_bytes * self.heldout_bits_per_byte

    @property
    def above_heldout_bits(self) -> float:
        """Excess description length: the information in the weights."""
        return self.aulc_bits - self.residual_bits

    @property
    def above_archive_bits(self) -> float:
        """The same above the rate of the archive, whose weights are rounded."""
        return self.aulc_bits - self.raw_bytes * self.archive_bits_per_byte

    @property
    def above_training_bits(self) -> float:
        """The same above the final training loss, which takes text known by heart for learnt."""
        return self.aulc_bits - self.raw_bytes * self.training_bits_per_byte

    @property
    def online_beyond_frequencies_bits(self) -> float:
        """What the online code saves beyond byte frequencies that were known for nothing; 0 where it saves nothing."""
        return max(0.0, self.raw_bytes * self.corpus_frequency_bits_per_byte - self.aulc_bits)

    @property
    def beyond_frequencies_bits(self) -> float:
        """What the model saves on n held-out bytes beyond byte frequencies; 0 where it saves nothing."""
        return max(0.0, self.raw_bytes * (self.frequency_bits_per_byte - self.heldout_bits_per_byte))


def open_run(run_dir: Path) -> EvaluatedRun:
    """Read an evaluated run from its directory.

    Raises UsageError where it is not trained and evaluated, or not on its held-out text.
    """
    config = load_run_config(run_dir)
    report = load_reports([run_dir])[0]
    split = report["data"]["eval_split"]
    if split != "heldout":
        raise UsageError(f"{run_dir}: eval.split={split}: the final loss must be a held-out one; use heldout")
    data = open_run_data(run_dir, config)
    num_sequences = Sequences(data.train, config.model.context).num_sequences
    online = read_online_code(run_dir, num_sequences, data.train.num_tokens)
    return EvaluatedRun(run_dir=run_dir, config=config, report=report, data=data, online=online)


def model_bits(run: EvaluatedRun) -> ModelBits:
    """Measure the online code and the final rates of a run."""
    offline, data = run.report["offline"], run.data
    train_counts, heldout_counts = byte_counts(data, data.train), byte_counts(data, data.heldout)
    return ModelBits(
        raw_bytes=run.online.raw_bytes,
        aulc_bits=run.online.aulc_bits,
        heldout_bits_per_byte=final_heldout_rate(run),
        archive_bits_per_byte=bits_per_byte(offline["ideal_data_bits"], run.report["data"]["raw_bytes"]),
        training_bits_per_byte=final_training_rate(run.run_dir, run.online.raw_bytes),
        frequency_bits_per_byte=frequency_rate(train_counts, heldout_counts),
        corpus_frequency_bits_per_byte=frequency_rate(train_counts, train_counts),
    )


def final_heldout_rate(run: EvaluatedRun) -> float:
    """Measure the bits per byte of the held-out text under the final weights, in float32."""
    nats, _ = heldout_nats(run.run_dir, run.config, run.data)
    return bits_per_byte(bits_from_nats(float(nats.sum())), run.data.heldout.raw_bytes)


def final_training_rate(run_dir: Path, corpus_bytes: int) -> float:
    """Average the bits per byte of the last steps, as many as read `FINAL_FRACTION` of the corpus."""
    columns = ["step", "raw_bytes", "nats_sum"]
    tables = list(read_rows(run_dir, columns))
    step, raw_bytes, nats = (np.concatenate([table[name].to_numpy() for table in tables]) for name in columns)
    _, index = np.unique(step, return_inverse=True)
    last_bytes = np.cumsum(np.bincount(index, weights=raw_bytes)[::-1])
    last_nats = np.cumsum(np.bincount(index, weights=nats)[::-1])
    # Of the corpus, and not of all that was read, so that the part of a run of many epochs is not several epochs.
    enough = min(int(np.searchsorted(last_bytes, FINAL_FRACTION * corpus_bytes)), len(last_bytes) - 1)
    return float(bits_from_nats(last_nats[enough]) / last_bytes[enough])


def byte_counts(data: Data, shard: Shard) -> np.ndarray:
    """Count each byte value in the text of a split: int64 (256,)."""
    counts = np.zeros(_NUM_BYTE_VALUES, dtype=np.int64)
    for start in range(0, shard.num_tokens, _BLOCK_TOKENS):
        text = data.tokenizer.decode(shard.tokens[start : start + _BLOCK_TOKENS])
        counts += np.bincount(np.frombuffer(text, dtype=np.uint8), minlength=_NUM_BYTE_VALUES)
    return counts


def frequency_rate(train_counts: np.ndarray, heldout_counts: np.ndarray) -> float:
    """Compute the bits per byte of a text with `heldout_counts` under the byte frequencies of `train_counts`."""
    probabilities = (train_counts + 0.5) / (train_counts.sum() + 0.5 * len(train_counts))
    return float(-(heldout_counts @ np.log2(probabilities)) / heldout_counts.sum())
