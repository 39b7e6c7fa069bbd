"""Bits of a model and the crossover of its codes: closed forms, a band with the truth in it, a control without any."""

import json
import math
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from matplotlib.image import imread
from safetensors.torch import load_file
from scipy.optimize import brentq

from eval.codec.container import read_sections
from eval.crossover.crossing import (
    OfflineCode,
    OfflineLine,
    OnlineCurve,
    archive_length,
    crossover_bands,
    curve_points,
    find_crossover,
    offline_code,
    offline_line,
    online_band,
    online_curves,
    resampled_laws,
)
from eval.crossover.crossover_figure import draw_crossover
from eval.crossover.crossover_table import Measurement, render, verdict
from eval.crossover.model_bits import (
    ModelBits,
    final_heldout_rate,
    final_training_rate,
    frequency_rate,
    model_bits,
    open_run,
)
from eval.curves.area import fit_law
from eval.offline.evaluate import evaluate
from eval.offline.step_search import GridPoint
from harness.config.run import load_config
from harness.corpus.arrangement import BLOCK_BYTES
from harness.corpus.config import CorpusConfig, read_documents
from harness.corpus.prepared import data_directory
from harness.errors import UsageError
from harness.run.directory import mark_done, write_weights
from harness.train import train_run
from harness.units import bits_from_nats
from launch.main import main
from tests.support import reports
from tests.support.kinds import tables, unlabelled
from tests.support.ranks import rows

C, A, B = 1.8, 40.0, 0.3
"""A curve in bits/byte: l(n) = C + A n^-B."""
CORPUS_BYTES, STEP_BYTES = 2_000_000, 4096


def exact_bits(raw_bytes: np.ndarray | float) -> np.ndarray | float:
    return C * raw_bytes + A / (1 - B) * raw_bytes ** (1 - B)


def ledger(noise_bits_per_byte: float = 0.0, seed: int = 0) -> SimpleNamespace:
    """Steps on the curve, with noise of which neighbouring steps have most in common."""
    ends = np.arange(0, CORPUS_BYTES + STEP_BYTES, STEP_BYTES, dtype=np.float64)
    shocks = np.random.default_rng(seed).normal(0, 1, len(ends) - 1)
    noise = np.convolve(shocks, 0.8 ** np.arange(12))[: len(shocks)]
    bits = np.diff(exact_bits(ends)) + noise_bits_per_byte * STEP_BYTES * noise / noise.std()
    return SimpleNamespace(step_raw_bytes=np.diff(ends).astype(np.int64), step_bits=bits)


def code(fixed_bits: float, rate: float) -> OfflineCode:
    """An offline code with one precision."""
    return OfflineCode.of([OfflineLine(fixed_bits=fixed_bits, rate_bits_per_byte=rate)])


def code_through(rate: float, crossover: float) -> OfflineCode:
    """An offline code of `rate` bits/byte that is as long as the exact online code at `crossover` bytes."""
    return code(exact_bits(crossover) - rate * crossover, rate)


def curve_of(online: SimpleNamespace) -> OnlineCurve:
    raw_bytes, bits = np.append(0.0, np.cumsum(online.step_raw_bytes)), np.append(0.0, np.cumsum(online.step_bits))
    return OnlineCurve(raw_bytes=raw_bytes, bits=bits, law=fit_law(*curve_points(raw_bytes, bits)))


@pytest.mark.parametrize("crossover", [3e5, 2.5e6, 1e8])
def test_the_crossover_of_a_known_curve_is_found(crossover):
    found = find_crossover(curve_of(ledger()), code_through(rate=1.7, crossover=crossover))
    assert found.raw_bytes == pytest.approx(crossover, rel=0.01)
    assert found.is_measured == (crossover < CORPUS_BYTES)
    assert (found.until_bytes, found.rates_meet_bytes) == (None, None)


@pytest.mark.parametrize("crossover", [3e5, 4e6])
def test_where_online_is_shorter_again_is_found(crossover):
    offline = code_through(rate=2.1, crossover=crossover)
    found = find_crossover(curve_of(ledger()), offline)
    assert found.raw_bytes == pytest.approx(crossover, rel=0.01)
    rates_meet = (A / 0.3) ** (1 / B)
    until = brentq(lambda n: exact_bits(n) - offline.bits(n), rates_meet, 1e12)
    assert found.rates_meet_bytes == pytest.approx(rates_meet, rel=0.01)
    assert found.until_bytes == pytest.approx(until, rel=0.01)


