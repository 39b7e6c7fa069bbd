"""Methods against data sets: the comparison after a sweep, ideal lengths, and sizes that are kept."""

import json
import shutil
from pathlib import Path

import pytest

from eval.offline.baseline_cache import measured
from eval.offline.baselines import measure
from eval.report.comparison import Entry, best_of, column_block, families, summary_block, winners
from eval.report.record import flat_record
from harness.errors import UsageError
from launch.sweeps.sweep_file import read_sweep
from tests.support.commands import ROOT, run_command

SWEEP = """
name: small
config: {root}/configs/table3.yaml
settings:
  runs_dir: {folder}/runs
  data_dir: {folder}/data
  corpus.heldout_bytes: 2000
  model: {{width: 16, layers: 1, context: 128}}
  eval: {{chunk_bytes: 128, lanes: 8}}
  train: {{epochs: 3, finetune_epochs: 1}}
  optimizer.warmup_tokens: 0
  prune: {{sample_sequences: 8, resolution: 1.0e-3}}
grid:
  subset:
    15kB: {{corpus.subset_bytes: 15000}}
  method:
    UT: {{rule.kind: none}}
    rl1+0.05: {{rule.kind: rl1, rule.alpha: 0.05, prune.kind: tamade}}
compare: {compare}
"""
COMPARE = "{columns: subset, seeds: [1], published: {rl1: [61], zstd_chunk: [195]}}"


def write_sweep(folder: Path, compare: str = COMPARE) -> Path:
    path = folder / "sweep.yaml"
    path.write_text(SWEEP.format(root=ROOT, folder=folder, compare=compare))
    return path


