"""Tables of description lengths from the `report.json` of runs.

For programs (csv, json): one record a run, full numbers, units in the keys. For people (rich, md, latex): one run shows
every code of its text sorted by size; several runs show a row a run. A missing value is an empty cell.
"""

from collections.abc import Sequence
from dataclasses import replace

from eval.length import KIND_NOTE, Length
from eval.offline.baselines import BASELINES, CHUNK_BYTES, Baseline
from eval.report.online_tables import PROGRAM, members_block, sent_block, sent_runs_block
from eval.report.record import CHARGED, DEAD_PARTS, WHOLE, flat_record, lengths, online_length, with_kind
from eval.show import blocks
from eval.show.blocks import Block
from eval.show.cells import (
    KIND,
    Column,
    Record,
    count,
    decimal,
    in_words,
    length_cells,
    new_block,
    percent,
    ratio,
    shorter_codes,
)

_IDEAL_NOTE = "ideal: the sum of the ledger, without settings and program; not a file."
_PROJECTED_NOTE = "projected: model bytes plus data bits/byte of the coded text times the dataset; not a file."


def render(reports: list[dict], fmt: str, width: int | None = None) -> str:
    """The table of evaluated runs as text ending in a newline; see `eval.show.blocks.render`."""
    return blocks.render(_blocks(reports), [flat_record(report) for report in reports], fmt, width)


def _blocks(reports: list[dict]) -> list[Block]:
    records = [flat_record(report) for report in reports]
    if len(records) > 1:
        return _runs_blocks(records)
    (record,), known, online = records, lengths(records[0]), reports[0].get("online")
    member_bits = online.get("members") if isinstance(online, dict) else None
    members = [members_block(record, member_bits)] if member_bits else []
    sent = [] if record["online_file_bytes"] is None else [sent_block(record, known["online"])]
    return [_codes_block(record, known), _corpus_block(record, known), *members, *sent, _model_block(record, known)]


def _codes_block(record: Record, known: dict[str, Length]) -> Block:
    """Every code of the text of one run, the shortest first."""
    raw_bytes, chunk_bytes = record["raw_bytes"], record["chunk_bytes"] or CHUNK_BYTES
    ours = {"code": f"codelength, {record['method'] or 'offline'}", "is_emphasised": True}
    codes = [(ours | {"context": f"{chunk_bytes} B chunk"}, known.get("offline"))]
    mixed = ours | {"code": f"{ours['code']} + adaptive", "context": "whole file, in order"}
    codes.append((mixed, known.get("adaptive")))
    codes += [({"code": b.program, "context": b.context(chunk_bytes)}, known.get(b.name)) for b in BASELINES]
    rows: list[Record] = [names | length_cells(length, raw_bytes) for names, length in codes if length]
    if raw_bytes is not None:
        rows.append({"code": "raw text"} | length_cells(Length(0, raw_bytes, "decoded"), raw_bytes) | {"kind": "-"})
    rows.sort(key=lambda row: row["total_bytes"])
    columns: list[Column] = [
        ("code", "code", in_words),
        ("coded alone", "context", in_words),
        ("model bytes", "model_bytes", count),
        ("data bytes", "data_bytes", count),
        ("total bytes", "total_bytes", count),
        ("bits/byte", "bits_per_byte", decimal),
        ("data bits/byte", "data_bits_per_byte", decimal),
        ("of raw", "of_raw", percent),
        KIND,
    ]
    parts = [(part, record[f"{part}_bytes"]) for part in ("tokenizer", "header", "checksum")]
    extra = ", ".join(f"{part} {count(size)}" for part, size in parts if size is not None)
    notes = _shorter_than(record, known, BASELINES)
    notes += [f"The total of codelength includes, in bytes: {extra}."] if extra else []
    text, corpus, run = (in_words(record[key]) for key in ("eval_split", "corpus", "run"))
    title = f"Description length of {text or 'text'}: {count(raw_bytes)} bytes of {corpus} (run {run})"
    return new_block(title, columns, rows, [*notes, KIND_NOTE])


