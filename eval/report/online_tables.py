"""The online code of a run in its table: the bits of its file, and who predicts."""

from eval.show.blocks import Block
from eval.show.cells import Column, Record, count, decimal, in_words, new_block, ratio, total, verdict
from harness.units import bits_from_bytes, bits_per_byte, bytes_from_bits

SENT_PARTS = {
    "prediction": "prediction token by token, by all who predict",
    "quantisation": "probabilities rounded to 24 bits",
    "termination": "ends of the streams",
    "segment": "digests, checksums and lengths of the segments",
    "header": "header, tokenizer and checksum of the file",
}
"""What the file of an online code adds to the losses of the training steps."""

PROGRAM = "the sources that receiving runs, bare of docstrings, comments, annotations and words of errors, by xz -9e"
"""What is counted of a receiver; Python and installed packages are not, as with other compressors."""

SENT_COSTS = ("seconds", "learning_seconds", "memory_bytes")
"""What sending and receiving take: in all, of it for learning, and the memory of all processes at most."""


def sent_block(record: Record) -> Block:
    """How the bits of the file of the online code come about."""
    parts = [("code length by the ledger", record["online_ideal_bits"])]
    parts += [(words, record[f"online_{part}_bits"]) for part, words in SENT_PARTS.items()]
    file_bits = bits_from_bytes(record["online_file_bytes"])
    rows = [{"part": words, "bits": bits, "share": ratio(bits, file_bits)} for words, bits in parts]
    rows.append({"part": "the file", "bits": file_bits, "share": 1.0, "is_emphasised": True})
    columns: list[Column] = [
        ("part of the online code", "part", in_words),
        ("bits", "bits", count),
        ("share", "share", lambda share: "" if share is None else f"{100 * share:.3f} %"),
    ]
    is_verified = record["online_verified"]
    verdict = "fresh processes received the file, compared by SHA-256" if is_verified else "not verified"
    costs = [_costs(record, end, word) for end, word in (("send", "sending"), ("receive", "receiving"))]
    return new_block(
        f"Online code of {in_words(record['run'])} as a file", columns, rows, [f"verified: {verdict}.", *costs]
    )


def _costs(record: Record, end: str, word: str) -> str:
    seconds, learning, memory = (record[f"online_{end}_{what}"] or 0 for what in SENT_COSTS)
    return f"{word}: {seconds:,.0f} s, of which {learning:,.0f} s are training, and {memory / 1e6:,.0f} MB of memory."


def sent_runs_block(records: list[Record]) -> Block:
    """The files of the online codes of several runs, and what both ends took."""
    rows = []
    for record in records:
        size, raw_bytes = record["online_file_bytes"], record["online_raw_bytes"]
        with_program = total(size, record["online_code_bytes"])
        row = record | {"file_bits_per_byte": bits_per_byte(bits_from_bytes(size), raw_bytes)}
        row |= {"with_program": with_program}
        if with_program is not None:
            row["program_bits_per_byte"] = bits_per_byte(bits_from_bytes(with_program), raw_bytes)
        for end in ("send", "receive"):
            memory_bytes = record[f"online_{end}_memory_bytes"]
            row[f"{end}_megabytes"] = None if memory_bytes is None else memory_bytes / 1e6
        rows.append(row)
    columns: list[Column] = [
        ("run", "run", in_words),
        ("raw bytes", "online_raw_bytes", count),
        ("file bytes", "online_file_bytes", count),
        ("bits/byte", "file_bits_per_byte", decimal),
        ("with program", "with_program", count),
        ("bits/byte", "program_bits_per_byte", decimal),
        ("sent in s", "online_send_seconds", count),
        ("MB", "send_megabytes", count),
        ("received in s", "online_receive_seconds", count),
        ("MB", "receive_megabytes", count),
        ("verified", "online_verified", verdict),
    ]
    notes = [f"with program: and the receiver's program, {PROGRAM}."]
    return new_block("Online codes of the training corpora as files", columns, rows, notes)


def members_block(record: Record, member_bits: dict[str, float]) -> Block:
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
        ("predicts", "member", in_words),
        ("bytes", "bytes", count),
        ("bits/byte", "bits_per_byte", decimal),
    ]
    title = f"Who predicts in the online code of {in_words(record['run'])}"
    return new_block(title, columns, rows, ["ideal: sums over the ledger's tokens; not files."])