def test_both_places_may_lie_in_what_was_measured():
    rate = C + A * 4e5**-B
    offline = code_through(rate=rate, crossover=2e5)
    found = find_crossover(curve_of(ledger()), offline)
    until = brentq(lambda n: exact_bits(n) - offline.bits(n), 4e5, 1e8)
    assert until < CORPUS_BYTES and found.is_measured
    assert (found.raw_bytes, found.until_bytes) == pytest.approx((2e5, until), rel=0.01)


def test_at_each_size_the_best_of_several_precisions_counts():
    curve, coarse, fine = curve_of(ledger()), code_through(2.1, 3e5), code_through(1.95, 1e6)
    both = OfflineCode.of([*fine.lines, *coarse.lines])
    alone = [find_crossover(curve, each) for each in (coarse, fine)]
    found = find_crossover(curve, both)
    assert found.raw_bytes == alone[0].raw_bytes < alone[1].raw_bytes and found.is_measured
    assert alone[0].until_bytes < found.until_bytes == alone[1].until_bytes
    assert found.rates_meet_bytes == alone[1].rates_meet_bytes
    # A precision that comes long after the others does not fill the gap before it.
    late = OfflineCode.of([*code_through(2.3, 1e5).lines, *code_through(1.8, 1e7).lines])
    assert find_crossover(curve, late).until_bytes == find_crossover(curve, code_through(2.3, 1e5)).until_bytes < 1e7
    sizes = np.array([1e5, 1e6, 1e7])
    assert np.array_equal(both.bits(sizes), np.minimum(coarse.bits(sizes), fine.bits(sizes)))
    assert (both.best_at(1e5), both.best_at(1e7)) == (*coarse.lines, *fine.lines)
    # One with a rate that the law never reaches leaves offline shorter for good.
    lasting = OfflineCode.of([*both.lines, *code_through(1.7, 1e8).lines])
    assert find_crossover(curve, lasting) == replace(found, until_bytes=None, rates_meet_bytes=None)


def test_a_precision_that_is_never_the_shortest_is_left_out():
    lines = [OfflineLine(fixed_bits=fixed, rate_bits_per_byte=rate) for fixed, rate in ((9, 2), (5, 3), (7, 3), (6, 4))]
    assert OfflineCode.of(lines).lines == (lines[0], lines[1])


def test_what_is_charged_before_the_first_byte_is_in_every_length_and_in_no_law():
    (plain, _), (charged, _) = online_curves(ledger()), online_curves(ledger(), 125)
    assert charged.bits == pytest.approx(plain.bits + 1000) and charged.law == plain.law
    for raw_bytes in (plain.measured_bytes / 3, 10 * plain.measured_bytes):
        assert charged.length(raw_bytes).total_bytes == pytest.approx(plain.length(raw_bytes).total_bytes + 125)


@pytest.mark.parametrize("changes", [{}, {"verified": False}, {"verified": None}, {"is_ideal": True}])
def test_every_length_of_the_tables_says_what_it_is_worth(changes):
    archive = reports.report(offline=changes)
    curve, resampled = online_curves(ledger())
    offline = OfflineCode.of([offline_line(archive)])
    band, until_band = crossover_bands(resampled[:2], offline)
    found = Measurement(
        run="a",
        bits=ModelBits(**{field.name: 2 for field in fields(ModelBits)}),
        curve=curve,
        resampled=resampled,
        archive=archive_length(archive),
        archive_line=offline_line(archive),
        offline=offline,
        crossover=find_crossover(curve, offline),
        band=band,
        until_band=until_band,
    )
    text = render(found, found, "md")
    assert len(tables(text)) == 2 and unlabelled(text) == []
    # Nothing else in these tables is a file.
    assert ("(decoded)" in text) == (changes == {})


def test_other_precisions_are_measured_by_the_archive():
    offline = {"total_bytes": 1100, "data_bytes": 400, "model_bytes": 600, "sampled_data_bytes": 380.0}
    report = {"run": "a", "offline": offline, "data": {"raw_bytes": 800}}
    finer = GridPoint(factor=0.5, model_bytes=750, data_bytes=190.0)
    archive, other = offline_code(report, [finer]).lines[::-1]
    assert (archive.fixed_bits, archive.rate_bits_per_byte) == (8 * 700, 4)
    assert (other.fixed_bits, other.rate_bits_per_byte) == (8 * 850, 2)
    del offline["sampled_data_bytes"]
    with pytest.raises(UsageError, match=r"^run a: its report is by an older .*; evaluate it again"):
        offline_code(report, [finer])


