"""Teacher and students: closed forms, archives of targets, training side by side, and the command from end to end."""

import csv
import hashlib
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import norm

from eval.codec.container import pack_sections, read_sections
from eval.codec.gaussian import (
    FLAT_WIDTH,
    cell_widths,
    digit_tables,
    encode_values,
    from_ordered,
    gaussian_bits,
    interval_masses,
    lower_edges,
    ordered_integers,
    tanh,
)
from eval.teacher.archive import predict, read_archive, target_bytes, write_archive
from eval.teacher.experiment import (
    LOSSES,
    METHODS,
    Students,
    TeacherConfig,
    first_students,
    gaussian_nats,
    make_data,
)
from eval.teacher.inputs import layer_shapes, make_inputs, split_layers
from eval.teacher.points import TeacherPoint, paper_bytes
from eval.teacher.step_search import choose_grids, fast_predictions
from eval.teacher.tables import blocks
from eval.teacher.training import nat_of_all_targets, train_students
from eval.weights.codec import quantise
from harness.config.written import load_settings
from harness.errors import UsageError
from harness.units import bits_from_nats
from launch.main import main
from tests.support.commands import ROOT
from tests.support.processes import python, result_of

PRESET = ROOT / "configs" / "studies" / "teacher.yaml"
SMALL = ("student=[2,4,1]", "teacher=[2,3,1]", "targets=[9,40]", "steps=12", "finetune_steps=4", "batch_targets=30")
SMALL += ("seeds=2", "losses=[gaussian]", "alphas=[1,10]", "shares=[0.3]")
ONE = np.float32(1)
EXTREME = np.array(
    [0.0, -0.0, 1e-45, -1e-45, 1e-39, -1e-38, 1e30, -1e30, 3.4028235e38, -3.4028235e38, 1, np.nextafter(ONE, 2 * ONE)],
    dtype=np.float32,
)


def student_layers(seed: int = 0) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    return {f"layer{i}": generator.normal(size=s).astype(np.float32) for i, s in enumerate(layer_shapes([2, 5, 1]))}


def archive_of(path: Path, targets: np.ndarray, sigma: float = 0.08) -> Path:
    layers = student_layers()
    steps = {name: np.float32(0.1) for name in layers}
    write_archive(path, 3, targets, quantise(layers, steps), steps, np.float32(sigma))
    return path


def decode(*arguments: object, **environment: str) -> subprocess.CompletedProcess:
    return result_of(python("-m", "eval.teacher.decode", *arguments, cwd=ROOT, env=environment))


def test_the_student_has_751_parameters():
    config = TeacherConfig()
    students = Students(config.student, [first_students(config)])
    assert students.groups[0].shape == (3, 751)
    assert sum(layer.size for layer in split_layers(np.zeros(751), config.student).values()) == 751


def test_the_gaussian_loss_is_its_closed_form():
    mse, sigma = 0.3, 0.08
    bits = mse / (2 * sigma**2 * math.log(2)) + 0.5 * math.log2(2 * math.pi * sigma**2)
    log_sigma = torch.tensor(sigma, dtype=torch.float64).log()
    nats = gaussian_nats(torch.tensor(mse, dtype=torch.float64), log_sigma)
    assert bits_from_nats(nats.item()) == pytest.approx(bits, abs=1e-9)
    values = np.array([0.75], dtype=np.float32)
    assert gaussian_bits(values, np.array([0.75 - math.sqrt(mse)]), sigma) == pytest.approx(bits + 24, abs=1e-9)


def test_a_strength_is_a_nat_of_all_targets_whatever_the_loss():
    config, num_targets = TeacherConfig(noise=0.2), 30
    mse = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    all_nats = num_targets * gaussian_nats(mse, torch.tensor(0.2, dtype=torch.float64).log())
    all_nats.backward()
    # One nat more or less in the penalty weighs as much as one of the code of all targets.
    assert nat_of_all_targets(config, "mse", num_targets) == pytest.approx(1 / mse.grad.item(), rel=1e-12)
    assert nat_of_all_targets(config, "gaussian", num_targets) == 1 / num_targets


