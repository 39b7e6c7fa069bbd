"""The online code of a run in its table: the bits of its file, and who predicts."""

from dataclasses import replace

from eval.length import KIND_NOTE, Length
from eval.show.blocks import Block
from eval.show.cells import KIND, Column, Record, count, decimal, in_words, length_cells, new_block, ratio

SENT_PARTS = {
    "prediction": "prediction token by token, by all who predict",
    "quantisation": "probabilities rounded to 24 bits",
    "termination": "ends of the streams",
    "segment": "digests, checksums and lengths of the segments",
    "header": "header, tokenizer and checksum of the file",
    "order": "order and lengths of the documents",
    "start": "weights of an archive that both ends start from",
    "policy": "how much each sequence counts in the updates",
}
"""What the file of an online code adds to the losses of the training steps."""
RARE_PARTS = ("order", "start", "policy")
"""Told where a file has them: most texts are coded in their own order from random weights, and all of them counts."""

PROGRAM = "the sources that receiving runs, bare of docstrings, comments, annotations and checks of settings, by xz -9e"
"""What is counted of a receiver; Python and installed packages are not, as with other compressors."""

SENT_COSTS = ("seconds", "learning_seconds", "memory_bytes")
"""What sending and receiving take: in all, of it for learning, and the memory of all processes at most."""


def sent_block(record: Record, sent: Length) -> Block:
    """How the bits of the file of the online code come about."""
    parts = [("code length by the ledger", record["online_ideal_bits"])]
    parts += [(words, record[f"online_{part}_bits"]) for part, words in SENT_PARTS.items()]
    rare = [SENT_PARTS[part] for part in RARE_PARTS]
    shown = [(words, bits) for words, bits in parts if bits or words not in rare]
    rows = [{"part": words, "bits": bits, "share": ratio(bits, sent.total_bits)} for words, bits in shown]
    rows.append({"part": f"the file, {sent.kind}", "bits": sent.total_bits, "share": 1.0, "is_emphasised": True})
    columns: list[Column] = [
        ("part of the online code", "part", in_words),
        ("bits", "bits", count),
        ("share", "share", lambda share: "" if share is None else f"{100 * share:.3f} %"),
    ]
    costs = [_costs(record, end, word) for end, word in (("send", "sending"), ("receive", "receiving"))]
    return new_block(f"Online code of {in_words(record['run'])} as a file", columns, rows, [KIND_NOTE, *costs])


def _costs(record: Record, end: str, word: str) -> str:
    seconds, learning, memory = (record[f"online_{end}_{what}"] or 0 for what in SENT_COSTS)
    return f"{word}: {seconds:,.0f} s, of which {learning:,.0f} s are training, and {memory / 1e6:,.0f} MB of memory."


def sent_runs_block(sent: list[tuple[Record, Length]]) -> Block:
    """The files of the online codes of several runs, and what both ends took."""
    rows = []
    for record, length in sent:
        row = record | length_cells(length, record["online_raw_bytes"])
        if (program := record["online_code_bytes"]) is not None:
            cells = length_cells(replace(length, other_bytes=program), record["online_raw_bytes"])
            row |= {f"program_{key}": value for key, value in cells.items()}
        for end in ("send", "receive"):
            memory_bytes = record[f"online_{end}_memory_bytes"]
            row[f"{end}_megabytes"] = None if memory_bytes is None else memory_bytes / 1e6
        rows.append(row)
    columns: list[Column] = [
        ("run", "run", in_words),
        ("raw bytes", "online_raw_bytes", count),
        ("file bytes", "total_bytes", count),
        ("bits/byte", "bits_per_byte", decimal),
        ("with program", "program_total_bytes", count),
        ("bits/byte", "program_bits_per_byte", decimal),
        ("sent in s", "online_send_seconds", count),
        ("MB", "send_megabytes", count),
        ("received in s", "online_receive_seconds", count),
        ("MB", "receive_megabytes", count),
        KIND,
    ]
    notes = [f"with program: and the receiver's program, {PROGRAM}."]
    return new_block("Online codes of the training corpora as files", columns, rows, notes)


def members_block(record: Record, member_bits: dict[str, float]) -> Block:
    """What each member of the online code's mixture would take alone, and all of them together."""
    members = {**member_bits, "all of them": record["online_ideal_bits"]}
    rows = [
        {"member": name, "is_emphasised": name == "all of them"}
        | length_cells(Length.ideal(bits), record["online_raw_bytes"])
        for name, bits in sorted(members.items(), key=lambda item: item[1])
    ]
    columns: list[Column] = [
        ("predicts", "member", in_words),
        ("bytes", "total_bytes", count),
        ("bits/byte", "bits_per_byte", decimal),
        KIND,
    ]
    title = f"Who predicts in the online code of {in_words(record['run'])}"
    return new_block(title, columns, rows, ["ideal: sums over the ledger's tokens; not files."])
