"""Methods against data sets: the totals of many runs as a table of each data set and one of the best of each family.

A run's *family* is what its label says before a `+`: `rl1+0.1` and `rl1+0.3` are two members of `rl1`.
"""

from dataclasses import dataclass
from statistics import mean
from typing import Any

from eval.length import KIND_NOTE, Length
from eval.offline.baselines import BASELINES
from eval.report.record import lengths
from eval.show.blocks import Block
from eval.show.cells import KIND, Column, Record, count, decimal, in_words, length_cells, new_block, shorter_codes
from harness.units import bytes_from_bits

_NOTES = [
    "In the tables of single data sets, total: weights as coded in the file plus the text, and what else a file has "
    "(some hundred bytes of header and checksum); csr, paper: the same with weights counted in those conventions (csr: "
    "float32 values, column indices, row pointers; paper: 4 bytes a non-zero, positions free), and data by the weights "
    "of the file, which are rounded.",
    f"{KIND_NOTE} Ideal weights are coded ones.",
    "held-out: ideal bits/byte of text that was not trained on, by the same rebuilt weights.",
    "online: the ideal code of the training text in the first pass over it, the area under the loss curve; not a file.",
]
_WHOLE_BASELINES = {"lzma2_whole", "zstd_whole", "ppmd_whole", "zpaq_whole"}


@dataclass(frozen=True, slots=True)
class Entry:
    """A run in its place."""

    column: str
    """Label of its data set."""
    label: str
    """Label of its method, with the seed where it is a repetition."""
    record: Record
    """Its flat record, see `eval.report.record.flat_record`."""

    @property
    def family(self) -> str:
        """What the label says before a `+`."""
        return family_of(self.member)

    @property
    def member(self) -> str:
        """The label without the seed."""
        return self.label.partition(", seed ")[0]

    @property
    def ideal(self) -> Length:
        """Coded weights and ideal text: what runs are compared by, whether a file was written or not."""
        record = self.record
        data_bytes = bytes_from_bits(record["ideal_data_bits"])
        return Length(record["model_bytes"], data_bytes, "ideal", record["tokenizer_bytes"])

    @property
    def ideal_total_bytes(self) -> float:
        """The same as a number."""
        return self.ideal.total_bytes

    @property
    def is_regularised(self) -> bool:
        """Whether a rule made its weights sparse."""
        return self.record["method"] != "none"


def family_of(label: str) -> str:
    """What the label of a method says before a `+`."""
    return label.partition("+")[0]


def best_of(entries: list[Entry]) -> Entry:
    """The entry with the smallest total."""
    return min(entries, key=lambda entry: entry.ideal_total_bytes)


def winners(entries: list[Entry]) -> list[Entry]:
    """For each data set, the best of each regularised family and the best of all without a rule."""
    rivals: dict[tuple[str, str | None], list[Entry]] = {}
    for entry in entries:
        rivals.setdefault((entry.column, entry.family if entry.is_regularised else None), []).append(entry)
    return [best_of(own) for own in rivals.values()]


def mean_total_bytes(entries: list[Entry]) -> float:
    """Mean over seeds of the member of a family that was repeated, else the smallest total.

    The smallest of several seeds would favour what was repeated over what was not.
    """
    members = _by_member(entries)
    repeated = max(map(len, members))
    return min(mean(entry.ideal_total_bytes for entry in own) for own in members if len(own) == repeated)


def _by_member(entries: list[Entry]) -> list[list[Entry]]:
    by_name: dict[str, list[Entry]] = {}
    for entry in entries:
        by_name.setdefault(entry.member, []).append(entry)
    return list(by_name.values())


def families(entries: list[Entry]) -> dict[str, list[Entry]]:
    """Entries by family, in the order in which families first occur."""
    by_name: dict[str, list[Entry]] = {}
    for entry in entries:
        by_name.setdefault(entry.family, []).append(entry)
    return by_name