def test_only_the_published_experiment_has_published_totals():
    assert TeacherConfig(steps=3, seeds=1).is_published and not TeacherConfig(noise=0.5).is_published
    assert not TeacherConfig(student=[2, 50, 1]).is_published


def test_cells_tile_the_line_in_the_order_of_the_numbers():
    values = np.sort(np.concatenate([EXTREME[2:], np.random.default_rng(0).normal(size=100).astype(np.float32)]))
    integers = ordered_integers(values)
    assert (np.diff(integers) > 0).all()
    assert from_ordered(ordered_integers(EXTREME)).tobytes() == EXTREME.tobytes()
    middle = slice(2, -2)
    assert (lower_edges(integers)[middle] < values[middle]).all()
    assert (lower_edges(integers + 1)[middle] > values[middle]).all()
    assert cell_widths(np.array([0.75], dtype=np.float32)) == 2.0**-24
    # At a power of two the neighbour below is half as far.
    assert cell_widths(np.array([1.0], dtype=np.float32)) == 2.0**-24 + 2.0**-25
    # 0.0 and -0.0 share the room of half a denormal on either side.
    assert (cell_widths(np.array([0.0, -0.0], dtype=np.float32)) == 2.0**-150).all()


@pytest.mark.parametrize(("mean", "sigma"), [(0.3, 0.08), (-1.0, 1e-5), (0.0, 3.0), (1e-3, 1.0)])
def test_masses_of_neighbouring_cells_sum_to_one(mean, sigma):
    edges = lower_edges(np.arange((1 << 16) + 1) << 16)
    masses = interval_masses((edges[None] - mean) / sigma)
    assert masses.sum() == pytest.approx(1.0, abs=1e-9)
    assert (masses >= 0).all()


def test_masses_are_those_of_the_normal_distribution():
    # Intervals of many sigmas, and of just the widest that count as narrow.
    for edges, rel in (
        (np.linspace(-9, 9, 37), 1e-8),
        (np.linspace(-6, 6, 385), 1e-10),
        (np.array([-37.0, -0.3, 0.1, 37.0]), 1e-9),
    ):
        exact = np.where(edges[1:] <= 0, np.diff(norm.cdf(edges)), -np.diff(norm.sf(edges)))
        assert interval_masses(edges[None])[0] == pytest.approx(exact, rel=rel, abs=1e-300)


def test_the_length_of_a_cell_is_that_of_the_density_up_to_its_curvature():
    sigma, values = 1e-5, np.nextafter(np.full(40, ONE), 2 * ONE)
    means = 1.0 + sigma * np.linspace(-3, 3, 40)
    edges = (lower_edges(ordered_integers(values)[:, None] + np.arange(2)) - means[:, None]) / sigma
    width, z = edges[0, 1] - edges[0, 0], edges.mean(axis=1)
    exact = -np.log2(interval_masses(edges)[:, 0])
    by_density = [gaussian_bits(values[i : i + 1], means[i], sigma) for i in range(40)]
    # The mean of a density over a cell is 1 + (z^2 - 1) h^2 / 24 of that in its middle.
    assert exact - by_density == pytest.approx(-(z**2 - 1) * width**2 / 24 / math.log(2), abs=1e-7)
    assert np.abs(exact - by_density).max() > 1e-6