def test_a_rate_that_falls_below_the_offline_rate_first_leaves_no_crossover():
    rate = C + A * 1e7**-B
    highest = exact_bits(1e7) - rate * 1e7
    for fixed_bits, exists in ((1.05 * highest, False), (0.95 * highest, True)):
        found = find_crossover(curve_of(ledger()), code(fixed_bits, rate))
        assert (found.raw_bytes is not None) == (found.until_bytes is not None) == exists
        assert found.rates_meet_bytes == pytest.approx(1e7, rel=0.01)


def test_the_band_holds_the_truth_and_is_neither_empty_nor_vacuous():
    held = []
    for seed in range(8):
        curve = curve_of(ledger(noise_bits_per_byte=0.01, seed=seed))
        laws = resampled_laws(*curve_points(curve.raw_bytes, curve.bits), count=100, seed=0)
        curves = [replace(curve, law=law) for law in laws]
        # What was measured is a fact; the truth is how the exact curve goes on from there.
        truth = exact_bits(5e6) + float(curve.bits[-1] - exact_bits(curve.measured_bytes))
        offline = code(truth - 1.9 * 5e6, 1.9)
        band = crossover_bands(curves, offline)[0]
        assert band.share_without == 0 and 1.01 < band.high_bytes / band.low_bytes < 1.5
        (near_low, low), (near_high, high) = online_band(curves, np.array([2.1e6, 5e6]))
        assert 0 < 2 * (near_high - near_low) < high - low < 0.1 * truth
        held.append((low <= truth <= high, band.low_bytes <= 5e6 <= band.high_bytes))
    assert np.min(np.sum(held, axis=0)) >= 6


def test_a_resample_consists_of_blocks_of_neighbours(monkeypatch):
    chosen = []
    monkeypatch.setattr("eval.crossover.crossing.fit_law", lambda positions, rates: chosen.append(positions))
    resampled_laws(np.arange(1.0, 401.0), np.ones(400), count=5, seed=1)
    for positions in chosen:
        assert len(positions) == 400 and len(np.unique(positions)) < 350
        assert (np.diff(np.unique(positions)) > 1).sum() < 20


def test_the_same_ledger_has_the_same_band():
    offline = code_through(rate=1.9, crossover=2e7)
    (curve, others), (again, others_again) = (online_curves(ledger(0.03)) for _ in range(2))
    assert len(others) >= 200 and len({other.law.exponent for other in others}) > 100
    assert find_crossover(curve, offline) == find_crossover(again, offline)
    assert crossover_bands(others, offline) == crossover_bands(others_again, offline)


def test_resamples_without_a_crossover_are_counted():
    curve, others = online_curves(ledger(0.03))
    rate = C + A * 1e8**-B
    offline = code(curve.bits_at(1e8) - rate * 1e8, rate)
    band = crossover_bands(others, offline)[0]
    assert band.share_without == np.mean([find_crossover(other, offline).raw_bytes is None for other in others])
    assert 0.1 < band.share_without < 0.9 and band.low_bytes > 0 and band.high_bytes is None


def test_a_run_too_short_for_a_law_is_refused():
    online = ledger()
    short = SimpleNamespace(step_raw_bytes=online.step_raw_bytes[:6], step_bits=online.step_bits[:6])
    with pytest.raises(UsageError, match="has 6 steps: too few") as caught:
        online_curves(short)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("crossover", [3e5, 2e7, None])
def test_the_figure_is_drawn_with_and_without_a_crossover(tmp_path, crossover):
    offline = code(1e9, 2.5) if crossover is None else code_through(1.9, crossover)
    curve = curve_of(ledger())
    draw_crossover(tmp_path / "crossover.png", curve, [curve] * 3, offline, find_crossover(curve, offline))
    assert imread(tmp_path / "crossover.png").shape[:2] == (750, 1200)
    assert len(list(tmp_path.iterdir())) == 1


