"""The parts of a run's text: what each takes in the online code, when it was read, and its rate on held-out text."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from eval.codec.permutation import DocumentOrder
from eval.length import Length
from eval.show.blocks import render
from eval.show.cells import Column, Record, count, decimal, in_words, length_cells, new_block, percent
from eval.show.figures import PartCurve, parts_figure
from eval.weights.trained import load_weights
from harness.config.run import RunConfig
from harness.corpus.prepared import Data
from harness.data.ado import fitted
from harness.data.order import Sequences
from harness.data.parts import Parts
from harness.errors import UsageError
from harness.model.transformer import Transformer, token_nats
from harness.run.directory import charged_bytes, check_done, load_run_config, open_run_data
from harness.run.ledger import read_rows
from harness.units import bits_from_nats, bits_per_byte

_ROWS_PER_FORWARD = 16
_BINS = 60
_FITTED_FRACTION = 0.5
_ORDER_NOTE = "order: that of the documents and their lengths, as a file of the online code holds them."
_IDEAL_NOTE = "ideal: sums over the ledger's tokens; not files. Held out: the final float32 weights, in sequences."


@dataclass(frozen=True, slots=True)
class FirstVisits:
    """What a run read for the first time, a row for each sequence or part of one (n,), in the order of steps."""

    step: np.ndarray
    part: np.ndarray
    """Index of its part."""
    tokens: np.ndarray
    raw_bytes: np.ndarray
    nats: np.ndarray
    """Losses of training."""
    code_nats: np.ndarray
    """What the online code takes."""


def render_parts(run_dirs: list[Path], fmt: str) -> str:
    """The table of the parts of trained runs; see `eval.show.blocks.render`.

    Raises UsageError where a run is not trained, or its text has no parts.
    """
    records = [record for run_dir in run_dirs for record in part_records(run_dir)]
    columns: list[Column] = [
        *([("run", "run", in_words)] if len(run_dirs) > 1 else []),
        ("part", "part", in_words),
        ("raw bytes", "raw_bytes", count),
        ("share", "share", percent),
        ("first quarter", "share_of_first_quarter", percent),
        ("last quarter", "share_of_last_quarter", percent),
        ("online bytes", "online_bytes", count),
        *([("of them the order", "order_bytes", count)] if any(r["order_bytes"] for r in records) else []),
        ("bits/byte", "online_bits_per_byte", decimal),
        ("held-out bits/byte", "heldout_bits_per_byte", decimal),
        ("kind", "kind", in_words),
    ]
    rows: list[Record] = [record | {"is_emphasised": record["part"] == "all"} for record in records]
    title = f"Parts of {in_words(records[0]['run'])}" if len(run_dirs) == 1 else "Parts of the training corpora"
    notes = ["share: of what is read, of all steps and of those of each quarter of the epoch.", _IDEAL_NOTE]
    if any(record["order_bytes"] for record in records):
        notes.append(_ORDER_NOTE)
    return render([new_block(title, columns, rows, notes)], records, fmt)


def part_records(run_dir: Path) -> list[Record]:
    """Measure each part of a run's text, and all of them together, in full numbers.

    Raises UsageError where it is not trained, or its text has no parts.
    """
    config = load_run_config(run_dir)
    check_done(run_dir)
    data = open_run_data(run_dir, config)
    parts, heldout = parts_of(run_dir, data), data.heldout.parts
    assert heldout is not None
    rows = first_visits(run_dir, parts, config.model.context)
    held_nats, held_bytes = heldout_nats(run_dir, config, data)
    place = heldout.of_sequences(np.arange(len(held_nats)), config.model.context)
    order = data.train.order
    order_bytes = 0 if order is None else len(DocumentOrder(order, data.train.document_lengths).to_bytes())
    charged = sum(charged_bytes(run_dir, data.tokenizer).values())
    # Quarters of what is read, whatever the sizes of the steps.
    quarter = np.minimum(4 * (np.cumsum(rows.raw_bytes) - 1) // rows.raw_bytes.sum(), 3)
    records = []
    for index, name in enumerate([*parts.names, "all"]):
        own, held = (rows.part == index, place == index) if name != "all" else (rows.part >= 0, place >= 0)
        raw_bytes, area = int(rows.raw_bytes[own].sum()), Length.ideal(bits_from_nats(float(rows.code_nats[own].sum())))
        own_order = order_bytes if name == "all" else 0
        length = replace(area, other_bytes=own_order + charged if name == "all" else 0)
        shares = [_share(rows.raw_bytes, own, quarter == number) for number in (0, 3)]
        records.append(
            {
                "run": config.name,
                "part": name,
                "raw_bytes": raw_bytes,
                "share": raw_bytes / int(rows.raw_bytes.sum()),
                "share_of_first_quarter": shares[0],
                "share_of_last_quarter": shares[1],
                "online_bytes": length_cells(length, raw_bytes)["total_bytes"],
                "order_bytes": own_order,
                "online_bits_per_byte": length.bits_per_byte(raw_bytes) if raw_bytes else None,
                "heldout_bytes": int(held_bytes[held].sum()),
                "heldout_bits_per_byte": bits_per_byte(
                    bits_from_nats(float(held_nats[held].sum())), int(held_bytes[held].sum())
                )
                if held.any()
                else None,
                "kind": "ideal",
            }
        )
    return records


def plot_parts(run_dir: Path, path: Path) -> list[Path]:
    """Draw shares and losses of the parts over what was read, with laws and their forecasts, as the PNG `path`.

    Returns the files that it drew: none where the text has no parts.
    """
    curves = curves_of_parts(run_dir)
    if curves:
        parts_figure(path, curves)
    return [path] if curves else []


def curves_of_parts(run_dir: Path) -> list[PartCurve]:
    """Read shares and losses of each part of a run's text from its ledger; none where the text has no parts."""
    config = load_run_config(run_dir)
    parts = open_run_data(run_dir, config).train.parts
    return [] if parts is None else part_curves(first_visits(run_dir, parts, config.model.context), parts)


