"""The figures of a run, drawn from its ledger, metrics and report."""

import json
from pathlib import Path

import numpy as np

from eval.report.parts import plot_parts
from eval.report.record import WHOLE, flat_record, lengths, load_reports
from eval.show.figures import loss_curve, online_curve, sparsity_per_layer
from harness.data.order import Sequences
from harness.errors import UsageError
from harness.files import read_file
from harness.run.directory import charged_bytes, load_run_config, open_run_data
from harness.run.ledger import read_online_code
from harness.units import bits_from_bytes

FIGURES_DIR = "figures"


def plot_run(run_dir: Path) -> list[Path]:
    """Draw the online curve, the loss curve, the sparsity per layer and the parts of the text; returns the files.

    Raises UsageError where the run is not trained and evaluated yet.
    """
    config = load_run_config(run_dir)
    report = load_reports([run_dir])[0]
    data = open_run_data(run_dir, config)
    train = data.train
    online = read_online_code(run_dir, Sequences(train, config.model.context).num_sequences, train.num_tokens)
    steps, losses, phases = read_metrics(run_dir)
    folder = run_dir / FIGURES_DIR
    folder.mkdir(exist_ok=True)
    paths = [folder / name for name in ("online.png", "loss.png", "sparsity.png")]
    raw_bytes, bits = np.cumsum(online.step_raw_bytes), np.cumsum(online.step_bits)
    charged_bits = bits_from_bytes(sum(charged_bytes(run_dir, data.tokenizer).values()))
    online_curve(paths[0], raw_bytes, bits, baseline_rates(report), charged_bits)
    loss_curve(paths[1], steps, losses, phases)
    tensors = report["offline"]["tensors"]
    sparsity_per_layer(paths[2], list(tensors), [t[0] for t in tensors.values()], [t[1] for t in tensors.values()])
    return [*paths, *plot_parts(run_dir, folder / "parts.png")]


def baseline_rates(report: dict) -> dict[str, float]:
    """Bits per byte of the whole-file compressors: of the corpus itself, or of the coded text where it is too large."""
    known, on_corpus = lengths(flat_record(report)), bool(report["online"]["baselines"])
    prefix, raw_bytes = ("corpus_" if on_corpus else ""), report["online" if on_corpus else "data"]["raw_bytes"]
    suffix = "" if on_corpus else f", rate on {report['data']['eval_split']}"
    return {
        f"{baseline.program}{suffix}": known[f"{prefix}{baseline.name}"].bits_per_byte(raw_bytes)
        for baseline in WHOLE
        if f"{prefix}{baseline.name}" in known
    }


def read_metrics(run_dir: Path) -> tuple[np.ndarray, np.ndarray, list[tuple[str, int]]]:
    """Steps, losses in bits per byte, and the first step of each phase.

    Raises UsageError where metrics.jsonl is missing or damaged.
    """
    path = run_dir / "metrics.jsonl"
    try:
        lines = [json.loads(line) for line in read_file(path).splitlines()]
        steps = np.array([line["step"] for line in lines])
        losses = np.array([line["loss_bits_per_byte"] for line in lines])
        phases: dict[str, int] = {}
        for line in lines:
            phases.setdefault(line["phase"], line["step"])
    except (FileNotFoundError, ValueError, KeyError):
        raise UsageError(f"{path}: missing or damaged; train again") from None
    return steps, losses, list(phases.items())
