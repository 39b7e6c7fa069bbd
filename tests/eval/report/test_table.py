"""Tables: honest order, labelled projections, full numbers for programs, nothing that a name could break."""

import csv
import io
import json
import math
import re

import pytest

from eval.report.record import flat_record, load_reports
from eval.report.run_tables import render
from eval.show.blocks import FORMATS
from harness.errors import UsageError
from tests.support.reports import REPORT, SIZES, report

FOR_PEOPLE = ("rich", "md", "latex")


def save(path, content) -> None:
    path.mkdir()
    (path / "report.json").write_text(content if isinstance(content, str) else json.dumps(content))


def test_runs_are_sorted_by_dataset_size_then_name(tmp_path):
    for name, train_bytes in (("z", 300), ("b", 1200), ("a", 1200), ("unknown", None)):
        save(tmp_path / name, report(run=name, data={"train_bytes": train_bytes}))
    loaded = load_reports([tmp_path / name for name in ("a", "unknown", "b", "z")])
    assert [r["run"] for r in loaded] == ["z", "a", "b", "unknown"]


def test_a_run_without_a_readable_report_is_named_with_the_remedy(tmp_path):
    (tmp_path / "new").mkdir()
    save(tmp_path / "cut", '{"run": "cu')
    save(tmp_path / "list", "[1, 2]")
    (tmp_path / "binary").mkdir()
    (tmp_path / "binary" / "report.json").write_bytes(b"\xff\xfe\x00")
    for name in ("new", "cut", "list", "binary", "absent"):
        with pytest.raises(UsageError) as caught:
            load_reports([tmp_path / name])
        assert f"run `codelength eval {tmp_path / name}`" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_every_code_of_one_run_stands_in_order_of_size():
    lines = render([REPORT], "md").splitlines()
    rows = [[cell.strip(" *") for cell in line.split("|")[1:-1]] for line in lines]
    codes = [row for row in rows if len(row) == 9 and row[4].replace(",", "").isdigit()]
    totals = [int(row[4].replace(",", "")) for row in codes]
    assert totals == sorted([*SIZES.values(), 170_818, 256_000])
    # After seven whole-file compressors and three chunked ones.
    assert [row[0] for row in codes].index("codelength, rl1") == 10
    ours = codes[10]
    assert ours[1:] == ["512 B chunk", "98,231", "72,011", "170,818", "5.338", "2.250", "66.7 %", "decoded"]
    assert {row[1] for row in codes} == {"512 B chunk", "whole file", ""}


def test_what_is_shorter_than_ours_is_named_in_words():
    text = render([REPORT], "md")
    (line,) = [line for line in text.splitlines() if line.startswith("- Shorter than codelength")]
    shorter = line.partition(": ")[2].rstrip(".").split("; ")
    assert shorter[0] == "zpaq -m5 / whole file, by 62.5 %" and shorter[-1] == "PPMd order 5 / 512 B chunk, by 11.4 %"
    assert len(shorter) == 10
    for reports, words in (
        ([report(offline={"total_bytes": 64_114})], "Shorter than codelength: none of the other compressors."),
        ([REPORT] * 2, "demo. Shorter than codelength: zpaq -m5 / whole file, by 62.5 %; PPMd order 12 / whole"),
        ([REPORT] * 2, "demo. Shorter than codelength: zstd -19 with dictionary / 512 B chunk, by 29.2 %; brotli"),
    ):
        assert words in render(reports, "md")
    # Nothing is claimed without a total, or without anybody to compare with.
    for missing in (report(offline={"total_bytes": None}), report(baselines=dict.fromkeys(SIZES))):
        assert "Shorter than codelength" not in render([missing], "md")


def corpus_rows(text: str) -> dict[str, list[str]]:
    """Rows of the table of the training corpus, by code."""
    lines = text[text.index("Training corpus of") :].split("\n\n")[1].splitlines()[2:]
    rows = [[cell.strip(" *") for cell in line.split("|")[1:-1]] for line in lines]
    return {row[0]: row[1:] for row in rows}


