"""Evaluate a trained run: its archive, verified by a fresh process, and its report.json."""

import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch

from eval.length import Length
from eval.offline.archive import ArchiveReport, QuantisedModel, write_archive
from eval.offline.archive_head import IN_ORDER
from eval.offline.baseline_cache import measured
from eval.offline.baselines import BASELINES, CHUNK_BYTES
from eval.offline.chunks import Progress
from eval.offline.ideal import ideal_archive, ideal_bits, split
from eval.offline.step_search import GridPoint, Search, choose_grid
from eval.online.program import program_bytes
from eval.online.verified import send_and_receive
from eval.weights.trained import load_weights
from eval.weights.unit_order import largest_first
from harness.config.run import RunConfig, config_sha256
from harness.corpus.prepared import Data
from harness.data.order import Sequences
from harness.errors import RunFailure, UsageError
from harness.files import write_json
from harness.lock import locked
from harness.machine.children import child_environment
from harness.machine.hardware import resolve_precision
from harness.model.transformer import Transformer
from harness.pruning.feedback import Feedback, input_moments, sample_rows
from harness.pruning.structure import DeadStructure, find_dead
from harness.run.directory import (
    charged_bytes,
    check_done,
    load_run_config,
    open_run_data,
    read_members,
)
from harness.run.ledger import OnlineCode, read_online_code
from harness.units import bits_from_bytes, bits_per_byte

MAX_CORPUS_BASELINE_BYTES = 16_000_000
ARCHIVE_FILE, REPORT_FILE = Path("offline") / "archive.cl", "report.json"
ADAPTIVE_FILE = Path("offline") / "adaptive.cl"


def text_to_code(split: str, data: Data) -> bytes:
    """The bytes that `eval.split` names: `heldout`, `train`, or a file.

    Raises UsageError where the file cannot be read.
    """
    if split in ("heldout", "train"):
        shard = data.heldout if split == "heldout" else data.train
        return data.tokenizer.decode(shard.tokens)
    try:
        return Path(split).read_bytes()
    except OSError as error:
        raise UsageError(f"eval.split={split}: {error.strerror}; use heldout, train or the path of a file") from None


def grid_search(run_dir: Path, config: RunConfig, data: Data, text: bytes, threads: int) -> Search:
    """The grids of a run's weights and what they cost for `text`; raises UsageError where there are none."""
    weights, trained_steps = load_weights(run_dir, config, data.tokenizer.vocab_size)
    weights = largest_first(weights, config.model.heads)
    torch.set_num_threads(threads)
    dtype = resolve_precision(config.train.precision, torch.device("cpu"))
    feedback = make_feedback(weights, config, data, dtype) if config.eval.feedback_sequences else None
    return Search(weights, trained_steps, config.model, data.tokenizer, text, config.eval.chunk_bytes, dtype, feedback)


def make_feedback(weights: dict[str, np.ndarray], config: RunConfig, data: Data, dtype: torch.dtype) -> Feedback:
    """What rounds the weights of a run with feedback, by the inputs of its layers on training sequences."""
    model = Transformer(config.model, data.tokenizer.vocab_size)
    model.load_state_dict({name: torch.from_numpy(tensor) for name, tensor in weights.items()})
    rows = sample_rows(Sequences(data.train, config.model.context), config.eval.feedback_sequences)
    return Feedback(input_moments(model, rows, dtype), config.eval.feedback_damping, config.eval.feedback_order)


def compress(
    run_dir: Path, config: RunConfig, data: Data, text: bytes, output: Path, threads: int, progress: Progress
) -> ArchiveReport:
    """Choose the grid for `text`, and write its archive to `output`."""
    model, _ = choose_grid(grid_search(run_dir, config, data, text, threads))
    return write_archive(output, text, model, config.eval, threads, progress)


def evaluate(run_dir: Path, overrides: list[str], threads: int, progress: Progress, quiet: bool) -> dict:
    """Write the archive, decode it in a fresh process, and write report.json; returns the report.

    Processes that send and receive show their own progress unless `quiet`.

    Raises UsageError for runs that cannot be evaluated, or are being evaluated, and RunFailure where the archive does
    not decode.
    """
    config = load_run_config(run_dir, overrides)
    check_adaptive(config)
    # Before the ledger is read, whose own words would be about a run that has not ended.
    check_done(run_dir)
    with locked(run_dir):
        return _evaluate(run_dir, config, threads, progress, quiet)