def bits_of(**rates: float) -> ModelBits:
    names = ("heldout", "archive", "training", "frequency", "corpus_frequency")
    settings = {f"{name}_bits_per_byte": rate for name, rate in zip(names, (2.0, 2.25, 1.5, 5.0, 4.5), strict=True)}
    return ModelBits(raw_bytes=1000, aulc_bits=3000.0, **settings | rates)


def test_the_parts_of_the_online_code_add_up():
    bits = bits_of()
    assert (bits.residual_bits, bits.above_heldout_bits) == (2000, 1000)
    assert bits.above_archive_bits == 750
    assert (bits.above_training_bits, bits.beyond_frequencies_bits) == (1500, 3000)
    assert bits_of(heldout_bits_per_byte=5.5).beyond_frequencies_bits == 0
    assert bits_of().online_beyond_frequencies_bits == 1500
    assert bits_of(corpus_frequency_bits_per_byte=2.9).online_beyond_frequencies_bits == 0


def test_the_verdict_names_what_a_control_cannot_have_learnt():
    shuffled = {"corpus_frequency_bits_per_byte": 2.9}
    assert verdict(bits_of(heldout_bits_per_byte=4.995, **shuffled)).endswith("information beyond byte frequencies")
    assert "1,000 bits (1.000 bits/byte)" in verdict(bits_of(heldout_bits_per_byte=4.0, **shuffled))
    assert "1,500 bits (1.500 bits/byte)" in verdict(bits_of(heldout_bits_per_byte=4.995))


def test_the_rate_of_byte_frequencies_is_a_cross_entropy():
    counts = np.zeros(256, dtype=np.int64)
    counts[:4] = 1 << 40
    assert frequency_rate(counts, counts) == pytest.approx(2, abs=1e-6)
    assert frequency_rate(np.zeros(256), counts) == pytest.approx(8)
    skewed = counts.copy()
    skewed[0] *= 5
    assert frequency_rate(skewed, counts) == pytest.approx((math.log2(8 / 5) + 3 * 3) / 4)


def test_the_final_training_loss_is_that_of_the_last_steps_whatever_their_epoch(tmp_path):
    steps = np.arange(200)
    table = {"step": steps, "raw_bytes": np.full(200, 10), "nats_sum": np.where(steps < 195, 7.0, 4.0)}
    folder = tmp_path / "ledger" / "rank-00000"
    folder.mkdir(parents=True)
    pq.write_table(pa.table(table), folder / "part-000000.parquet")
    # Two epochs of 1000 bytes: 5 % are 50 bytes, so 5 steps.
    assert final_training_rate(tmp_path, 1000) == pytest.approx(bits_from_nats(0.4))
    assert final_training_rate(tmp_path, 2000) == pytest.approx(bits_from_nats(0.55))
    assert final_training_rate(tmp_path, 10**6) == pytest.approx(bits_from_nats(table["nats_sum"].mean() / 10))


def read(split: str, **settings: object) -> bytes:
    return b"".join(read_documents(CorpusConfig(**settings), split))


def counts_of(text: bytes) -> list[int]:
    return np.bincount(np.frombuffer(text, dtype=np.uint8), minlength=256).tolist()


