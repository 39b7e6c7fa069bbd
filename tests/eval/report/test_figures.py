"""Pictures: real PNG files of the right size, written whole, for short, long, empty and odd runs."""

import numpy as np
import pytest
from matplotlib.image import imread

from eval.offline.baselines import BASELINES
from eval.show.figures import loss_curve, online_curve, sparsity_per_layer

RATES = {baseline.label(): 2.0 + 0.3 * i for i, baseline in enumerate(BASELINES)}
BLACK, BLUE = (0.0, 0.0, 0.0), (0, 0x72 / 255, 0xB2 / 255)


def pixels(path) -> np.ndarray:
    """Height x width x RGB, and nothing temporary left beside the picture."""
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    return imread(path)[:, :, :3]


def count(image: np.ndarray, colour: tuple[float, float, float]) -> int:
    return int((np.abs(image - colour).max(axis=2) < 0.02).sum())


def curve(num_points: int) -> tuple[np.ndarray, np.ndarray]:
    raw_bytes = 512 * np.arange(1, num_points + 1)
    return raw_bytes, raw_bytes * (2 + 6 / np.sqrt(np.arange(1, num_points + 1)))


@pytest.mark.parametrize("num_points", [0, 1, 300_000])
def test_the_online_curve_is_drawn_for_any_length(tmp_path, num_points):
    path = tmp_path / "figures" / "online.png"
    online_curve(path, *curve(num_points), RATES)
    assert pixels(path).shape == (750, 1200, 3)


def test_a_costlier_online_code_runs_higher(tmp_path):
    path = tmp_path / "online.png"
    raw_bytes, bits = curve(1000)
    mean_rows = []
    for factor in (1.0, 1.5):
        online_curve(path, raw_bytes, factor * bits, {})
        # Right of the legend and clear of the axes, only the online code is black.
        inside = pixels(path)[60:640, 500:1150]
        assert count(inside, BLACK) > 1000
        mean_rows.append(np.argwhere(inside.max(axis=2) < 0.02)[:, 0].mean())
    assert mean_rows[1] < mean_rows[0] - 30


def test_the_same_numbers_give_the_same_picture(tmp_path):
    for name in ("a", "b"):
        online_curve(tmp_path / name / "online.png", *curve(50), RATES)
    assert (tmp_path / "a" / "online.png").read_bytes() == (tmp_path / "b" / "online.png").read_bytes()


@pytest.mark.parametrize("num_steps", [0, 1, 20_000])
def test_the_loss_curve_is_drawn_for_any_length(tmp_path, num_steps):
    step = np.arange(num_steps)
    path = tmp_path / "loss.png"
    phases = [("main", 0), ("prune", num_steps // 2), ("finetune", num_steps // 2 + 1)]
    loss_curve(path, step, 2 + 6 / np.sqrt(step + 1), phases)
    assert pixels(path).shape == (750, 1200, 3)


def test_steps_without_a_finite_loss_do_not_hide_the_others(tmp_path):
    loss = np.full(400, 3.0)
    loss[[5, 100]] = np.nan, np.inf
    path = tmp_path / "loss.png"
    loss_curve(path, np.arange(400), loss, [])
    assert count(pixels(path), BLUE) > 1500


def test_bars_are_as_long_as_the_share_of_nonzeros(tmp_path):
    blue = []
    for percent in (10, 40):
        path = tmp_path / "sparsity.png"
        names = [f"blocks.{i}.weight" for i in range(20)]
        sparsity_per_layer(path, names, [1000] * 20, [10 * percent] * 20)
        blue.append(count(pixels(path), BLUE))
    assert blue[1] == pytest.approx(4 * blue[0], rel=0.03)


@pytest.mark.parametrize("num_tensors", [0, 60])
def test_a_model_of_any_depth_stays_readable(tmp_path, num_tensors):
    path = tmp_path / "sparsity.png"
    names = [f"blocks.{i // 5}.tensor_{i % 5}.weight" for i in range(num_tensors)]
    sparsity_per_layer(path, names, [0] * num_tensors, [0] * num_tensors)
    height = pixels(path).shape[0]
    assert height >= max(750, 28 * num_tensors)