def _evaluate(run_dir: Path, config: RunConfig, threads: int, progress: Progress, quiet: bool) -> dict:
    data = open_run_data(run_dir, config, verify=True)
    sequences = Sequences(data.train, config.model.context)
    online = read_online_code(run_dir, sequences.num_sequences, data.train.num_tokens)
    text = text_to_code(config.eval.split, data)
    output = run_dir / ARCHIVE_FILE
    output.parent.mkdir(exist_ok=True)
    model, cost = choose_grid(grid_search(run_dir, config, data, text, threads))
    dtype = resolve_precision(config.train.precision, torch.device("cpu"))
    if config.eval.ideal:
        output.unlink(missing_ok=True)
        archive, decode_seconds = ideal_archive(model, text, config.eval.chunk_bytes, dtype, progress), None
    else:
        archive = write_archive(output, text, model, config.eval, threads, progress)
        decode_seconds = verify(output, text, threads)
        archive = replace(archive, kind="decoded")
    adaptive = adaptive_section(run_dir, text, model, config, threads, progress)
    heldout = split(data.tokenizer.decode(data.heldout.tokens), config.eval.chunk_bytes)
    heldout_bits = ideal_bits(model, heldout, dtype)
    online_report = online_section(online, archive, len(text), config, charged_bytes(run_dir, data.tokenizer))
    online_report |= {"baselines": corpus_baselines(data, config), "members": read_members(run_dir)}
    if config.eval.online:
        online_report |= send_and_receive(run_dir, config, online.ideal_bits, quiet)
    report = {
        "run": config.name,
        "config_sha256": config_sha256(config),
        "data": {
            "corpus": config.corpus.kind,
            "train_bytes": data.train.raw_bytes,
            "heldout_bytes": data.heldout.raw_bytes,
            "eval_split": config.eval.split,
            "raw_bytes": len(text),
            "chunk_bytes": config.eval.chunk_bytes,
        },
        "online": online_report,
        "offline": offline_section(archive, model, cost, len(text), config)
        | {"heldout_ideal_bits": heldout_bits, "decode_seconds": decode_seconds},
        "adaptive": adaptive,
        "projected": {
            "dataset_bytes": data.train.raw_bytes,
            "total_bytes": projected_length(archive, len(text), data.train.raw_bytes).total_bytes,
        },
        "conventions": conventions_section(model.integers),
        "baselines": measured(text, config.eval.chunk_bytes, baseline_folder(data), training=training_text(data)),
    }
    write_json(run_dir / REPORT_FILE, report)
    return report


def check_adaptive(config: RunConfig) -> None:
    """Raises UsageError where `eval.adaptive` cannot code what the other settings ask for."""
    evaluation, remedy = config.eval, ""
    if evaluation.predictor != "float":
        # Logarithms and exponentials of a C library have other last bits elsewhere.
        remedy = f"computes in floats, not as eval.predictor={evaluation.predictor}; add eval.predictor=float"
    elif config.tokenizer.kind != "bytes":
        remedy = f"predicts bytes; train with tokenizer.kind=bytes, not {config.tokenizer.kind}"
    elif evaluation.ideal:
        remedy = "is a file; add eval.ideal=false"
    if evaluation.adaptive and remedy:
        raise UsageError(f"eval.adaptive=true: {remedy}")


def adaptive_section(
    run_dir: Path, text: bytes, model: QuantisedModel, config: RunConfig, threads: int, progress: Progress
) -> dict | None:
    """The text in its order by the model and an adaptive mixture, as a fresh process has decoded it; None without."""
    output = run_dir / ADAPTIVE_FILE
    if not config.eval.adaptive:
        # One of other weights would look like a part of this report.
        output.unlink(missing_ok=True)
        return None
    archive = write_archive(output, text, model, config.eval, threads, progress, IN_ORDER)
    decode_seconds = verify(output, text, threads)
    sizes = {key: size for key, size in asdict(archive).items() if key != "kind"}
    rate = archive.length.bits_per_byte(len(text))
    return {**sizes, "bits_per_byte": rate, "decode_seconds": decode_seconds, "verified": True}


def verify(archive: Path, text: bytes, threads: int) -> float:
    """Decode in a fresh process that is given the archive and nothing else; returns its seconds.

    Raises RunFailure where the output differs.
    """
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "decoded"
        command = [sys.executable, "-m", "launch", "decompress", str(archive.resolve()), "-o", str(output)]
        command += ["--threads", str(threads), "--quiet"]
        done = subprocess.run(command, cwd=folder, env=child_environment(), capture_output=True, text=True)
        decoded = output.read_bytes() if output.exists() else None
    if done.returncode or decoded != text:
        raise RunFailure(f"{archive}: does not decode to what was coded ({done.stderr.strip() or 'SHA-256 differs'})")
    return time.perf_counter() - start


