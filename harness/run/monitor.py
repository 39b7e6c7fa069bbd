"""What a run shows while it trains: a progress line, JSON lines and TensorBoard files, all from rank 0.

They are views: the ledger is the record. Other ranks hold a `NullMonitor`, so that the loop needs no special case.
"""

import json
import threading
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import torch

from harness.files import naming, replacing
from harness.machine.progress import SECONDS_BETWEEN_LINES, Pause, ProgressLine, clock, is_terminal
from harness.run.metrics import TAGS
from harness.units import bits_per_byte as per_byte
from harness.units import bytes_from_bits

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

_LARGEST_IN_HISTOGRAM = 1e20
# Weights of a tensor that a histogram is made of: one costs 46 ns on a CPU, and 10^5 show any shape.
_LARGEST_SAMPLE = 100_000
_METRICS_FILE = "metrics.jsonl"
TENSORBOARD_DIR = "tensorboard"


class NullMonitor:
    """The monitor of every rank but the first: takes everything, shows and writes nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Finish the progress line and close the files."""

    def log_step(self, step: int, phase: str, metrics: dict[str, float]) -> None:
        """Record the scalars of one step, each named with its unit."""

    def log_tensors(self, step: int, named_tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Record the number of non-zeros of every tensor and a histogram of a sample of it."""
        for _ in named_tensors:
            # A gathering in which every rank takes part.
            pass

    def progress(
        self,
        step: int,
        phase: str,
        bits_per_byte: float,
        online_bits: float,
        tokens_per_second: float,
        mfu: float | None,
        seconds_left: float,
        raw_bytes: float,
    ) -> None:
        """Show where the run is.

        `bits_per_byte` is that of this step; `online_bits` is the code length of the first `raw_bytes` bytes of the
        corpus; `mfu` is the fraction of the peak arithmetic rate, None where the peak is unknown.
        """

    def message(self, text: str) -> None:
        """Print a line for the user."""


class Monitor(NullMonitor):
    """Writes `metrics.jsonl` and `tensorboard/` in the run directory; progress to stderr, messages to stdout."""

    def __init__(self, run_dir: Path, total_steps: int, purge_step: int | None = None) -> None:
        self._total_steps = total_steps
        self._line, self._pause = ProgressLine(), Pause(SECONDS_BETWEEN_LINES)
        run_dir.mkdir(parents=True, exist_ok=True)
        self._metrics_path = metrics_path = run_dir / _METRICS_FILE
        if purge_step is not None and metrics_path.exists():
            _drop_lines_from(metrics_path, purge_step)
        self._metrics_file = metrics_path.open("a", encoding="utf-8")
        # A restart purges only what a marked start came before, so the first start is marked too, as a purge from 0.
        self._log_dir = run_dir / TENSORBOARD_DIR
        with naming(self._log_dir):
            self._writer = event_writer(self._log_dir, purge_step=purge_step or 0, flush_secs=10)

    def close(self) -> None:
        """Finish the progress line and close the files."""
        self._line.end()
        self._metrics_file.close()
        with naming(self._log_dir):
            self._writer.flush()
            self._writer.close()

    def log_step(self, step: int, phase: str, metrics: dict[str, float]) -> None:
        """Append one JSON line, at once on its way to disk, and one TensorBoard scalar a metric."""
        line = {"step": step, "phase": phase} | {name: _json_number(value) for name, value in metrics.items()}
        with naming(self._metrics_path):
            print(json.dumps(line, allow_nan=False), file=self._metrics_file, flush=True)
        with naming(self._log_dir):
            for name, value in metrics.items():
                add_scalar(self._writer, *TAGS.get(name, (name, "")), value, step)

    def log_tensors(self, step: int, named_tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Record the number of non-zeros of every tensor that has elements, and the histogram of a sample of it."""
        for name, tensor in named_tensors:
            values = tensor.detach()
            with naming(self._log_dir):
                words = "Weights of this tensor that are not zero."
                add_scalar(self._writer, f"weights/nonzeros/{name}", words, int(values.count_nonzero()), step)
            # An odd stride visits all columns of matrices whose width is a power of two.
            stride = -(-values.numel() // _LARGEST_SAMPLE) | 1
            values = values.reshape(-1)[::stride].float().cpu()
            # The writer's bins end at 1e20 and it fails where none of the values is inside them.
            counted_values = values[values.abs() < _LARGEST_IN_HISTOGRAM]
            if counted_values.numel():
                with naming(self._log_dir):
                    self._writer.add_histogram(f"weights/{name}", counted_values.numpy(), step)

    def progress(
        self,
        step: int,
        phase: str,
        bits_per_byte: float,
        online_bits: float,
        tokens_per_second: float,
        mfu: float | None,
        seconds_left: float,
        raw_bytes: float,
    ) -> None:
        """Update the line in place on a terminal; elsewhere print one every ten seconds, and at the last step."""
        is_due = self._pause.is_over()
        if not (is_due or is_terminal() or step >= self._total_steps):
            return
        parts = [
            f"{phase}  step {step}/{self._total_steps}",
            f"{bits_per_byte:.3f} bits/byte",
            f"online {_si(bytes_from_bits(online_bits), 2)}B ({per_byte(online_bits, raw_bytes):.3f} bits/byte)",
            f"{_si(tokens_per_second, 1).replace(' ', '', 1)} tokens/s",
            *([f"MFU {100 * mfu:.0f} %"] if mfu is not None else []),
            f"{clock(seconds_left)} left",
        ]
        self._line.show("  ".join(parts))

    def message(self, text: str) -> None:
        """Print a line to stdout; a progress line on the screen is wiped first and comes back with the next update."""
        self._line.wipe()
        print(text, flush=True)


def add_scalar(writer: "SummaryWriter", tag: str, description: str, value: float, step: int) -> None:
    """Write a scalar in TensorBoard's own format, with words that its page shows beside the chart.

    Its fast loader shows no float64 scalar at all; metrics.jsonl and the ledger have every digit.
    """
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.compat.proto.tensor_pb2 import TensorProto
    from tensorboard.compat.proto.types_pb2 import DT_FLOAT
    from tensorboard.plugins.scalar.metadata import create_summary_metadata

    metadata = create_summary_metadata(display_name="", description=description)
    tensor = TensorProto(float_val=[value], dtype=DT_FLOAT)
    summary = Summary(value=[Summary.Value(tag=tag, tensor=tensor, metadata=metadata)])
    writer._get_file_writer().add_summary(summary, step)


def event_writer(folder: Path, **options: Any) -> "SummaryWriter":
    """Open a TensorBoard writer, whose errors are raised by its next call and not also printed by its thread."""
    # TensorBoard takes a second to import.
    from torch.utils.tensorboard import SummaryWriter

    threading.excepthook = _print_error_once
    return SummaryWriter(log_dir=str(folder), **options)


def _print_error_once(problem: threading.ExceptHookArgs) -> None:
    """A `threading.excepthook` without TensorBoard's writer, whose errors its next call raises again."""
    if not type(problem.thread).__module__.startswith("tensorboard."):
        threading.__excepthook__(problem)


def make_monitor(run_dir: Path, total_steps: int, rank: int, purge_step: int | None = None) -> NullMonitor:
    """Make the `Monitor` of rank 0, or a `NullMonitor` for any other rank.

    On resume `purge_step` is the first step that will run again: what was recorded from it on is dropped.
    """
    return Monitor(run_dir, total_steps, purge_step) if rank == 0 else NullMonitor()


def _si(value: float, digits: int) -> str:
    """`value` with the prefix of its unit, as in `1.92 M`; whole below 1000, as in `512 `."""
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.{digits}f} {prefix}"
    return f"{value:.0f} "


def _json_number(value: float) -> float | None:
    """JSON has no NaN or infinity; null keeps the line readable for every parser."""
    return value if -float("inf") < value < float("inf") else None


def _drop_lines_from(path: Path, first_step: int) -> None:
    """Keep the lines of earlier steps, atomically; a line that a crash left unfinished goes too."""
    with path.open(encoding="utf-8", errors="replace") as old, replacing(path) as new:
        for line in old:
            try:
                is_earlier = json.loads(line)["step"] < first_step
            except (ValueError, KeyError, TypeError):
                continue
            if is_earlier:
                new.write(line.encode())