@pytest.mark.parametrize(("flat_width", "allowed_bits"), [(2.0**-9, 0.02), (FLAT_WIDTH, 3.0)])
def test_the_four_digits_of_a_number_cost_what_its_cell_does(monkeypatch, flat_width, allowed_bits):
    monkeypatch.setattr("eval.codec.gaussian.FLAT_WIDTH", flat_width)
    generator = np.random.default_rng(1)
    means = generator.normal(size=200)
    values = (means + 0.08 * generator.normal(size=200)).astype(np.float32)
    integers, bits = ordered_integers(values), 0.0
    for digit in range(4):
        tables = digit_tables(integers >> (32 - 8 * digit), digit, means, 0.08)
        chosen = tables[np.arange(200), (integers >> (24 - 8 * digit)) % 256]
        bits -= np.log2(chosen / tables.sum(axis=1)).sum()
    ideal = gaussian_bits(values, means, 0.08)
    # Flat digits take the slope of the density for none: right on average, and by luck off by 0.05 bits a number.
    assert bits == pytest.approx(ideal, abs=allowed_bits)
    # A stream ends within a word or two, and each of four tables loses less than 2^-16 to the floor of the coder.
    assert 0 <= 8 * len(encode_values(values, means, 0.08)) - ideal < 64 + allowed_bits


def test_the_portable_forward_pass_is_the_usual_one():
    layers, inputs = student_layers(), make_inputs(0, 50, 2)
    assert predict(layers, inputs) == pytest.approx(fast_predictions(layers, inputs), abs=1e-13)
    x = np.concatenate([np.linspace(-30, 30, 1001), [0.0, 1e-300]])
    assert tanh(x) == pytest.approx(np.tanh(x), abs=1e-15)


def test_inputs_of_fewer_targets_are_the_first_of_more():
    assert (make_inputs(5, 30, 2) == make_inputs(5, 300, 2)[:30]).all()
    assert np.abs(make_inputs(5, 300, 2)).max() <= 1


@pytest.mark.parametrize("sigma", [0.08, 1e-9, 1e9])
def test_a_fresh_process_with_other_instructions_decodes_extreme_targets_bit_by_bit(tmp_path, sigma):
    usual = np.random.default_rng(0).normal(size=60).astype(np.float32)
    targets = np.concatenate([EXTREME, usual])
    path = archive_of(tmp_path / "extreme.cl", targets, sigma)
    done = decode(path, "-o", tmp_path / "targets", NPY_DISABLE_CPU_FEATURES="AVX512F AVX512CD AVX512_SKX AVX2 FMA3")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "targets").read_bytes() == target_bytes(targets)
    assert done.stdout.split()[0] == hashlib.sha256(target_bytes(targets)).hexdigest()


def test_damaged_and_foreign_archives_are_refused_in_a_line(tmp_path, monkeypatch, capsys):
    from eval.teacher.decode import main as decode_main

    content = archive_of(tmp_path / "whole.cl", EXTREME).read_bytes()
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 1
    forged = pack_sections({"HEAD": b"\0" * 50, "MODL": b"", "DATA": b""})
    cases = {"flipped": bytes(flipped), "short": content[:-9], "other": b"text", "forged": forged}
    sections = read_sections(tmp_path / "whole.cl")
    cases["another digest"] = pack_sections(sections | {"HEAD": sections["HEAD"][:-32] + bytes(32)})
    cases["no sigma"] = pack_sections(sections | {"MODL": bytes(4) + sections["MODL"][4:]})
    cases["more targets"] = pack_sections(
        sections | {"HEAD": sections["HEAD"][:8] + b"\0\0\xff" + sections["HEAD"][11:]}
    )
    cases["cut data"] = pack_sections(sections | {"DATA": sections["DATA"][:-4]})
    cases["data and more"] = pack_sections(sections | {"DATA": sections["DATA"] + bytes(4)})
    cases["cut weights"] = pack_sections(sections | {"MODL": sections["MODL"][:-1]})
    cases["text"] = pack_sections({"HEAD": b"", "TOKN": b"", "MODL": b"", "DATA": b""})
    for name, bad in cases.items():
        path = tmp_path / name
        path.write_bytes(bad)
        monkeypatch.setattr(sys, "argv", ["teacher_decode", str(path), "-o", str(tmp_path / "out")])
        assert decode_main() == 2
        captured = capsys.readouterr()
        assert captured.err.startswith(f"codelength: {path}: ") and captured.err.count("\n") == 1
        assert name != "no sigma" or "malformed weights" in captured.err
        assert ("data section" in captured.err) == ("data" in name)
        assert not captured.out and not (tmp_path / "out").exists()