def test_shuffling_keeps_every_byte_of_each_split_and_is_always_alike(tmp_path):
    words = np.random.default_rng(0).choice([b"the ", b"cat ", b"sees ", b"all ", b"mice\n"], 400_000)
    (tmp_path / "text.txt").write_bytes(b"".join(words))
    settings = {"kind": "files", "path": str(tmp_path), "subset_bytes": BLOCK_BYTES + 12_345, "heldout_bytes": 70_000}
    for split in ("train", "heldout"):
        text, shuffled = read(split, **settings), read(split, shuffle=True, **settings)
        assert counts_of(shuffled) == counts_of(text)
        assert shuffled == read(split, shuffle=True, **settings)
        assert shuffled.count(b"the ") < 0.1 * text.count(b"the ")
        # Every stretch is like the whole: the first tenth has its share of a frequent byte.
        share = shuffled[: len(text) // 10].count(b"e") / text.count(b"e")
        assert share == pytest.approx(0.1, rel=0.05)


def test_the_splits_are_permuted_each_in_its_own_way(tmp_path):
    path = tmp_path / "same.txt"
    path.write_bytes(bytes(range(256)) * 4)
    settings = {"kind": "files", "path": str(path), "heldout_path": str(path), "shuffle": True}
    train, heldout = read("train", **settings), read("heldout", **settings)
    assert counts_of(train) == counts_of(heldout) and train != heldout


def test_a_shuffled_corpus_is_prepared_in_a_place_of_its_own(place):
    plain, shuffled = (load_config(place, [f"corpus.shuffle={word}"]) for word in ("false", "true"))
    assert data_directory(plain) != data_directory(shuffled)


def test_a_text_that_is_too_large_to_shuffle_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("harness.corpus.arrangement.MAX_BYTES", 99)
    (tmp_path / "a.txt").write_bytes(b"x" * 110)
    settings = {"kind": "files", "path": str(tmp_path), "heldout_bytes": 10, "shuffle": True}
    assert len(read("train", subset_bytes=99, **settings)) == 99
    with pytest.raises(UsageError, match=r"corpus\.shuffle=true: permutes at most 99 bytes; set corpus\.subset_bytes"):
        read("train", **settings)


CONFIG = """
name: digits
corpus: {kind: files, subset_bytes: 24000, heldout_bytes: 2000}
model: {width: 32, layers: 1, heads: 1}
train: {epochs: 1, finetune_epochs: 0, batch_sequences: 2, precision: fp32}
optimizer: {warmup_tokens: 512, learning_rate: 0.01}
eval: {lanes: 4}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A configuration whose text a small model learns at once."""
    folder = tmp_path_factory.mktemp("crossover")
    (folder / "text.txt").write_bytes(b"0123456789" * 2600)
    path = folder / "config.yaml"
    path.write_text(CONFIG.replace("files,", f"files, path: {folder}/text.txt,"))
    path.write_text(path.read_text() + f"runs_dir: {folder}/runs\ndata_dir: {folder}/data\n")
    return path


@pytest.fixture(scope="module")
def trained(place) -> tuple[Path, int]:
    """The run itself, trained and evaluated before the command, and when its report was written."""
    train_run(load_config(place))
    run_dir = place.parent / "runs" / "digits"
    evaluate(run_dir, [], 1, lambda done, total: None, quiet=True)
    return run_dir, (run_dir / "report.json").stat().st_mtime_ns


def printed(place: Path, capsys: pytest.CaptureFixture, *arguments: str) -> tuple[int, str, str]:
    capsys.readouterr()
    status = main(["crossover", str(place), *arguments])
    return status, *capsys.readouterr()


def test_one_command_makes_the_control_and_finds_nothing_learnt_in_it(place, trained, capsys):
    run_dir, written = trained
    status, out, err = printed(place, capsys, "--format", "json")
    assert status == 0, err
    record = json.loads(out)
    assert record == json.loads((run_dir / "crossover.json").read_text())
    assert imread(run_dir / "figures" / "crossover.png").shape[:2] == (750, 1200)
    assert (run_dir / "report.json").stat().st_mtime_ns == written and "1 of 2 runs are finished already" in err
    control = json.loads((run_dir.parent / "digits-shuffled" / "report.json").read_text())
    assert control["offline"]["verified"] is True and control["online"]["raw_bytes"] == 24_000
    assert (run_dir.parent / "digits-shuffled.log").exists()

    text, shuffled = (record[key]["model_bits"] for key in ("text", "control"))
    assert record["verdict"] == "control: no learnt information beyond byte frequencies"
    assert shuffled["beyond_frequencies_bits"] < 0.01 * shuffled["raw_bytes"]
    # Ten digits in turn cost log2 10 bits by their frequencies, and almost nothing for who knows the turn.
    assert text["frequency_bits_per_byte"] == pytest.approx(math.log2(10), abs=0.05)
    assert text["beyond_frequencies_bits"] > 2 * text["raw_bytes"]
    report = json.loads((run_dir / "report.json").read_text())
    assert text["above_archive_bits"] == pytest.approx(report["online"]["above_final_bits"], rel=1e-12)
    assert record["text"]["crossover"]["raw_bytes"] > 0
    # Of all precisions the archive's is the best for its own text.
    lines, size = record["text"]["offline_projected"], report["data"]["raw_bytes"]
    totals = [line["fixed_bits"] + size * line["rate_bits_per_byte"] for line in lines]
    assert min(totals) == pytest.approx(8 * report["offline"]["total_bytes"], rel=0.01)
    assert record["text"]["archive"] in lines

    status, out, err = printed(place, capsys, "--format", "md")
    assert status == 0 and "2 of 2 runs are finished already" in err and "start " not in err
    assert "- control: no learnt information beyond byte frequencies." in out
    assert f"| {text['aulc_bits']:,.0f} | " in out and "**offline is shorter from**" in out
    assert unlabelled(out) == [] and "(decoded)" in out


def test_a_hybrid_code_is_charged_with_the_weights_that_it_starts_from(place, trained, capsys):
    run_dir, _ = trained
    status, out, err = printed(place, capsys, "--format", "json", "--hybrid")
    assert status == 0, err
    record = json.loads(out)
    hybrid, online = record["hybrid"], record["text"]["model_bits"]["aulc_bits"]
    assert hybrid["start_bytes"] == len(read_sections(run_dir / "offline" / "archive.cl")["MODL"])
    assert hybrid["total_bits"] == pytest.approx(8 * hybrid["start_bytes"] + hybrid["text_bits"], rel=1e-12)
    # What knows the text already needs little more for it.
    assert hybrid["text_bits"] < 0.8 * online
    report = json.loads((run_dir.parent / "digits-hybrid" / "report.json").read_text())
    assert report["online"]["bits_per_byte"] == pytest.approx(hybrid["total_bits"] / 24_000, rel=1e-9)
    words = "shorter" if hybrid["total_bits"] < online else "does not help when the weights are charged"
    assert words in record["hybrid_verdict"]


def test_the_bits_of_a_run_are_those_of_its_ledger_and_archive(trained):
    run_dir, _ = trained
    bits, report = model_bits(open_run(run_dir)), json.loads((run_dir / "report.json").read_text())
    table = rows(run_dir)
    assert bits.aulc_bits == pytest.approx(bits_from_nats(table["nats_sum"].to_numpy().sum()), rel=1e-12)
    ideal_rate = report["offline"]["ideal_data_bits"] / 2000
    assert bits.archive_bits_per_byte == ideal_rate
    assert bits.above_heldout_bits + bits.residual_bits == pytest.approx(bits.aulc_bits, rel=1e-12)
    parts = ("header_bytes", "model_bytes", "tokenizer_bytes", "checksum_bytes")
    offline = offline_line(report)
    assert offline.fixed_bits == 8 * sum(report["offline"][part] for part in parts)
    assert offline.rate_bits_per_byte == report["offline"]["data_bits_per_byte"]
    # 5 % of 24,000 bytes lie in the last two steps: one of 448 + 512 bytes does not suffice.
    last = table.to_pandas().query("step >= step.max() - 1")
    assert bits.training_bits_per_byte == pytest.approx(bits_from_nats(last.nats_sum.sum() / last.raw_bytes.sum()))


def test_the_final_held_out_loss_is_that_of_the_weights_on_every_held_out_byte(trained, tmp_path):
    run = open_run(trained[0])
    assert final_heldout_rate(run) < 0.5 * model_bits(run).frequency_bits_per_byte
    zeros = {name: torch.zeros_like(tensor) for name, tensor in load_file(trained[0] / "weights.safetensors").items()}
    write_weights(tmp_path, zeros, {}, {})
    mark_done(tmp_path, [])
    # Without weights every byte costs 8 bits; 2000 bytes end in the middle of a sequence.
    assert final_heldout_rate(replace(run, run_dir=tmp_path)) == pytest.approx(8, rel=1e-6)


@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        ("corpus.shuffle=true", "corpus.shuffle=true: is for the control"),
        ("dry_run=true", "dry_run=true: would train nothing"),
        ("eval.split=train", "eval.split=train: the final loss must be a held-out one"),
        ("train.batch_sequences=3", "train.batch_sequences=3: must be a multiple of 2"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_starts(place, capsys, setting, complaint):
    status, out, err = printed(place, capsys, "name=other", setting, "--processes", "2")
    assert status == 2 and out == "" and len(err.splitlines()) == 1
    assert f"codelength: {complaint}" in err
    assert not (place.parent / "runs" / "other").exists()


def test_a_control_that_fails_is_named(place, trained, capsys):
    taken = place.parent / "runs" / "copy-shuffled"
    taken.mkdir()
    (taken / "config.yaml").write_text("name: something else\n")
    (place.parent / "runs" / "copy").symlink_to(trained[0])
    status, out, err = printed(place, capsys, "name=copy")
    assert status == 1 and out == ""
    assert err.splitlines()[-1].startswith(f"codelength: copy-shuffled: {taken}: this run was started with another")
