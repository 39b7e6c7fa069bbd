"""The views of a run: JSON lines, TensorBoard values and the progress line."""

import fcntl
import json
import math
import os
import pty
import struct
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator as PluginEventAccumulator
from tensorboard.util.tensor_util import make_ndarray

from harness.run.monitor import Monitor, NullMonitor, make_monitor

NUMBERS = {
    "bits_per_byte": 2.8712,
    "online_bits": 8 * 1_920_000.0,
    "raw_bytes": 4_951_644,
    "tokens_per_second": 14_231.0,
    "mfu": 0.312,
    "seconds_left": 161.2,
}
LINE = "main  step 350/1394  2.871 bits/byte  online 1.92 MB (3.102 bits/byte)  14.2k tokens/s  MFU 31 %  2:41 left"


def read_lines(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def read_events(run_dir: Path) -> EventAccumulator:
    return EventAccumulator(str(run_dir / "tensorboard"), size_guidance={"tensors": 0, "histograms": 0}).Reload()


def values_of(events: list) -> list[float]:
    return [make_ndarray(event.tensor_proto).item() for event in events]


def test_every_digit_is_in_the_metrics_and_a_float32_in_tensorboard(tmp_path):
    values = [math.pi * 1e9, 1 / 3, 47_123_456_789.125]
    with make_monitor(tmp_path, 3, rank=0) as monitor:
        for step, value in enumerate(values):
            monitor.log_step(step, "main", {"online_bits": value})
    assert values_of(read_events(tmp_path).Tensors("online/bits")) == [float(np.float32(v)) for v in values]
    assert read_lines(tmp_path) == [{"step": i, "phase": "main", "online_bits": v} for i, v in enumerate(values)]


def test_a_line_is_on_disk_as_soon_as_it_is_logged(tmp_path):
    with make_monitor(tmp_path, 3, rank=0) as monitor:
        monitor.log_step(0, "main", {"loss_bits_per_byte": 3.5})
        assert len(read_lines(tmp_path)) == 1


def test_resume_drops_what_will_run_again(tmp_path):
    with make_monitor(tmp_path, 5, rank=0) as monitor:
        for step in range(5):
            monitor.log_step(step, "main", {"loss": float(step)})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 1, "pha')  # killed while writing
    with make_monitor(tmp_path, 5, rank=0, purge_step=3) as monitor:
        monitor.log_step(3, "main", {"loss": 33.0})
    assert [(line["step"], line["loss"]) for line in read_lines(tmp_path)] == [(0, 0), (1, 1), (2, 2), (3, 33)]
    # The accumulator behind the TensorBoard page: the other one never purges scalars of this style.
    page = PluginEventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"tensors": 0}).Reload()
    assert values_of(page.Tensors("loss")) == [0, 1, 2, 33]
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".tmp"] == []


def test_a_loss_that_is_not_finite_stays_valid_json(tmp_path):
    with make_monitor(tmp_path, 1, rank=0) as monitor:
        monitor.log_step(0, "main", {"loss": math.nan, "peak": math.inf})
    assert read_lines(tmp_path) == [{"step": 0, "phase": "main", "loss": None, "peak": None}]


def test_weights_show_as_histograms_and_nonzeros(tmp_path):
    weight = torch.tensor([[0.0, 1.5], [-2.5, 0.0]], dtype=torch.bfloat16, requires_grad=True)
    with make_monitor(tmp_path, 1, rank=0) as monitor:
        monitor.log_tensors(7, [("head", weight), ("nothing", torch.empty(0)), ("broken", torch.full((2,), math.nan))])
    events = read_events(tmp_path)
    assert values_of(events.Tensors("weights/nonzeros/head")) == [2]
    (histogram,) = events.Histograms("weights/head")
    assert histogram.step == 7
    value = histogram.histogram_value
    assert (value.num, value.min, value.max, value.sum) == (4, -2.5, 1.5, -1.0)
    assert events.Tags()["histograms"] == ["weights/head"]


def test_only_rank_0_writes(tmp_path, capfd):
    with make_monitor(tmp_path / "run", 9, rank=1) as monitor:
        assert type(monitor) is NullMonitor
        monitor.log_step(1, "main", {"loss": 1.0})
        monitor.log_tensors(1, [("w", torch.ones(2))])
        monitor.progress(1, "main", **NUMBERS)
        monitor.message("hello")
    assert not (tmp_path / "run").exists()
    assert capfd.readouterr() == ("", "")


def test_both_monitors_take_the_same_calls():
    public = {name for name in vars(NullMonitor) if not name.startswith("_")}
    assert public == {name for name in vars(Monitor) if not name.startswith("_")}


def test_a_log_file_gets_whole_lines_and_few_of_them(tmp_path, capfd):
    with make_monitor(tmp_path, 1394, rank=0) as monitor:
        for step in (350, 351, 352, 1394):
            monitor.progress(step, "main", **NUMBERS)
        monitor.message("saved")
    out, err = capfd.readouterr()
    assert err.splitlines() == [LINE, LINE.replace("350/", "1394/")]
    assert out == "saved\n"


def test_unknown_rates_are_left_out(tmp_path, capfd):
    with make_monitor(tmp_path, 10, rank=0) as monitor:
        monitor.progress(0, "prune", **(NUMBERS | {"mfu": None, "seconds_left": math.inf, "raw_bytes": 0}))
    line = capfd.readouterr().err
    assert "MFU" not in line
    assert line.endswith("? left\n")


@contextmanager
def terminal(monkeypatch, columns: int) -> Iterator[list[str]]:
    """Makes stdout and stderr a terminal; afterwards the list holds what it received."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    shown: list[str] = []
    with os.fdopen(theirs, "w") as stream, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        patch.setattr(sys, "stderr", stream)
        yield shown
    received = b""
    with suppress(OSError):  # Linux says EIO when all is read
        while part := os.read(ours, 10_000):
            received += part
    os.close(ours)
    shown.append(received.decode().replace("\r\n", "\n"))


@pytest.mark.parametrize("columns", [200, 60, 0])
def test_a_terminal_shows_one_line_in_place(tmp_path, monkeypatch, columns):
    with terminal(monkeypatch, columns) as shown, make_monitor(tmp_path, 1394, rank=0) as monitor:
        monitor.progress(350, "main", **NUMBERS)
        monitor.progress(351, "prune", **NUMBERS)
        monitor.message("saved")
        monitor.progress(352, "main", **NUMBERS)
    lines = [LINE, LINE.replace("main", "prune").replace("350/", "351/"), LINE.replace("350/", "352/")]
    first, second, third = (line[: (columns or 80) - 1] for line in lines)
    assert shown == [f"\r{first}\r{second}\r{' ' * len(second)}\rsaved\n\r{third}\n"]


def test_a_shorter_line_leaves_nothing_of_the_longer_one(tmp_path, monkeypatch):
    with terminal(monkeypatch, 200) as shown, make_monitor(tmp_path, 1394, rank=0) as monitor:
        monitor.progress(350, "finetune", **NUMBERS)
        monitor.progress(350, "main", **NUMBERS)
    assert shown == [f"\r{LINE.replace('main', 'finetune')}\r{LINE}    \n"]