def test_the_corpus_is_beside_other_compressors_and_the_program_of_its_receiver():
    others = {"ppmd_whole": 1_291_715, "lzma2_whole": 1_530_256, "zpaq_whole": 1_179_151}
    ideal = report(online={"code_bytes": 47_644, "baselines": others})
    rows = corpus_rows(render([ideal], "md"))
    assert list(rows)[:3] == ["zpaq -m5 / whole file", "PPMd order 12 / whole file", "xz -9e / whole file"]
    assert rows["online code, with the receiver's program"][:3] == ["ideal", "5,707,324", "1,859,719"]
    assert "Shorter than the online code: zpaq -m5 / whole file, by 34.9 %; PPMd" in render([ideal], "md")

    sent = report(online={"code_bytes": 47_644, "baselines": others, "file_bytes": 1_138_355, "verified": True})
    rows = corpus_rows(render([sent], "md"))
    assert list(rows)[:3] == [
        "online code as sent",
        "zpaq -m5 / whole file",
        "online code as sent, with the receiver's program",
    ]
    assert rows["online code as sent, with the receiver's program"][:4] == [
        "decoded",
        "5,707,324",
        "1,185,999",
        "1.662",
    ]
    assert "Shorter than the online code as sent: none of the other compressors." in render([sent], "md")
    assert json.loads(render([sent], "json"))[0]["corpus_zpaq_whole_bytes"] == 1_179_151
    text = render([report(run="plain"), sent], "md")
    (row,) = [line for line in text.splitlines() if "1,138,355" in line]
    assert "| 1,138,355 | 1.596 | 1,185,999 | 1.662 |" in row


def test_the_chunk_of_the_report_is_the_one_that_is_named():
    assert "256 B chunk" in render([report(data={"chunk_bytes": 256})], "md")


@pytest.mark.parametrize("fmt", FOR_PEOPLE)
@pytest.mark.parametrize("count", [1, 2])
def test_what_is_not_a_file_is_labelled(fmt, count):
    # However wide the terminal is, and wherever lines break for it.
    text = " ".join(render([REPORT] * count, fmt).split())
    assert "projected: model bytes plus" in text
    assert "ideal: the sum of the ledger" in text
    assert "not a file" in text
    assert "1,703,661" in text
    assert f"{14_496_602 / 8:,.0f}" in text


@pytest.mark.parametrize("fmt", FOR_PEOPLE)
@pytest.mark.parametrize(("verified", "shown"), [(True, "decoded"), (False, "coded"), (None, "coded"), (1, "coded")])
def test_what_does_not_decode_says_so(fmt, verified, shown):
    text = render([report(offline={"verified": verified})] * 2, fmt)
    row = next(line for line in text.splitlines() if "98,231" in line)
    assert re.split(r"[\s|&]+", row.rstrip(" |\\"))[-1].strip("{}") == shown


def test_csv_and_json_carry_full_numbers_under_keys_with_units():
    (record,) = json.loads(render([REPORT], "json"))
    (row,) = csv.DictReader(io.StringIO(render([REPORT], "csv")))
    assert list(row) == list(record) == list(flat_record({}))
    assert record["online_ideal_bits_per_byte"] == 2.5400000012345 == float(row["online_ideal_bits_per_byte"])
    assert record["online_ideal_bits"] == 14_496_602.0625
    assert record["total_bits_per_byte"] == 8 * 170_818 / 256_000
    assert record["data_bits_per_byte"] == 8 * 72_011 / 256_000
    assert {name: record[f"{name}_bytes"] for name in SIZES} == SIZES
    assert record["verified"] is True
    units = ("_bytes", "_bits", "_per_byte", "_seconds", "_sha256")
    unitless = {key for key in record if not key.endswith(units)}
    assert unitless == {
        *("run", "corpus", "eval_split", "method", "parameters", "nonzeros", "verified", "sha256", "is_ideal"),
        *("online_tokens", "online_verified", "adaptive_verified"),
        *(f"dead_{part}" for part in ("rows", "columns", "heads", "units", "channels", "weights")),
    }