def column_block(column: str, entries: list[Entry]) -> Block:
    """Every run of a data set and the other compressors of the same text, the shortest first."""
    best = best_of(entries)
    records = [_row(entry) | {"is_emphasised": entry is best} for entry in entries]
    raw_bytes, chunk_bytes, known = best.record["raw_bytes"], best.record["chunk_bytes"], lengths(best.record)
    others = {
        baseline.label(chunk_bytes): known[baseline.name]
        for baseline in BASELINES
        if baseline.convention == "chunk" or baseline.name in _WHOLE_BASELINES
        if baseline.name in known
    }
    records += [{"code": code} | length_cells(length, raw_bytes) for code, length in others.items()]
    records.sort(key=lambda record: record["total_bytes"])
    columns: list[Column] = [
        ("code", "code", in_words),
        ("parameters", "parameters", count),
        ("non-zeros", "nonzeros", count),
        ("weights bytes", "model_bytes", count),
        ("data bytes", "data_bytes", count),
        ("total bytes", "total_bytes", count),
        ("total csr", "csr", count),
        ("total paper", "paper", count),
        ("bits/byte", "bits_per_byte", decimal),
        ("held-out bits/byte (ideal)", "heldout", decimal),
        ("online bytes (ideal)", "online", count),
        KIND,
    ]
    notes = shorter_codes(best.label, known["offline"], others)
    return new_block(f"{column}: {count(raw_bytes)} bytes to describe", columns, records, notes)


def summary_block(entries: list[Entry], published: dict[str, list[float]]) -> Block:
    """The best total of each family for each data set, in kB; `published` are totals by family in the same order."""
    columns = list(dict.fromkeys(entry.column for entry in entries))
    rows: list[Record] = []
    for family, members in families(entries).items():
        row: Record = {"code": family, "kind": members[0].ideal.kind}
        for index, column in enumerate(columns):
            of_column = [entry for entry in members if entry.column == column]
            row[column] = mean_total_bytes(of_column) / 1000 if of_column else None
            row[f"paper {column}"] = min((_paper_kilobytes(own) for own in _by_member(of_column)), default=None)
            row[f"published {column}"] = published[family][index] if family in published else None
        rows.append(row)
    for column in columns:
        smallest = min(row[column] for row in rows if row[column] is not None)
        for row in rows:
            row["is_emphasised"] = row.get("is_emphasised", False) or row[column] == smallest
    rows += _baseline_rows(entries, columns, published)
    shown: list[Column] = [("code", "code", in_words), KIND]
    for prefix, title in (("", "kB"), ("paper ", "kB, paper"), ("published ", "MB, published")):
        shown += [(f"{column} {title}", f"{prefix}{column}", _kilo) for column in columns]
    notes = [
        "kB: weights as coded plus ideal data, of the best member of each family the mean over its seeds; paper: "
        "the smallest mean of a member in that convention.",
        "bold: families with the smallest total of a data set, weights as coded.",
        *_NOTES,
    ]
    return new_block("The best of each family", shown, rows, notes)


def _row(entry: Entry) -> Record:
    record, length = entry.record, lengths(entry.record)["offline"]
    # All of a file that is not weights counts as data here, so that totals of both kinds are of the same things.
    other = length.total_bytes - length.model_bytes
    return length_cells(length, record["raw_bytes"]) | {
        "code": entry.label,
        "parameters": record["parameters"],
        "nonzeros": record["nonzeros"],
        "csr": record["csr_model_bytes"] + other,
        "paper": record["paper_model_bytes"] + other,
        "heldout": record["heldout_ideal_bits_per_byte"],
        "online": record["online_ideal_bytes"],
    }


def _paper_kilobytes(seeds: list[Entry]) -> float:
    """Mean total of a member in that convention."""
    others = (entry.ideal_total_bytes - entry.record["model_bytes"] for entry in seeds)
    weights = (entry.record["paper_model_bytes"] for entry in seeds)
    return mean(map(sum, zip(weights, others, strict=True))) / 1000


def _baseline_rows(entries: list[Entry], columns: list[str], published: dict[str, list[float]]) -> list[dict[str, Any]]:
    rows = []
    known = [lengths(next(entry.record for entry in entries if entry.column == column)) for column in columns]
    for baseline in BASELINES:
        row: Record = {"code": baseline.label(entries[0].record["chunk_bytes"])}
        for index, column in enumerate(columns):
            length = known[index].get(baseline.name)
            row[column] = length and length.total_bytes / 1000
            row["kind"] = length.kind if length else row.get("kind")
            row[f"published {column}"] = published[baseline.name][index] if baseline.name in published else None
        if any(row[column] is not None for column in columns):
            rows.append(row)
    return rows


def _kilo(value: float | None) -> str:
    return "" if value is None else f"{value:,.1f}" if value < 1000 else f"{value:,.0f}"
