"""Tables of description lengths from the `report.json` of runs.

For programs (csv, json): one record a run, full numbers, units in the keys. For people (rich, md, latex): one run shows
every code of its text sorted by size; several runs show a row a run. A missing value is an empty cell.
"""

import csv
import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from eval.baselines import BASELINES, CHUNK_BYTES
from eval.markup import Block, to_latex, to_markdown, to_rich
from harness.errors import UsageError
from harness.units import bits_from_bytes, bits_per_byte, bytes_from_bits

FORMATS = ("rich", "md", "csv", "json", "latex")
_IDEAL_NOTE = "ideal: the sum of the ledger (area under the loss curve), without the sources; not a file."
_PROJECTED_NOTE = "projected: model bytes plus data bits/byte of the coded text times the dataset; not a file."
_VERIFIED_NOTE = (
    "verified: a fresh process decoded the file, compared by SHA-256; "
    "-: decoded by the same process, right after coding."
)

SENT_PARTS = {
    "prediction": "prediction token by token, by all who predict",
    "quantisation": "probabilities rounded to 24 bits",
    "termination": "ends of the streams",
    "segment": "digests, checksums and lengths of the segments",
    "header": "header, tokenizer and checksum of the file",
}
"""What the file of an online code adds to the losses of the training steps."""

SENT_COSTS = ("seconds", "learning_seconds", "memory_bytes")
"""What sending and receiving take: in all, of it for learning, and the memory of all processes at most."""

Record = dict[str, Any]
Column = tuple[str, str, Callable[[Any], str]]
"""Header, key in the record, and how the value is shown; words stand left, numbers right."""