def test_what_is_without_influence_stands_under_the_model():
    dead = {"dead_rows": 1234, "dead_columns": 7, "dead_heads": 1, "dead_weights": 0}
    assert "1,234 rows of matrices, 7 columns, 1 attention heads, 0 non-zero weights." in render(
        [report(offline=dead)], "md"
    )
    assert "influence" not in render([REPORT], "md")


@pytest.mark.parametrize("fmt", FORMATS)
def test_missing_sections_are_empty_cells(fmt):
    broken = {"run": "young", "data": None, "offline": {"total_bytes": "many", "data_bytes": math.nan}, "online": 3}
    for reports in ([broken], [REPORT, broken], [{}, {}]):
        text = render(reports, fmt)
        assert "nan" not in text.lower()
        assert "None" not in text
    assert json.loads(render([broken], "json"))[0]["total_bytes"] is None


def test_names_cannot_break_a_format():
    name = "a|b_[red]*c*\\d{e}&f%$#~^<g>\nh"
    reports = [report(run=name), report(run="[x]")]
    shown = name.replace("\n", " ")
    assert f" {shown} " in render(reports, "rich")
    markdown = [line for line in render(reports, "md").splitlines() if line.startswith("| a")]
    cells = [re.split(r"(?<!\\)\|", line)[1].strip() for line in markdown]
    assert len(cells) == 4
    assert {re.sub(r"\\(.)", r"\1", cell) for cell in cells} == {shown}
    latex = render(reports, "latex")
    assert r"a\textbar{}b\_{[}red{]}*c*\textbackslash{}d\{e\}\&f\%\$\#\textasciitilde{}\textasciicircum{}" in latex
    assert not any(line.startswith("[") for line in latex.splitlines())
    assert json.loads(render(reports, "json"))[0]["run"] == name
    assert next(csv.DictReader(io.StringIO(render(reports, "csv"))))["run"] == name


def test_every_latex_row_has_the_columns_of_its_table():
    for table in render([REPORT, REPORT], "latex").split("\\begin{tabular}")[1:]:
        columns = len(re.match(r"\{([lr]+)\}", table)[1])
        rows = [line for line in table.splitlines() if line.endswith(r"\\")]
        assert len(rows) == 3
        assert {len(re.findall(r"(?<!\\)&", row)) + 1 for row in rows} == {columns}


def test_no_digit_is_lost_in_a_narrow_terminal():
    text = render([REPORT], "rich", width=40)
    assert "…" not in text
    assert all(f"{size:,}" in text for size in [*SIZES.values(), 98_231, 1_703_661, 3_414_528])


@pytest.mark.parametrize("count", [1, 2])
def test_ordinary_runs_fit_120_columns(count):
    assert max(map(len, render([REPORT] * count, "rich", width=120).splitlines())) <= 120


def test_an_unknown_format_is_refused_by_name():
    with pytest.raises(UsageError, match=r"--format html: .*rich, md, csv, json, latex"):
        render([REPORT], "html")


def test_files_of_online_codes_stand_side_by_side_with_what_both_ends_took():
    sent = {"file_bytes": 1_138_355, "verified": True, "send_seconds": 3289.3, "receive_seconds": 2900.1}
    sent |= {"send_memory_bytes": 4_932_497_408, "receive_memory_bytes": 4_306_825_216}
    text = render([report(run="plain"), report(run="sent", online=sent)], "md")
    assert "Online codes of the training corpora as files" in text
    (row,) = [line for line in text.splitlines() if "1,138,355" in line]
    cells = [cell.strip() for cell in row.split("|")[1:-1]]
    program = ["1,199,589", "1.681"]
    assert cells == ["sent", "5,707,324", "1,138,355", "1.596", *program, "3,289", "4,932", "2,900", "4,307", "decoded"]
    assert "as files" not in render([report(run="a"), report(run="b")], "md")