def _shorter_than(record: Record, known: dict[str, Length], baselines: Sequence[Baseline]) -> list[str]:
    """Which of these compressors take fewer bytes for the text of a run."""
    chunk_bytes = record["chunk_bytes"] or CHUNK_BYTES
    others = {b.label(chunk_bytes): known[b.name] for b in baselines if b.name in known}
    notes = shorter_codes("codelength", known.get("offline"), others)
    return notes + shorter_codes("codelength + adaptive", known.get("adaptive"), others)


def _corpus_block(record: Record, known: dict[str, Length]) -> Block:
    """Every code of the training corpus of one run, the shortest first; what no file stands behind says so."""
    raw_bytes, online = record["online_raw_bytes"] or record["train_bytes"], known.get("online")
    name = "online code" if record["online_file_bytes"] is None else "online code as sent"
    codes: list[tuple[str, Length | None, float | None, bool]] = [(name, online, raw_bytes, True)]
    if name != "online code":
        codes.append(("online code", online_length(record), raw_bytes, True))
    if online and record["online_code_bytes"] is not None:
        with_program = replace(online, other_bytes=online.other_bytes + record["online_code_bytes"])
        codes.append((f"{name}, with the receiver's program", with_program, raw_bytes, True))
    codes.append(("offline code", known.get("projected"), record["projected_dataset_bytes"], True))
    others = {f"{b.program} / whole file": known[f"corpus_{b.name}"] for b in WHOLE if f"corpus_{b.name}" in known}
    codes += [(other, length, raw_bytes, False) for other, length in others.items()]
    rows: list[Record] = [
        {"code": code, "raw": raw, "is_emphasised": is_own} | length_cells(length, raw)
        for code, length, raw, is_own in codes
        if length
    ]
    rows.sort(key=lambda row: row["total_bytes"])
    program = record["online_code_bytes"]
    notes = [] if program is None else [f"The receiver's program, {count(program)} bytes: {PROGRAM}."]
    notes += [
        f"The online code holds {words}, {count(record[f'online_{key}'])} bytes."
        for key, words in CHARGED.items()
        if record[f"online_{key}"]
    ]
    columns: list[Column] = [
        ("code", "code", in_words),
        KIND,
        ("raw bytes", "raw", count),
        ("bytes", "total_bytes", count),
        ("bits/byte", "bits_per_byte", decimal),
        ("of raw", "of_raw", percent),
    ]
    notes = [*shorter_codes(f"the {name}", online, others), *notes, _IDEAL_NOTE, _PROJECTED_NOTE]
    return new_block(f"Training corpus of {in_words(record['run'])}", columns, rows, notes)


def _model_block(record: Record, known: dict[str, Length]) -> Block:
    """The same weights under each convention of counting them; only the coded one is a part of a total above."""
    is_ideal = "offline" in known and known["offline"].kind == "ideal"
    sizes = {
        f"coded ({'no file was written' if is_ideal else 'in the file'})": record["model_bytes"],
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
    dead = [(record[f"dead_{part}"], name) for part, name in DEAD_PARTS.items()]
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
        KIND,
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
    coded = [(record, lengths(record)) for record in records]
    sent = [(record, known["online"]) for record, known in coded if record["online_file_bytes"] is not None]
    return [
        new_block("Offline code of the text", offline, list(map(with_kind, records)), [KIND_NOTE]),
        new_block("Model and training corpus", training, records, [_IDEAL_NOTE, _PROJECTED_NOTE]),
        *([sent_runs_block(sent)] if sent else []),
        _others_block("Compressors that code every chunk alone, as codelength does, bytes (decoded)", coded, "chunk"),
        _others_block("Compressors that code the text as one file, bytes (decoded)", coded, "whole"),
    ]


def _others_block(title: str, coded: list[tuple[Record, dict[str, Length]]], convention: str) -> Block:
    """What other compressors take for the texts of several runs, and which of them are shorter."""
    shown = [b for b in BASELINES if b.convention == convention and any(b.name in known for _, known in coded)]
    columns: list[Column] = [("run", "run", in_words), ("raw bytes", "raw_bytes", count)]
    columns += [(b.program, f"{b.name}_bytes", count) for b in shown]
    notes = [f"{in_words(r['run'])}. {note}" for r, known in coded for note in _shorter_than(r, known, shown)]
    return new_block(title, columns, [record for record, _ in coded], notes)