def test_many_targets_of_little_data_take_no_memory(tmp_path):
    archive_of(tmp_path / "whole.cl", EXTREME)
    sections, path = read_sections(tmp_path / "whole.cl"), tmp_path / "many.cl"
    many = sections["HEAD"][:8] + (1 << 18).to_bytes(4, "little") + sections["HEAD"][12:]
    path.write_bytes(pack_sections(sections | {"HEAD": many}))
    with pytest.raises(UsageError, match="GB of memory"):
        read_archive(path, 2_000_000_000)


def test_targets_that_are_not_finite_are_refused(tmp_path):
    with pytest.raises(UsageError, match="not finite"):
        archive_of(tmp_path / "x.cl", np.array([1.0, np.nan], dtype=np.float32))


def test_grids_are_coarse_for_few_targets_and_fine_for_many():
    layers = student_layers()
    sigmas = []
    for num_targets in (8, 8000):
        inputs = make_inputs(0, num_targets, 2)
        noise = np.random.default_rng(1).normal(size=num_targets)
        targets = (fast_predictions(layers, inputs) + 0.02 * noise).astype(np.float32)
        sigmas.append(choose_grids(layers, inputs, targets).sigma)
    assert sigmas[1] == pytest.approx(0.02, rel=0.05) and sigmas[0] > 2 * sigmas[1]


@pytest.mark.parametrize("method", ["rl1-adam", "pmmp-decoupled"])
def test_students_side_by_side_learn_as_each_alone(method):
    together = load_settings(TeacherConfig, None, [*SMALL, "alphas=[1,10]", "shares=[0.1,1]"])
    alone = load_settings(TeacherConfig, None, [*SMALL, "alphas=[10]", "shares=[1]", "seeds=1"])
    (expected,) = train_students(alone, method, "gaussian", 9)
    trained = train_students(together, method, "gaussian", 9)
    (found,) = (s for s in trained if (s.seed, s.alpha) == (0, expected.alpha))
    assert torch.allclose(found.weights, expected.weights, atol=1e-5)


def test_a_strong_rule_leaves_few_weights_and_what_is_pruned_stays_zero():
    config = load_settings(TeacherConfig, None, ["seeds=1", "steps=300", "finetune_steps=20", "shares=[3]"])
    nonzeros = {
        method: int(train_students(config, method, "mse", 100)[-1].weights.count_nonzero())
        for method in ("unpruned", "none", "rl1-decoupled")
    }
    assert nonzeros["unpruned"] == 751
    # Of these many have a gradient still.
    assert 500 < nonzeros["none"] < 745
    assert 0 < nonzeros["rl1-decoupled"] < 100


def test_the_paper_convention_is_four_bytes_a_weight_and_cells_of_2_to_the_minus_32():
    sigma = 0.08
    bits = 32 + 0.5 * math.log2(2 * math.pi * math.e * sigma**2)
    assert paper_bytes(751, 2000, sigma**2) == pytest.approx(3004 + 2000 * bits / 8)


def point(**changes: object) -> TeacherPoint:
    values = dict.fromkeys(TeacherPoint.__dataclass_fields__, 0)
    values |= {"method": "pmmp-adam", "loss": "mse", "num_targets": 30, "alpha": 1.0, "archive": "", "sha256": ""}
    return TeacherPoint(**values | changes)


