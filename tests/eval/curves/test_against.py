"""`codelength curve A --against B`: closed forms of the law and of the ratio, and words where curves never meet."""

import json
import math
import shlex

import numpy as np
import pytest
from matplotlib.image import imread

from harness.laws.shifted_power import CurveLaw, fit_curve
from launch.main import main

STEPS = np.geomspace(10, 4000, 200)


@pytest.fixture
def told(tmp_path, monkeypatch, capsys):
    """`told(a, b, options)` runs the command on two files of losses at `STEPS`; returns status, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def run(first, second, options: str = "", steps=(STEPS, STEPS)) -> tuple[int, str, str]:
        for name, losses, places in (("a.csv", first, steps[0]), ("b.csv", second, steps[1])):
            rows = zip(places, losses, strict=True)
            (tmp_path / name).write_text("".join(f"{float(t)!r},{float(loss)!r}\n" for t, loss in rows))
        status = main(shlex.split(f"curve a.csv --against b.csv --unit nats {options}"))
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


@pytest.mark.parametrize(("L0", "B", "beta"), [(2.0, 30.0, 0.4), (0.0, 100.0, 0.2), (0.05, 5.0, 1.0)])
def test_a_law_comes_back_from_its_points_whatever_stands_before_t0(L0, B, beta):
    losses = L0 + (B / np.maximum(STEPS, 50.0)) ** beta
    law = fit_curve(STEPS, losses)
    assert (law.L0, law.B, law.beta) == pytest.approx((L0, B, beta), rel=1e-5, abs=1e-6)
    assert law.r == pytest.approx(-1, abs=1e-9) and law.t0 >= 50
    noisy = losses * (1 + 0.01 * np.random.default_rng(0).standard_normal(len(losses)))
    assert fit_curve(STEPS, noisy).at(4000.0) == pytest.approx(losses[-1], rel=0.01)


def test_of_equal_floors_the_ratio_of_laws_is_the_published_formula():
    slow, fast, steps = CurveLaw(2, 30, 0.4, 1, -1), CurveLaw(2, 10, 0.5, 1, -1), 2000
    published = 30 ** (0.4 / 0.5) / 10 * steps ** (1 - 0.4 / 0.5)
    assert fast.acceleration_over(slow, steps) == pytest.approx(published, rel=1e-12)
    assert CurveLaw(3, 10, 0.5, 1, -1).acceleration_over(slow, steps) == 0


def test_both_ratios_of_exact_laws_and_the_areas(told):
    slow, fast = CurveLaw(2, 30, 0.4, 10, -1), CurveLaw(2, 10, 0.5, 10, -1)
    status, out, _ = told(fast.at(STEPS), slow.at(STEPS), "--format json --raw-bytes 4000 --figure both.png")
    first, second = json.loads(out)
    expected = fast.acceleration_over(slow, 4000)
    assert status == 0 and imread("both.png").size
    assert first["acceleration"] == pytest.approx(expected, rel=1e-4)
    assert first["law_acceleration"] == pytest.approx(expected, rel=1e-3)
    assert second["tokens_to_other"] is None and second["acceleration"] is None
    for record, law in ((first, fast), (second, slow)):
        area = 2 * 3990 + law.B**law.beta * (4000 ** (1 - law.beta) - 10 ** (1 - law.beta)) / (1 - law.beta)
        assert record["area_nats_per_token"] * 4000 - area == pytest.approx(10 * law.at(10.0), rel=0.5)
        assert record["area_bits_per_byte"] == pytest.approx(record["area_bits"] / 4000)


def test_curves_that_never_meet_are_said_to_be_such(told):
    above, below = 3 + 1 / STEPS, 1 + 1 / STEPS
    _, out, _ = told(above, below, "--format md")
    assert "a.csv never comes down to the loss with which b.csv ends" in out
    assert "By the laws it never gets there." in out
    _, out, _ = told(np.full(200, 2.0), below, "--format md")
    assert "a.csv: no law, losses do not fall." in out
    status, out, err = told(above, below, steps=(STEPS, STEPS + 1e6))
    assert status == 2 and out == "" and err.count("\n") == 1 and "of the same range" in err
    status, _, err = told(above, below, "--parameters 10 --bits-per-weight 8")
    assert status == 2 and "--against" in err


def test_the_shorter_curve_ends_the_comparison(told):
    law = CurveLaw(1, 20, 0.5, 10, -1)
    half = STEPS[:100]
    _, out, _ = told(law.at(STEPS), law.at(half), "--format json", steps=(STEPS, half))
    first, second = json.loads(out)
    assert first["tokens"] == second["tokens"] == pytest.approx(half[-1])
    assert first["area_bits"] == pytest.approx(second["area_bits"], rel=1e-12)
    assert first["acceleration"] == pytest.approx(1) and math.isclose(first["end_loss_nats"], law.at(half[-1]))
