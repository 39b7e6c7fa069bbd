"""Tables of description lengths from the `report.json` of runs.

For programs (csv, json): one record a run, full numbers, units in the keys. For people (rich, md, latex): one run shows
every code of its text sorted by size; several runs show a row a run. A missing value is an empty cell.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.offline.baselines import BASELINES, CHUNK_BYTES, Baseline
from eval.report.online_tables import PROGRAM, SENT_COSTS, SENT_PARTS, members_block, sent_block, sent_runs_block
from eval.show import blocks
from eval.show.blocks import Block
from eval.show.cells import (
    Column,
    Record,
    checked,
    count,
    decimal,
    in_words,
    new_block,
    percent,
    ratio,
    shorter_codes,
    total,
    verdict,
)
from harness.errors import UsageError
from harness.units import bits_from_bytes, bits_per_byte, bytes_from_bits

_IDEAL_NOTE = "ideal: the sum of the ledger, without settings and program; not a file."
_PROJECTED_NOTE = "projected: model bytes plus data bits/byte of the coded text times the dataset; not a file."
_VERIFIED_NOTE = (
    "verified: a fresh process decoded the file, compared by SHA-256; "
    "-: decoded by the same process, right after coding; "
    "ideal: no file was written, the text counts as the sum of its ideal code lengths."
)
_DEAD_PARTS = {
    "rows": "rows of matrices",
    "columns": "columns",
    "heads": "attention heads",
    "units": "hidden units",
    "channels": "residual channels",
    "weights": "non-zero weights",
}

_WHOLE = [baseline for baseline in BASELINES if baseline.convention == "whole"]
_FIELDS: dict[str, tuple[str, ...]] = {
    **{
        key: ("data", key)
        for key in ("corpus", "train_bytes", "heldout_bytes", "eval_split", "raw_bytes", "chunk_bytes")
    },
    **{f"{baseline.name}_bytes": ("baselines", baseline.name) for baseline in BASELINES},
    **{f"corpus_{baseline.name}_bytes": ("online", "baselines", baseline.name) for baseline in _WHOLE},
    **{key: ("offline", key) for key in ("method", "parameters", "nonzeros", "model_bytes", "tokenizer_bytes")},
    **{key: ("offline", key) for key in ("header_bytes", "checksum_bytes", "data_bytes", "total_bytes")},
    **{f"dead_{part}": ("offline", f"dead_{part}") for part in _DEAD_PARTS},
    **{key: ("offline", key) for key in ("ideal_data_bits", "heldout_ideal_bits", "verified", "sha256")},
    **{key: ("offline", key) for key in ("is_ideal", "encode_seconds", "decode_seconds")},
    "online_ideal_bits": ("online", "ideal_bits"),
    "online_aulc_bits": ("online", "aulc_bits"),
    "online_ideal_bits_per_byte": ("online", "bits_per_byte"),
    "online_ideal_above_final_bits": ("online", "above_final_bits"),
    **{f"online_{key}": ("online", key) for key in ("tokens", "raw_bytes", "code_bytes", "file_bytes", "verified")},
    **{f"online_{part}_bits": ("online", f"{part}_bits") for part in SENT_PARTS},
    **{f"online_{end}_{what}": ("online", f"{end}_{what}") for end in ("send", "receive") for what in SENT_COSTS},
    **{f"projected_{key}": ("projected", key) for key in ("dataset_bytes", "total_bytes")},
    **{key: ("conventions", key) for key in ("paper_model_bytes", "csr_model_bytes", "dense_float32_bytes")},
}
"""Where each key of a flat record stands in the report."""


def load_reports(run_dirs: list[Path]) -> list[dict]:
    """The reports of the runs, smallest dataset first, then by name; raises UsageError where one is missing."""
    return sorted((_load_report(run_dir) for run_dir in run_dirs), key=_order)


def _load_report(run_dir: Path) -> dict:
    path = run_dir / "report.json"
    remedy = f"run `codelength eval {run_dir}`"
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise UsageError(f"{path}: there is no readable report; {remedy}") from None
    except ValueError:
        raise UsageError(f"{path}: the report is damaged; {remedy}") from None
    if not isinstance(report, dict):
        raise UsageError(f"{path}: the report is damaged; {remedy}")
    return {"run": run_dir.name} | report


def _order(report: dict) -> tuple[float, str]:
    train_bytes = _value(report, "data", "train_bytes")
    return (train_bytes if isinstance(train_bytes, int | float) else math.inf, str(report.get("run")))


def render(reports: list[dict], fmt: str, width: int | None = None) -> str:
    """The table of evaluated runs as text ending in a newline; see `eval.show.blocks.render`."""
    return blocks.render(_blocks(reports), [flat_record(report) for report in reports], fmt, width)


def flat_record(report: dict) -> Record:
    """One flat row of full, unrounded values; None where the report has none."""
    record = {"run": report.get("run"), "config_sha256": report.get("config_sha256")}
    record |= {key: _value(report, *path) for key, path in _FIELDS.items()}
    raw_bytes, online_bits = record["raw_bytes"], record["online_ideal_bits"]
    record["total_bits_per_byte"] = _rate(record["total_bytes"], raw_bytes)
    record["data_bits_per_byte"] = _rate(record["data_bytes"], raw_bytes)
    heldout_bits, heldout_bytes = record["heldout_ideal_bits"], record["heldout_bytes"]
    record["heldout_ideal_bits_per_byte"] = (
        None if heldout_bits is None or not heldout_bytes else bits_per_byte(heldout_bits, heldout_bytes)
    )
    record["online_ideal_bytes"] = None if online_bits is None else bytes_from_bits(online_bits)
    return record


def _value(report: dict, *keys: str) -> str | float | bool | None:
    """A text, a truth value or a finite number; anything else counts as missing."""
    value: Any = report
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    is_number = isinstance(value, int | float) and math.isfinite(value)
    expects_text = keys[-1] in ("corpus", "eval_split", "method", "sha256")
    return value if (isinstance(value, str) if expects_text else is_number) else None


def _rate(num_bytes: float | None, raw_bytes: float | None) -> float | None:
    """Bits per byte of raw text."""
    return None if num_bytes is None or not raw_bytes else bits_per_byte(bits_from_bytes(num_bytes), raw_bytes)


def _blocks(reports: list[dict]) -> list[Block]:
    records = [flat_record(report) for report in reports]
    if len(records) == 1:
        sent = [sent_block(records[0])] if records[0]["online_file_bytes"] is not None else []
        online = reports[0].get("online")
        member_bits = online.get("members") if isinstance(online, dict) else None
        members = [members_block(records[0], member_bits)] if member_bits else []
        corpus = [_corpus_block(records[0]), *members, *sent]
        return [_codes_block(records[0]), *corpus, _model_block(records[0])]
    return _runs_blocks(records)


def _codes_block(record: Record) -> Block:
    """Every code of the text of one run, the shortest first."""
    raw_bytes, chunk_bytes = record["raw_bytes"], record["chunk_bytes"] or CHUNK_BYTES
    ours = {key: record[key] for key in ("model_bytes", "data_bytes", "total_bytes")} | {"verified": checked(record)}
    ours |= {"code": f"codelength, {record['method'] or 'offline'}", "is_emphasised": True}
    codes = [ours | {"context": f"{chunk_bytes} B chunk"}, {"code": "raw text", "data_bytes": raw_bytes}]
    for b in BASELINES:
        codes.append({"code": b.program, "context": b.context(chunk_bytes), "data_bytes": record[f"{b.name}_bytes"]})
    codes = [{"total_bytes": code["data_bytes"]} | code for code in codes if code["data_bytes"] is not None]
    for code in codes:
        code["bits_per_byte"] = _rate(code["total_bytes"], raw_bytes)
        code["data_bits_per_byte"] = _rate(code["data_bytes"], raw_bytes)
        code["of_raw"] = ratio(code["total_bytes"], raw_bytes)
    codes.sort(key=lambda code: math.inf if code["total_bytes"] is None else code["total_bytes"])
    columns: list[Column] = [
        ("code", "code", in_words),
        ("coded alone", "context", in_words),
        ("model bytes", "model_bytes", count),
        ("data bytes", "data_bytes", count),
        ("total bytes", "total_bytes", count),
        ("bits/byte", "bits_per_byte", decimal),
        ("data bits/byte", "data_bits_per_byte", decimal),
        ("of raw", "of_raw", percent),
        ("verified", "verified", verdict),
    ]
    parts = [(part, record[f"{part}_bytes"]) for part in ("tokenizer", "header", "checksum")]
    extra = ", ".join(f"{part} {count(size)}" for part, size in parts if size is not None)
    notes = _shorter_than(record, BASELINES)
    notes += [f"The total of codelength includes, in bytes: {extra}."] if extra else []
    text, corpus, run = (in_words(record[key]) for key in ("eval_split", "corpus", "run"))
    title = f"Description length of {text or 'text'}: {count(raw_bytes)} bytes of {corpus} (run {run})"
    return new_block(title, columns, codes, [*notes, _VERIFIED_NOTE])


def _shorter_than(record: Record, baselines: Sequence[Baseline]) -> list[str]:
    """Which of these compressors take fewer bytes for the text of a run."""
    chunk_bytes = record["chunk_bytes"] or CHUNK_BYTES
    return shorter_codes(
        "codelength", record["total_bytes"], {b.label(chunk_bytes): record[f"{b.name}_bytes"] for b in baselines}
    )


def _corpus_block(record: Record) -> Block:
    """Every code of the training corpus of one run, the shortest first; what no file stands behind says so."""
    raw_bytes = record["online_raw_bytes"] or record["train_bytes"]
    online_bytes = record["online_ideal_bytes"] if record["online_file_bytes"] is None else record["online_file_bytes"]
    name, kind = ("online code", "ideal") if record["online_file_bytes"] is None else ("online code as sent", "file")
    own = [
        ("online code", "ideal", record["online_ideal_bytes"], raw_bytes),
        ("online code as sent", "file", record["online_file_bytes"], raw_bytes),
        (f"{name}, with the receiver's program", kind, total(online_bytes, record["online_code_bytes"]), raw_bytes),
        ("offline code", "projected", record["projected_total_bytes"], record["projected_dataset_bytes"]),
    ]
    others = {f"{b.program} / whole file": record[f"corpus_{b.name}_bytes"] for b in _WHOLE}
    rows = [(*row, True) for row in own] + [(other, "file", size, raw_bytes, False) for other, size in others.items()]
    codes = [
        {"code": code, "kind": kind, "raw": raw, "bytes": size, "bits_per_byte": _rate(size, raw)}
        | {"of_raw": ratio(size, raw), "is_emphasised": is_own}
        for code, kind, size, raw, is_own in rows
        if size is not None
    ]
    codes.sort(key=lambda code: code["bytes"])
    program = record["online_code_bytes"]
    notes = [] if program is None else [f"The receiver's program, {count(program)} bytes: {PROGRAM}."]
    columns: list[Column] = [
        ("code", "code", in_words),
        ("kind", "kind", in_words),
        ("raw bytes", "raw", count),
        ("bytes", "bytes", count),
        ("bits/byte", "bits_per_byte", decimal),
        ("of raw", "of_raw", percent),
    ]
    notes = [*shorter_codes(f"the {name}", online_bytes, others), *notes, _IDEAL_NOTE, _PROJECTED_NOTE]
    return new_block(f"Training corpus of {in_words(record['run'])}", columns, codes, notes)


def _model_block(record: Record) -> Block:
    """The same weights under each convention of counting them; only the coded one is a part of a total above."""
    sizes = {
        "coded (in the file)": record["model_bytes"],
        "csr (float32 values and indices)": record["csr_model_bytes"],
        "paper (4 bytes a non-zero, positions free)": record["paper_model_bytes"],
        "dense float32": record["dense_float32_bytes"],
    }
    nonzeros, parameters = record["nonzeros"], record["parameters"]
    rows = [{"name": name, "bytes": size, "rate": ratio(size, nonzeros)} for name, size in sizes.items()]
    columns: list[Column] = [
        ("convention", "name", in_words),
        ("model bytes", "bytes", count),
        ("bytes/non-zero", "rate", decimal),
    ]
    share = percent(ratio(nonzeros, parameters))
    dead = [(record[f"dead_{part}"], name) for part, name in _DEAD_PARTS.items()]
    parts = ", ".join(f"{count(number)} {name}" for number, name in dead if number is not None)
    notes = [f"Without influence on the output, in the blocks: {parts}."] if parts else []
    title = f"Model: {count(parameters)} parameters, {count(nonzeros)} non-zero ({share})"
    return new_block(title, columns, rows, notes)


def _runs_blocks(records: list[Record]) -> list[Block]:
    """A row a run: the file and its text; the training corpus; the other compressors of the text."""
    offline: list[Column] = [
        ("run", "run", in_words),
        ("text", "eval_split", in_words),
        ("method", "method", in_words),
        ("raw bytes", "raw_bytes", count),
        ("model bytes", "model_bytes", count),
        ("data bytes", "data_bytes", count),
        ("total bytes", "total_bytes", count),
        ("bits/byte", "total_bits_per_byte", decimal),
        ("data bits/byte", "data_bits_per_byte", decimal),
        ("verified", "verified", verdict),
    ]
    training: list[Column] = [
        ("run", "run", in_words),
        ("corpus", "corpus", in_words),
        ("dataset bytes", "train_bytes", count),
        ("parameters", "parameters", count),
        ("non-zeros", "nonzeros", count),
        ("online bits/byte (ideal)", "online_ideal_bits_per_byte", decimal),
        ("online bytes (ideal)", "online_ideal_bytes", count),
        ("offline bytes (projected)", "projected_total_bytes", count),
    ]
    sent = [record for record in records if record["online_file_bytes"] is not None]
    return [
        new_block(
            "Offline code of the text",
            offline,
            [record | {"verified": checked(record)} for record in records],
            [_VERIFIED_NOTE],
        ),
        new_block("Model and training corpus", training, records, [_IDEAL_NOTE, _PROJECTED_NOTE]),
        *([sent_runs_block(sent)] if sent else []),
        _others_block("Compressors that code every chunk alone, as codelength does, bytes", records, "chunk"),
        _others_block("Compressors that code the text as one file, bytes", records, "whole"),
    ]


def _others_block(title: str, records: list[Record], convention: str) -> Block:
    """What other compressors take for the texts of several runs, and which of them are shorter."""
    known = [b for b in BASELINES if any(record[f"{b.name}_bytes"] is not None for record in records)]
    shown = [b for b in known if b.convention == convention]
    columns: list[Column] = [("run", "run", in_words), ("raw bytes", "raw_bytes", count)]
    columns += [(b.program, f"{b.name}_bytes", count) for b in shown]
    notes = [f"{in_words(record['run'])}. {note}" for record in records for note in _shorter_than(record, shown)]
    return new_block(title, columns, records, notes)