def test_the_table_shows_the_strength_with_the_best_mean_beside_the_published_total():
    weights = {1.0: (50, 90), 3.0: (60, 64), 10.0: (100, 100)}
    points = [point(alpha=a, seed=s, weights_bytes=w) for a, ws in weights.items() for s, w in enumerate(ws)]
    points += [point(method="drr-adam", seed=s, weights_bytes=w) for s, w in enumerate((70, 72))]
    (block,) = blocks(points, is_published=True)
    cells, others = (dict(zip(block.header, row, strict=True)) for row in block.rows)
    assert (others["method"], others["above best"], others["± sd (above)"]) == ("drr-adam", "9", "1")
    assert (cells["alpha"], cells["bytes (decoded)"], cells["± sd"], cells["published"]) == ("3", "62", "3", "182")
    (block,) = blocks(points, is_published=False)
    assert "published" not in block.header and not any("published:" in note for note in block.notes)


def test_the_preset_is_the_published_experiment():
    config = load_settings(TeacherConfig, PRESET, [])
    assert (config.teacher, config.student, config.noise) == ([2, 5, 8, 1], [2, 25, 25, 1], 0.08)
    assert config.targets == [30, 300, 2000]
    assert set(config.methods) == set(METHODS) and set(config.losses) == set(LOSSES)


def test_all_bad_values_are_named_at_once(tmp_path, capsys):
    bad = ("alphas=[-1]", "beta=0", "tolerances=[1.5]", "targets=[0]", "student=[3,1]", "steps=0", "noise=.nan")
    assert main(["study", str(PRESET), f"runs_dir={tmp_path}", *bad, "methods=[rl2-adam]", "ramp=2", "seed=1"]) == 2
    lines = capsys.readouterr().err.splitlines()
    keys = [line.removeprefix("codelength: ").partition("=")[0] for line in lines]
    assert sorted(keys) == sorted(
        ["seed", "alphas", "beta", "tolerances", "targets", "student", "steps", "noise", "methods", "ramp"]
    )
    assert not any(tmp_path.iterdir())


@pytest.fixture
def usual_torch():
    """A job in this process makes torch deterministic for good."""
    before = torch.get_deterministic_debug_mode()
    yield
    torch.set_deterministic_debug_mode(before)


def test_the_command_writes_table_figure_and_archives_and_goes_on(tmp_path, monkeypatch, capsys, usual_torch):
    # The processes that it starts import the sources of where they start.
    monkeypatch.chdir(ROOT)
    command = ["study", str(PRESET), f"runs_dir={tmp_path}", *SMALL, "methods=[admm-adam]"]
    assert main(command) == 0
    folder = tmp_path / "teacher"
    with (folder / "points.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 2 * 2
    for row in rows:
        size = (folder / row["archive"]).stat().st_size
        assert size == sum(int(row[part]) for part in ("weights_bytes", "targets_bytes", "header_bytes"))
    assert "40 targets" in (folder / "table.md").read_text() and "40 targets" in capsys.readouterr().out
    assert (folder / "totals.png").read_bytes()[1:4] == b"PNG"

    kept, lost = (folder / "points" / f"admm-adam_gaussian_{n}.json" for n in (9, 40))
    before, then = lost.read_text(), kept.stat().st_mtime_ns
    lost.unlink()
    assert main([*command, "--index", "0"]) == 0
    assert lost.read_text() == before and kept.stat().st_mtime_ns == then
    assert main(command) == 0
    assert "1 of 1 jobs are finished already" in capsys.readouterr().out
    assert main([*command, "noise=0.1"]) == 2
    error = capsys.readouterr().err
    assert "noise: 0.08 -> 0.1" in error and error.count("\n") == 1


def test_data_are_the_same_for_every_method_and_differ_between_seeds():
    config = load_settings(TeacherConfig, None, ["seeds=2"])
    first, again = make_data(config, 30), make_data(config, 30)
    assert torch.equal(first.targets, again.targets)
    assert not torch.equal(first.targets[0], first.targets[1])