def online_section(
    online: OnlineCode, archive: ArchiveReport, raw_bytes: int, config: RunConfig, charged: dict
) -> dict:
    """The online code of the training corpus, with the bytes of all that it is `charged` with beside its text.

    `above_final_bits` is its excess over the rate of the archive's model on held-out text, None where that is unknown.
    """
    is_heldout = config.eval.split == "heldout"
    final_bits = bits_per_byte(archive.ideal_data_bits, raw_bytes) * online.raw_bytes
    return {
        "aulc_bits": online.aulc_bits,
        "ideal_bits": online.ideal_bits,
        "tokens": online.tokens,
        "raw_bytes": online.raw_bytes,
        **charged,
        "bits_per_byte": online.bits_per_byte + bits_per_byte(bits_from_bytes(sum(charged.values())), online.raw_bytes),
        "above_final_bits": online.aulc_bits - final_bits if is_heldout else None,
        "code_bytes": program_bytes(config),
    }


def baseline_folder(data: Data) -> Path:
    """Where sizes by other compressors are kept."""
    return data.directory.parent / "baselines"


def training_text(data: Data) -> bytes:
    """What a dictionary may be made of: the training text, or the first part of a large one."""
    return data.tokenizer.decode(data.train.tokens[:MAX_CORPUS_BASELINE_BYTES])


def corpus_baselines(data: Data, config: RunConfig) -> dict[str, int] | None:
    """Bytes of the training corpus by the whole-file compressors but brotli (0.3 MB/s); None for large corpora."""
    if data.train.raw_bytes > MAX_CORPUS_BASELINE_BYTES:
        return None
    names = [b.name for b in BASELINES if b.convention == "whole" and b.name != "brotli_whole"]
    return measured(data.tokenizer.decode(data.train.tokens), CHUNK_BYTES, baseline_folder(data), names)


def offline_section(
    archive: ArchiveReport, model: QuantisedModel, cost: GridPoint, raw_bytes: int, config: RunConfig
) -> dict:
    """The archive: all sizes are of the file that has just been decoded, or ideal, as `is_ideal` says.

    `sampled_data_bytes` is what the search for the grid took the text for, from a sample: other grids compare with it.
    """
    sizes = asdict(archive)
    return {
        "method": config.rule.kind,
        "predictor": config.eval.predictor,
        "parameters": sum(q.size for q in model.integers.values()),
        "nonzeros": sum(int(np.count_nonzero(q)) for q in model.integers.values()),
        **{f"dead_{part}": number for part, number in asdict(_dead(model.integers, config)).items()},
        "tensors": {name: [q.size, int(np.count_nonzero(q))] for name, q in model.integers.items()},
        **{key: sizes[key] for key in sizes if key not in ("encode_seconds", "kind")},
        "bits_per_byte": archive.length.bits_per_byte(raw_bytes),
        "data_bits_per_byte": bits_per_byte(bits_from_bytes(archive.data_bytes), raw_bytes),
        "grid_factor": cost.factor,
        "dead_zone": cost.dead_zone,
        "sampled_data_bytes": cost.data_bytes,
        "verified": archive.kind == "decoded",
        "is_ideal": archive.kind == "ideal",
        "encode_seconds": archive.encode_seconds,
    }


def _dead(integers: dict[str, np.ndarray], config: RunConfig) -> DeadStructure:
    """What the zeros of the file leave without influence."""
    nonzero = {name: torch.from_numpy(q != 0) for name, q in integers.items()}
    return find_dead(nonzero, config.model.heads)[1]


def projected_length(archive: ArchiveReport, raw_bytes: int, dataset_bytes: int) -> Length:
    """What the model and a whole dataset coded at the same rate would take; no such file was made."""
    data_rate = archive.data_bytes / raw_bytes if raw_bytes else 0.0
    return Length(archive.model_bytes, data_rate * dataset_bytes, "projected", archive.tokenizer_bytes)


def conventions_section(weights: dict[str, np.ndarray]) -> dict:
    """The weights of the file counted in other ways, as float32 and in bytes."""
    nonzeros = sum(int(np.count_nonzero(w)) for w in weights.values())
    return {
        "paper_model_bytes": 4 * nonzeros,
        "csr_model_bytes": sum(csr_bytes(w) for w in weights.values()),
        "dense_float32_bytes": sum(4 * w.size for w in weights.values()),
    }


def csr_bytes(weights: np.ndarray) -> int:
    """Bytes of compressed sparse rows: float32 values, column indices of 1, 2 or 4 bytes, uint32 row pointers."""
    columns = weights.shape[-1]
    index_bytes = 1 if columns <= 1 << 8 else 2 if columns <= 1 << 16 else 4
    return int(np.count_nonzero(weights)) * (4 + index_bytes) + 4 * (weights.size // columns + 1)
