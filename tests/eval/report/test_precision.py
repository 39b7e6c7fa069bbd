"""`codelength eval RUN --sweep-precision`: a U-shaped curve whose numbers, picture and table agree."""

import csv
import shutil

import numpy as np
import pytest
from matplotlib.image import imread

from eval.report.precision import LOG2_FACTORS, draw_precision
from tests.support.commands import run_command

GREEN = (0, 0x9E / 255, 0x73 / 255)


@pytest.fixture(scope="module")
def swept(demo_run):
    """Run directory, what was printed, and the records of the CSV file."""
    run_dir = demo_run.with_name("precision")
    shutil.copytree(demo_run, run_dir)
    done = run_command(f"codelength eval {run_dir} --sweep-precision --quiet", demo_run.parents[1])
    assert done.returncode == 0, done.stderr
    with (run_dir / "offline" / "precision.csv").open() as file:
        records = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
    return run_dir, done.stdout, records


def test_bytes_of_model_and_text_add_up_for_every_factor(swept):
    _, _, records = swept
    assert [record["step_factor"] for record in records] == [2.0**power for power in LOG2_FACTORS]
    for record in records:
        assert record["ideal_total_bytes"] == record["model_bytes"] + record["ideal_data_bytes"]
    # Whole steps finer than those of training are a bit each.
    bits = [record["bits_per_weight"] for record in records[:5:2]]
    assert np.diff(bits) == pytest.approx(-1, abs=0.1)


def test_the_table_has_the_smallest_total_which_the_archive_comes_near(swept):
    run_dir, printed, records = swept
    smallest = min(record["ideal_total_bytes"] for record in records)
    assert f"{round(smallest):,}" in printed
    archive_bytes = (run_dir / "offline" / "archive.cl").stat().st_size
    # The header and the ends of streams are a few hundred bytes.
    assert smallest == pytest.approx(archive_bytes, abs=500)


def test_the_picture_marks_the_smallest_total(swept, tmp_path):
    run_dir, _, _ = swept
    assert imread(run_dir / "figures" / "precision.png").shape[:2] == (750, 1200)
    places = []
    for best in (1, 3):
        totals = [9e5, 8e5, 7e5, 8e5, 9e5]
        totals[best] = 3e5
        records = [
            {"bits_per_weight": 2.0 * i, "total_bytes": total, "model_bytes": 1e5, "data_bytes": total - 1e5}
            | {"is_emphasised": i == best}
            for i, total in enumerate(totals)
        ]
        draw_precision(tmp_path / "p.png", records)
        image = imread(tmp_path / "p.png")[:, :, :3]
        # The ring is drawn in the legend too, in the same place of both pictures.
        places.append(np.argwhere(np.abs(image - GREEN).max(axis=2) < 0.02)[:, 1].mean())
    assert places[1] > places[0] + 50