_FIELDS: dict[str, tuple[str, str]] = {
    **{key: ("data", key) for key in ("corpus", "train_bytes", "heldout_bytes", "eval_split", "raw_bytes")},
    **{f"{baseline.name}_bytes": ("baselines", baseline.name) for baseline in BASELINES},
    **{key: ("offline", key) for key in ("method", "parameters", "nonzeros", "model_bytes", "tokenizer_bytes")},
    **{key: ("offline", key) for key in ("header_bytes", "checksum_bytes", "data_bytes", "total_bytes")},
    **{key: ("offline", key) for key in ("ideal_data_bits", "verified", "sha256", "encode_seconds", "decode_seconds")},
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
    return (math.inf if train_bytes is None else train_bytes, str(report.get("run")))


def render(reports: list[dict], fmt: str, width: int | None = None) -> str:
    """The table as text ending in a newline; `width` is in characters (default: the terminal) and only for `rich`.

    Raises UsageError for a format that is not one of `FORMATS`.
    """
    renderers: dict[str, Callable[[], str]] = {
        "rich": lambda: to_rich(_blocks(reports), width),
        "md": lambda: to_markdown(_blocks(reports)),
        "latex": lambda: to_latex(_blocks(reports)),
        "csv": lambda: _csv([flat_record(report) for report in reports]),
        "json": lambda: json.dumps([flat_record(r) for r in reports], indent=2, ensure_ascii=False) + "\n",
    }
    if fmt not in renderers:
        raise UsageError(f"format: {fmt!r} is unknown; choose one of {', '.join(FORMATS)}")
    return renderers[fmt]()


def flat_record(report: dict) -> Record:
    """One flat row of full, unrounded values; None where the report has none."""
    record = {"run": report.get("run"), "config_sha256": report.get("config_sha256")}
    record |= {key: _value(report, *path) for key, path in _FIELDS.items()}
    raw_bytes, online_bits = record["raw_bytes"], record["online_ideal_bits"]
    record["total_bits_per_byte"] = _rate(record["total_bytes"], raw_bytes)
    record["data_bits_per_byte"] = _rate(record["data_bytes"], raw_bytes)
    record["online_ideal_bytes"] = None if online_bits is None else bytes_from_bits(online_bits)
    return record


def _value(report: dict, section: str, key: str) -> str | float | bool | None:
    """A text, a truth value or a finite number; anything else counts as missing."""
    entries = report.get(section)
    value = entries.get(key) if isinstance(entries, dict) else None
    is_number = isinstance(value, int | float) and math.isfinite(value)
    expects_text = key in ("corpus", "eval_split", "method", "sha256")
    return value if (isinstance(value, str) if expects_text else is_number) else None


def _rate(num_bytes: float | None, raw_bytes: float | None) -> float | None:
    """Bits per byte of raw text."""
    return None if num_bytes is None or not raw_bytes else bits_per_byte(bits_from_bytes(num_bytes), raw_bytes)


def _ratio(part: float | None, whole: float | None) -> float | None:
    return None if part is None or not whole else part / whole


def _text(value: Any) -> str:
    return "" if value is None else " ".join(str(value).split())


def _count(value: float | None) -> str:
    return "" if value is None else f"{round(value):,}"


def _decimal(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f} %"


def _verdict(value: bool | None) -> str:
    return "-" if value is None else "yes" if value else "NO"


def _blocks(reports: list[dict]) -> list[Block]:
    records = [flat_record(report) for report in reports]
    if len(records) == 1:
        chunk_bytes = _value(reports[0], "data", "chunk_bytes") or CHUNK_BYTES
        sent = [_sent_block(records[0])] if records[0]["online_file_bytes"] is not None else []
        online = reports[0].get("online")
        member_bits = online.get("members") if isinstance(online, dict) else None
        members = [_members_block(records[0], member_bits)] if member_bits else []
        corpus = [_corpus_block(records[0]), *members, *sent]
        return [_codes_block(records[0], chunk_bytes), *corpus, _model_block(records[0])]
    return _runs_blocks(records)


def _block(title: str, columns: list[Column], records: list[Record], notes: list[str]) -> Block:
    return Block(
        title=title,
        header=[name for name, _, _ in columns],
        is_number=[show is not _text for _, _, show in columns],
        rows=[[show(record.get(key)) for _, key, show in columns] for record in records],
        emphasised_rows=[record.get("is_emphasised", False) for record in records],
        notes=notes,
    )


def _codes_block(record: Record, chunk_bytes: int) -> Block:
    """Every code of the text of one run, the shortest first."""
    raw_bytes = record["raw_bytes"]
    ours = {key: record[key] for key in ("model_bytes", "data_bytes", "total_bytes", "verified")}
    ours |= {"code": f"codelength, {record['method'] or 'offline'}", "is_emphasised": True}
    codes = [ours | {"context": f"{chunk_bytes} B chunk"}, {"code": "raw text", "data_bytes": raw_bytes}]
    for b in BASELINES:
        codes.append({"code": b.program, "context": b.context(chunk_bytes), "data_bytes": record[f"{b.name}_bytes"]})
    codes = [{"total_bytes": code["data_bytes"]} | code for code in codes if code["data_bytes"] is not None]
    for code in codes:
        code["bits_per_byte"] = _rate(code["total_bytes"], raw_bytes)
        code["data_bits_per_byte"] = _rate(code["data_bytes"], raw_bytes)
        code["of_raw"] = _ratio(code["total_bytes"], raw_bytes)
    codes.sort(key=lambda code: math.inf if code["total_bytes"] is None else code["total_bytes"])
    columns: list[Column] = [
        ("code", "code", _text),
        ("coded alone", "context", _text),
        ("model bytes", "model_bytes", _count),
        ("data bytes", "data_bytes", _count),
        ("total bytes", "total_bytes", _count),
        ("bits/byte", "bits_per_byte", _decimal),
        ("data bits/byte", "data_bits_per_byte", _decimal),
        ("of raw", "of_raw", _percent),
        ("verified", "verified", _verdict),
    ]
    parts = [(part, record[f"{part}_bytes"]) for part in ("tokenizer", "header", "checksum")]
    extra = ", ".join(f"{part} {_count(size)}" for part, size in parts if size is not None)
    notes = [f"The total of codelength includes, in bytes: {extra}."] if extra else []
    text, corpus, run = (_text(record[key]) for key in ("eval_split", "corpus", "run"))
    title = f"Description length of {text or 'text'}: {_count(raw_bytes)} bytes of {corpus} (run {run})"
    return _block(title, columns, codes, [*notes, _VERIFIED_NOTE])


def _corpus_block(record: Record) -> Block:
    """What is known about the training corpus of one run; lengths that no file stands behind say so."""
    online_raw_bytes = record["online_raw_bytes"] or record["train_bytes"]
    dataset_bytes = record["projected_dataset_bytes"]
    codes = [
        {"code": "online code", "kind": "ideal", "bytes": record["online_ideal_bytes"], "raw": online_raw_bytes},
        {"code": "compressed sources, which online adds", "kind": "file", "bytes": record["online_code_bytes"]},
        {"code": "online code as sent", "kind": "file", "bytes": record["online_file_bytes"], "raw": online_raw_bytes},
        {"code": "offline code", "kind": "projected", "bytes": record["projected_total_bytes"], "raw": dataset_bytes},
    ]
    codes = [code for code in codes if code["bytes"] is not None]
    for code in codes:
        code["bits_per_byte"] = _rate(code["bytes"], code.get("raw"))
        code["of_raw"] = _ratio(code["bytes"], code.get("raw"))
    columns: list[Column] = [
        ("code", "code", _text),
        ("kind", "kind", _text),
        ("raw bytes", "raw", _count),
        ("bytes", "bytes", _count),
        ("bits/byte", "bits_per_byte", _decimal),
        ("of raw", "of_raw", _percent),
    ]
    return _block(f"Training corpus of {_text(record['run'])}", columns, codes, [_IDEAL_NOTE, _PROJECTED_NOTE])


def _sent_block(record: Record) -> Block:
    """How the bits of the file of the online code come about."""
    parts = [("code length by the ledger", record["online_ideal_bits"])]
    parts += [(words, record[f"online_{part}_bits"]) for part, words in SENT_PARTS.items()]
    file_bits = bits_from_bytes(record["online_file_bytes"])
    rows = [{"part": words, "bits": bits, "share": _ratio(bits, file_bits)} for words, bits in parts]
    rows.append({"part": "the file", "bits": file_bits, "share": 1.0, "is_emphasised": True})
    columns: list[Column] = [
        ("part of the online code", "part", _text),
        ("bits", "bits", _count),
        ("share", "share", lambda share: "" if share is None else f"{100 * share:.3f} %"),
    ]
    verdict = "fresh processes received the file, compared by SHA-256" if record["online_verified"] else "not verified"
    costs = [_costs(record, end, word) for end, word in (("send", "sending"), ("receive", "receiving"))]
    return _block(f"Online code of {_text(record['run'])} as a file", columns, rows, [f"verified: {verdict}.", *costs])


def _costs(record: Record, end: str, word: str) -> str:
    seconds, learning, memory = (record[f"online_{end}_{what}"] or 0 for what in SENT_COSTS)
    return f"{word}: {seconds:,.0f} s, of which {learning:,.0f} s are training, and {memory / 1e6:,.0f} MB of memory."


def _members_block(record: Record, member_bits: dict[str, float]) -> Block:
    """What each member of the online code's mixture would take alone, and all of them together."""
    members = {**member_bits, "all of them": record["online_ideal_bits"]}
    rows = [
        {
            "member": name,
            "bytes": bytes_from_bits(bits),
            "bits_per_byte": bits_per_byte(bits, record["online_raw_bytes"]),
            "is_emphasised": name == "all of them",
        }
        for name, bits in sorted(members.items(), key=lambda item: item[1])
    ]
    columns: list[Column] = [
        ("predicts", "member", _text),
        ("bytes", "bytes", _count),
        ("bits/byte", "bits_per_byte", _decimal),
    ]
    title = f"Who predicts in the online code of {_text(record['run'])}"
    return _block(title, columns, rows, ["ideal: sums over the ledger's tokens; not files."])


def _model_block(record: Record) -> Block:
    """The same weights under each convention of counting them; only the coded one is a part of a total above."""
    sizes = {
        "coded (in the file)": record["model_bytes"],
        "csr (float32 values and indices)": record["csr_model_bytes"],
        "paper (4 bytes a non-zero, positions free)": record["paper_model_bytes"],
        "dense float32": record["dense_float32_bytes"],
    }
    nonzeros, parameters = record["nonzeros"], record["parameters"]
    rows = [{"name": name, "bytes": size, "rate": _ratio(size, nonzeros)} for name, size in sizes.items()]
    columns: list[Column] = [
        ("convention", "name", _text),
        ("model bytes", "bytes", _count),
        ("bytes/non-zero", "rate", _decimal),
    ]
    share = _percent(_ratio(nonzeros, parameters))
    return _block(f"Model: {_count(parameters)} parameters, {_count(nonzeros)} non-zero ({share})", columns, rows, [])


def _runs_blocks(records: list[Record]) -> list[Block]:
    """A row a run: the file and its text; the training corpus; the other compressors of the text."""
    offline: list[Column] = [
        ("run", "run", _text),
        ("text", "eval_split", _text),
        ("method", "method", _text),
        ("raw bytes", "raw_bytes", _count),
        ("model bytes", "model_bytes", _count),
        ("data bytes", "data_bytes", _count),
        ("total bytes", "total_bytes", _count),
        ("bits/byte", "total_bits_per_byte", _decimal),
        ("data bits/byte", "data_bits_per_byte", _decimal),
        ("verified", "verified", _verdict),
    ]
    training: list[Column] = [
        ("run", "run", _text),
        ("corpus", "corpus", _text),
        ("dataset bytes", "train_bytes", _count),
        ("parameters", "parameters", _count),
        ("non-zeros", "nonzeros", _count),
        ("online bits/byte (ideal)", "online_ideal_bits_per_byte", _decimal),
        ("online bytes (ideal)", "online_ideal_bytes", _count),
        ("offline bytes (projected)", "projected_total_bytes", _count),
    ]
    others: list[Column] = [("run", "run", _text), ("raw bytes", "raw_bytes", _count)]
    others += [(f"{b.program} {b.convention}", f"{b.name}_bytes", _count) for b in BASELINES]
    others_note = "chunk: every chunk coded alone, as codelength does; whole: the text as one file."
    return [
        _block("Offline code of the text", offline, records, [_VERIFIED_NOTE]),
        _block("Model and training corpus", training, records, [_IDEAL_NOTE, _PROJECTED_NOTE]),
        _block("Other compressors of the same text, bytes", others, records, [others_note]),
    ]


def _csv(records: list[Record]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=list(flat_record({})), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return out.getvalue()