@pytest.fixture(scope="module")
def swept(tmp_path_factory) -> tuple[Path, str]:
    """Directory of a small sweep, and what it printed."""
    folder = tmp_path_factory.mktemp("compare")
    done = run_command(f"codelength sweep {write_sweep(folder)} --at-a-time 2", ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "runs" / "small", done.stdout


def reports(directory: Path) -> dict[str, dict]:
    return {path.parent.name: json.loads(path.read_text()) for path in directory.glob("*/report.json")}


def test_the_best_are_repeated_and_only_the_best_of_all_becomes_a_file(swept):
    directory, _ = swept
    found = reports(directory)
    # The best with a rule, and the best without one.
    assert len(found) == 4 and {name for name in found if "_seed-1" in name} >= {"15kB_UT_seed-1"}
    totals = {name: r["offline"]["model_bytes"] + r["offline"]["ideal_data_bits"] / 8 for name, r in found.items()}
    best = min(totals, key=totals.get)
    for name, report in found.items():
        assert report["offline"]["verified"] == (name == best)
        assert (directory / name / "offline" / "archive.cl").exists() == (name == best)
        assert report["data"]["eval_split"] == "train" and report["offline"]["heldout_ideal_bits"] > 0
    regularised = {name: total for name, total in totals.items() if "rl1" in name and "seed" not in name}
    assert f"{min(regularised, key=regularised.get)}_seed-1" in found


def test_table_and_pictures_show_both_kinds_of_lengths(swept):
    directory, printed = swept
    text = (directory / "comparison.md").read_text()
    for words in (
        "The best of each family",
        "15kB: 15,000 bytes",
        "seed 1",
        "zstd -19 / 128 B chunk",
        "decoded",
        "ideal",
        "195.0",
        "61.0",
    ):
        assert words in text, words
    assert "comparison.md" in printed
    for picture in ("total-15kB.png", "heldout.png"):
        assert (directory / picture).read_bytes().startswith(b"\x89PNG")


def test_the_same_command_has_nothing_left_to_do(swept):
    directory, _ = swept
    before = {path: path.stat().st_mtime_ns for path in directory.glob("*/report.json")}
    done = run_command(f"codelength sweep {directory.parents[1] / 'sweep.yaml'}", ROOT)
    assert done.returncode == 0 and "start" not in done.stdout
    assert before == {path: path.stat().st_mtime_ns for path in directory.glob("*/report.json")}


def test_a_comparison_waits_for_a_run_that_was_stopped(swept, tmp_path):
    """Asked to stop, a run ends well; its sweep says that it is missing."""
    directory, _ = swept
    shutil.copytree(directory.parents[1], tmp_path, dirs_exist_ok=True)
    path = write_sweep(tmp_path)
    again = tmp_path / "runs" / "small" / "15kB_UT"
    shutil.rmtree(again)
    again.mkdir()
    (again / "STOP").touch()
    done = run_command(f"codelength sweep {path}", ROOT)
    assert done.returncode == 75 and done.stderr == "codelength: 15kB_UT: stopped; the same command goes on\n"


def test_chunks_of_two_sizes_are_not_compared(tmp_path):
    path = write_sweep(tmp_path)
    text = path.read_text().replace("chunk_bytes: 128, ", "")
    for label, size in (("UT", 64), ("rl1+0.05", 128)):
        text = text.replace(f"{label}: {{", f"{label}: {{eval.chunk_bytes: {size}, ")
    path.write_text(text)
    with pytest.raises(UsageError, match=r"eval\.chunk_bytes=64, 128: a comparison needs chunks of one size"):
        read_sweep(path)


@pytest.mark.parametrize(
    ("compare", "words"),
    [
        ("[1]", "must be a mapping"),
        ("{columns: method, sedes: [1]}", "must be a mapping"),
        ("{columns: [subset]}", "compare.columns=['subset']: must be one of"),
        ("{columns: place}", "compare.columns=place: must be one of"),
        ("{columns: subset, seeds: [1, 1]}", "compare.seeds=[1, 1]: must be a list of different seeds"),
        ("{columns: subset, seeds: [1, 0]}", "compare.seeds: 0: the runs of the grid have this seed already"),
        ("{columns: subset, published: {rl1: [1, 2]}}", "compare.published.rl1=[1, 2]: must be 1 numbers"),
        ("{columns: subset, published: {rl: [1]}}", "compare.published.rl: no family of methods or compressor of this"),
    ],
)
def test_a_bad_comparison_is_refused_before_anything_runs(tmp_path, compare, words):
    with pytest.raises(UsageError) as caught:
        read_sweep(write_sweep(tmp_path, compare))
    assert words in str(caught.value)


def entry(column: str, label: str, model: int, data: int, **more: object) -> Entry:
    report = {
        "data": {"raw_bytes": 1000, "heldout_bytes": 100, "chunk_bytes": 512},
        "offline": {"method": "rl1", "parameters": 50, "nonzeros": 10, "model_bytes": model, "data_bytes": data}
        | {"tokenizer_bytes": 0, "total_bytes": model + data + 7, "ideal_data_bits": 8 * data, "verified": True}
        | {"heldout_ideal_bits": 200, **more},
        "conventions": {"paper_model_bytes": 40, "csr_model_bytes": 70},
        "baselines": {"zstd_chunk": 600, "bz2_whole": 300},
    }
    return Entry(column, label, flat_record(report))


def test_totals_in_each_convention_add_up():
    entries = [
        entry("a", "rl1+1", 20, 400),
        entry("a", "rl1+2", 30, 300, verified=False, is_ideal=True),
        entry("a", "drr+1", 10, 500),
    ]
    assert best_of(entries).label == "rl1+2" and list(families(entries)) == ["rl1", "drr"]
    block = column_block("a", entries)
    rows = {row[0]: dict(zip(block.header, row, strict=True)) for row in block.rows}
    assert list(rows) == ["rl1+2", "rl1+1", "drr+1", "zstd -19 / 512 B chunk"]
    first = rows["rl1+2"]
    assert [first[f"total {key}"] for key in ("bytes", "csr", "paper")] == ["337", "377", "347"]
    assert first["kind"] == "ideal" and rows["rl1+1"]["kind"] == "decoded"
    assert first["held-out bits/byte (ideal)"] == "2.000" and first["bits/byte"] == "2.696"
    assert block.emphasised_rows == [True, False, False, False]
    assert block.notes == ["Shorter than rl1+2: none of the other compressors."]
    (note,) = column_block("a", [entry("a", "x+1", 100, 900)]).notes
    assert note == "Shorter than x+1: zstd -19 / 512 B chunk, by 40.4 %."


def test_the_summary_names_the_best_of_each_family_for_each_data_set():
    entries = [entry(c, label, 20, d) for c, label, d in (("a", "x+1", 400), ("a", "x+2", 300), ("b", "x+1", 900),
                                                          ("b", "y+1", 800))]  # fmt: skip
    block = summary_block(entries, {"x": [1, 2000]})
    rows = {row[0]: row for row in block.rows}
    assert rows["x"] == ["x", "ideal", "0.3", "0.9", "0.3", "0.9", "1.0", "2,000"]
    assert rows["y"][:4] == ["y", "ideal", "", "0.8"] and rows["zstd -19 / 512 B chunk"][1:4] == [
        "decoded",
        "0.6",
        "0.6",
    ]
    assert block.emphasised_rows[:2] == [True, True] and not any(block.emphasised_rows[2:])


def test_the_best_of_each_rule_and_the_best_without_one_are_repeated():
    labels = {"x+1": 5000, "x+2": 4000, "y+1": 6000, "big": 7000, "small": 8000}
    entries = [entry("a", label, 20, size, method="rl1" if "+" in label else "none") for label, size in labels.items()]
    assert [best.label for best in winners(entries)] == ["x+2", "y+1", "big"]


def test_totals_in_the_published_convention_are_means_too_and_have_the_tokenizer():
    labels = {"x+1": 4000, "x+1, seed 1": 8000, "x+2": 7000}
    entries = [entry("a", label, 20, size, tokenizer_bytes=1000) for label, size in labels.items()]
    block = summary_block(entries, {})
    assert dict(zip(block.header, block.rows[0], strict=True))["a kB, paper"] == "7.0"


def test_a_family_that_was_repeated_counts_as_the_mean_of_its_seeds():
    labels = {"x+1": 40_000, "x+1, seed 1": 50_000, "x+2": 42_000, "y": 43_000}
    block = summary_block([entry("a", label, 20, data) for label, data in labels.items()], {})
    totals = {row[0]: row[2] for row in block.rows[:2]}
    assert totals == {"x": "45.0", "y": "43.0"} and block.emphasised_rows[:2] == [False, True]


def test_ideal_lengths_are_those_of_the_file_without_its_overhead(demo_run, tmp_path):
    run_dir = tmp_path / "runs" / "demo"
    shutil.copytree(demo_run, run_dir)
    # Commands of pages may have evaluated the run in other ways.
    done = run_command(f"codelength eval {run_dir}", demo_run.parents[1])
    assert done.returncode == 0, done.stderr
    as_file = json.loads((run_dir / "report.json").read_text())["offline"]
    done = run_command(f"codelength eval {run_dir} eval.ideal=true", demo_run.parents[1])
    assert done.returncode == 0, done.stderr
    ideal = json.loads((run_dir / "report.json").read_text())["offline"]
    assert ideal["model_bytes"] == as_file["model_bytes"] and ideal["is_ideal"] and not ideal["verified"]
    assert ideal["data_bytes"] == pytest.approx(as_file["ideal_data_bits"] / 8, rel=2e-3)
    assert ideal["total_bytes"] == ideal["model_bytes"] + ideal["data_bytes"]
    assert not (run_dir / "offline" / "archive.cl").exists()
    assert "ideal: no file was written" in done.stdout.replace("\n", " ") and "no archive" in done.stdout
    assert ideal["heldout_ideal_bits"] == pytest.approx(as_file["heldout_ideal_bits"], rel=1e-12)


def test_other_compressors_are_measured_once(tmp_path, monkeypatch):
    text, names = b"abcd" * 1000, ["zstd_chunk", "bz2_whole"]
    first = measured(text, 512, tmp_path, names)
    assert first == measure(text, 512, names=names)
    monkeypatch.setattr("eval.offline.baseline_cache.measure", lambda *_, names, training: dict.fromkeys(names, 1))
    assert measured(text, 512, tmp_path, names) == first
    # What is not known yet, another size of chunks, another text, a damaged file: all are measured.
    assert measured(text, 512, tmp_path, [*names, "lzma2_whole"]) == first | {"lzma2_whole": 1}
    assert (
        measured(text, 256, tmp_path, names) == measured(text + b"e", 512, tmp_path, names) == dict.fromkeys(names, 1)
    )
    # A dictionary is made of the training text, so its size is another one then; that of others is not.
    learnt = ["zstd_chunk_dictionary"]
    for training in (b"", b"a"):
        found = measured(text, 512, tmp_path, [*names, *learnt], training)
        assert found == first | {"zstd_chunk_dictionary": 1}
    monkeypatch.setattr("eval.offline.baseline_cache.measure", lambda *_, names, training: dict.fromkeys(names, 2))
    assert measured(text, 512, tmp_path, [*names, *learnt], b"a") == first | {"zstd_chunk_dictionary": 1}
    assert measured(text, 512, tmp_path, [*names, *learnt], b"b") == first | {"zstd_chunk_dictionary": 2}
    monkeypatch.setattr("eval.offline.baseline_cache.version", lambda package: "0")
    assert measured(text, 512, tmp_path, names) == {"zstd_chunk": 2, "bz2_whole": first["bz2_whole"]}
    monkeypatch.setattr("eval.offline.baseline_cache.measure", lambda *_, names, training: dict.fromkeys(names, 1))
    for path in tmp_path.iterdir():
        path.write_bytes(b"{")
    assert measured(text, 512, tmp_path, names) == dict.fromkeys(names, 1)
    assert measured(text, 512, Path("/proc/nowhere"), names) == dict.fromkeys(names, 1)
