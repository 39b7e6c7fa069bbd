"""Every code length that is printed says what it is worth, and nothing that was not decoded says that it was."""

import pytest

from eval.crossover.crossing import archive_length
from eval.length import Length
from eval.offline.baselines import BASELINES
from eval.report.comparison import Entry, column_block, summary_block
from eval.report.record import flat_record, lengths
from eval.report.run_tables import render
from eval.show import blocks
from tests.support.kinds import tables, unlabelled
from tests.support.reports import report

OTHERS = {b.name: 1_300_000 + 1000 * i for i, b in enumerate(BASELINES) if b.convention == "whole"}
ONLINE = {"baselines": OTHERS, "members": {"transformer": 1.5e7, "order 2": 2.1e7}}
SENT = ONLINE | {"file_bytes": 1_138_355} | {f"{part}_bits": 9.0 for part in ("prediction", "header")}
FILE = report(run="file", online=SENT | {"verified": True})
# Nothing but a plain `true` in the report is a proof.
UNPROVED = [{"verified": value} for value in (False, None, 1, "yes")] + [{"verified": True, "is_ideal": True}]


def unproved(offline: dict) -> dict:
    return report(offline=offline, online=SENT | {"verified": None}, data={"chunk_bytes": 512})


def compared(*reports: dict) -> str:
    entries = [
        Entry("a", f"rl1+{number}", flat_record(found | {"data": found["data"] | {"chunk_bytes": 512}}))
        for number, found in enumerate(reports)
    ]
    return blocks.render([summary_block(entries, {"rl1": [1]}), column_block("a", entries)], [], "md")


@pytest.mark.parametrize("reports", [[FILE], [unproved(UNPROVED[0])], [unproved(UNPROVED[-1])], [FILE, report()]])
def test_every_length_in_the_table_of_runs_and_in_a_comparison_has_a_kind(reports):
    text = render(reports, "md")
    assert len(tables(text)) >= 4 and unlabelled(text) == []
    text = compared(*reports)
    assert len(tables(text)) == 2 and unlabelled(text) == []


def test_the_search_for_missing_kinds_finds_them():
    text = "**t**\n\n| code | kind | bytes |\n| :-- | :-- | --: |\n| a | ideal | 1 |\n| b | file | 2 |\n| c |  | 3 |\n"
    assert unlabelled(text) == ["t: bytes: b", "t: bytes: c"]
    text = "**t**\n\n| quantity | text |\n| :--- | ---: |\n| data, bits/byte | 2.5 (ideal) |\n| rest, bytes | 7 |\n"
    assert unlabelled(text) == ["t: text: rest, bytes"]


@pytest.mark.parametrize("offline", UNPROVED)
def test_what_was_not_decoded_is_never_called_so(offline):
    doubtful = unproved(offline)
    known = lengths(flat_record(doubtful))
    kind = "ideal" if "is_ideal" in offline else "coded"
    assert known["offline"].kind == archive_length(doubtful).kind == kind and known["online"].kind == "coded"
    for text in (render([doubtful], "md"), render([doubtful] * 2, "md"), compared(doubtful)):
        own = [row for rows in tables(text).values() for row in rows if not others(row)]
        kinds = [row["kind"] for row in own if "kind" in row]
        assert kind in kinds and "decoded" not in kinds


def others(row: dict[str, str]) -> bool:
    """Whether it is a row of another compressor."""
    return any(cell.split(" /")[0] in {b.program for b in BASELINES} for cell in row.values())


def test_the_parts_of_a_length_are_those_of_its_report():
    known = lengths(flat_record(FILE))
    assert known["offline"] == Length(98_231, 72_011, "decoded", 576)
    assert known["projected"].total_bytes == 1_703_661 and known["projected"].kind == "projected"
    assert known["corpus_bz2_whole"] == Length(0, OTHERS["bz2_whole"], "decoded")
    assert lengths(flat_record({"offline": {"total_bytes": 5, "verified": True}})) == {}