def part_curves(rows: FirstVisits, parts: Parts) -> list[PartCurve]:
    """Shares and losses of each part over what was read, and the law of the first half of it with its forecast."""
    read = np.cumsum(rows.raw_bytes)
    edges = np.linspace(0, read[-1], min(_BINS, len(read)) + 1)
    bins = np.clip(np.searchsorted(edges, read, side="left") - 1, 0, len(edges) - 2)
    shape = (len(parts.names), len(edges) - 1)
    raw_bytes, nats = (_sums(rows.part, bins, values, shape) for values in (rows.raw_bytes, rows.nats))
    shares = raw_bytes / np.maximum(raw_bytes.sum(axis=0), 1)
    losses = np.divide(bits_from_nats(nats), raw_bytes, out=np.full(shape, np.nan), where=raw_bytes > 0)
    places = (edges[1:] + edges[:-1]) / 2
    curves = []
    for name, own_shares, own_losses in zip(parts.names, shares, losses, strict=True):
        known = np.isfinite(own_losses) & (places < _FITTED_FRACTION * read[-1])
        law = None
        if known.sum() >= 5:
            # Bins are means already.
            law = np.asarray(fitted(places[known], own_losses[known, None], window=1, every=1)[0].at(places))
        curves.append(PartCurve(name, places, own_shares, own_losses, law, _FITTED_FRACTION * read[-1]))
    return curves


def first_visits(run_dir: Path, parts: Parts, context: int) -> FirstVisits:
    """Read what a run read for the first time from its ledger; raises UsageError where it is missing or damaged."""
    columns = ["step", "sequence", "epoch", "num_tokens", "raw_bytes", "nats_sum", "code_nats_sum"]
    tables = list(read_rows(run_dir, columns))
    rows = {name: np.concatenate([table[name].to_numpy() for table in tables]) for name in columns}
    order = np.flatnonzero(rows["epoch"] == 0)
    order = order[np.argsort(rows["step"][order], kind="stable")]
    rows = {name: values[order] for name, values in rows.items()}
    coded = rows["code_nats_sum"].astype(np.float64)
    return FirstVisits(
        step=rows["step"],
        part=parts.of_sequences(rows["sequence"], context),
        tokens=rows["num_tokens"],
        raw_bytes=rows["raw_bytes"],
        nats=rows["nats_sum"],
        code_nats=np.where(np.isnan(coded), rows["nats_sum"], coded),
    )


def heldout_nats(run_dir: Path, config: RunConfig, data: Data) -> tuple[np.ndarray, np.ndarray]:
    """Measure each sequence of the held-out text under the final weights, in float32: its nats and its bytes (n,)."""
    weights, _ = load_weights(run_dir, config, data.tokenizer.vocab_size)
    model = Transformer(config.model, data.tokenizer.vocab_size).eval()
    model.load_state_dict({name: torch.from_numpy(tensor) for name, tensor in weights.items()})
    sequences, nats, raw_bytes = Sequences(data.heldout, config.model.context), [], []
    with torch.inference_mode():
        for start in range(0, sequences.num_sequences, _ROWS_PER_FORWARD):
            tokens, mask = sequences.read(np.arange(start, min(start + _ROWS_PER_FORWARD, sequences.num_sequences)))
            losses = token_nats(model, torch.from_numpy(tokens), torch.float32).numpy()
            nats.append(np.where(mask, losses, 0.0).sum(axis=1, dtype=np.float64))
            raw_bytes.append((data.tokenizer.token_bytes[tokens] * mask).sum(axis=1))
    return np.concatenate(nats), np.concatenate(raw_bytes)


def parts_of(run_dir: Path, data: Data) -> Parts:
    """The parts of a run's text; raises UsageError where it has none."""
    if data.train.parts is None:
        raise UsageError(f"{run_dir}: its text has no parts; corpus.parts names them, or leave --by part out")
    return data.train.parts


def _share(raw_bytes: np.ndarray, own: np.ndarray, within: np.ndarray) -> float | None:
    total = raw_bytes[within].sum()
    return float(raw_bytes[own & within].sum() / total) if total else None


def _sums(part: np.ndarray, bins: np.ndarray, values: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    flat = np.bincount(part * shape[1] + bins, weights=values, minlength=shape[0] * shape[1])
    return flat.reshape(shape)
