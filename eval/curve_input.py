"""Published loss curves as users have them: two columns of a CSV file, or a scalar of a TensorBoard log.

Positions become tokens and losses become nats per token here; nothing behind this file knows another unit.
"""

import csv
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from harness.errors import UsageError
from harness.units import nats_from_bits

UNITS = ("nats", "bits")
MAX_CSV_BYTES = 64 * 1024 * 1024
# Far beyond every corpus and model, and far from the ends of a float64.
_LARGEST = 1e30
_MAX_SHOWN = 12


@dataclass(kw_only=True, slots=True, frozen=True)
class Curve:
    """A training loss against the tokens read until then."""

    name: str
    """Where it comes from: the path, and the tag of a TensorBoard log."""
    tokens: np.ndarray
    """Tokens read at each point: 1-D float64, increasing, at least 1."""
    loss_nats: np.ndarray
    """Loss per token at each point: 1-D float64, above 0."""
    counts_from_zero: bool = False
    """Whether the first step of the log is called 0."""


@dataclass(kw_only=True, slots=True, frozen=True)
class Amounts:
    """The numbers beside a curve; None where the user gave none."""

    tokens: float | None = None
    """Different tokens of the dataset."""
    tokens_per_step: float | None = None
    """Tokens that one unit of x stands for."""
    vocab_size: float | None = None
    raw_bytes: float | None = None
    """Size of the dataset."""
    parameters: float | None = None
    bits_per_weight: float | None = None
    final_loss: float | None = None
    """Loss per token of the final model, in the unit of the curve."""


_SMALLEST = {"tokens": 1, "vocab_size": 2, "raw_bytes": 1, "parameters": 1}


def read_amounts(texts: dict[str, str | None]) -> Amounts:
    """Numbers as users write them (1400000000000, 1.4e12); raises UsageError for one that cannot be meant."""
    numbers = {}
    for name, text in texts.items():
        if text is None:
            continue
        key, smallest = f"--{name.replace('_', '-')}", _SMALLEST.get(name, 0)
        number = float(text) if _is_number(text) else math.nan
        if math.isnan(number):
            raise UsageError(f"{key} {text}: is not a number; write it like 1.4e12")
        if number < smallest or number == 0 or number > _LARGEST:
            bound = f"at least {smallest}" if smallest else "above 0"
            raise UsageError(f"{key} {text}: must be {bound} and at most {_LARGEST:g}")
        numbers[name] = number
    if ("parameters" in numbers) != ("bits_per_weight" in numbers):
        missing = "--parameters N" if "bits_per_weight" in numbers else "--bits-per-weight 16"
        raise UsageError(f"--parameters, --bits-per-weight: only one is given; add {missing}, or leave out both")
    if "final_loss" in numbers and "parameters" not in numbers:
        raise UsageError("--final-loss: is for the offline code; add --parameters N and --bits-per-weight 16")
    return Amounts(**numbers)


def read_curve(
    path: Path, unit: str | None, columns: str | None, tag: str | None, tokens_per_step: float | None
) -> Curve:
    """Read a CSV file or a TensorBoard log (a directory or an event file) whose losses are in `unit` per token.

    `columns` names the two columns "X,LOSS" of a CSV file, `tag` the scalar of a log. A point's x counts units of
    `tokens_per_step` tokens (default: tokens) and stands where its step ends. Raises UsageError for anything that is
    not a curve of two points.
    """
    check_unit(unit)
    is_log = path.is_dir() or "tfevents" in path.name
    if is_log and columns:
        raise UsageError(f"--columns {columns}: is for a CSV file; name the scalar of a TensorBoard log with --tag")
    if tag and not is_log:
        raise UsageError(f"--tag {tag}: is for a TensorBoard log; name the columns of a CSV file with --columns X,LOSS")
    if is_log and tokens_per_step is None:
        raise UsageError(f"{path}: a TensorBoard log counts steps; add --tokens-per-step N (sequences x length)")
    places, steps, losses, tag = _read_log(path, tag) if is_log else (*_read_csv(path, columns), None)
    _check_points(path, places, steps, losses, tokens_per_step, is_log)
    x = np.array(steps)
    # The batch that a log calls step 0 is read when its loss is known, and so is every later one.
    counts_from_zero = is_log and x[0] == 0
    loss = np.array(losses)
    return Curve(
        name=f"{path} {tag}" if tag else str(path),
        tokens=(x + counts_from_zero) * (tokens_per_step or 1.0),
        loss_nats=nats_of(loss, unit),
        counts_from_zero=bool(counts_from_zero),
    )


def check_unit(unit: str | None) -> None:
    """Raise UsageError for a unit that is missing or unknown: a number alone does not tell nats from bits."""
    if unit not in UNITS:
        problem = "is missing" if unit is None else f"{unit}: is unknown"
        raise UsageError(f"--unit {problem}; choose nats or bits (per token), as the source of the curve says")


def nats_of(loss: np.ndarray | float, unit: str) -> np.ndarray | float:
    """A loss in nats, given in one of `UNITS`."""
    return nats_from_bits(loss) if unit == "bits" else loss


def _check_points(
    path: Path, places: list[str], steps: list[float], losses: list[float], tokens_per_step: float | None, is_log: bool
) -> None:
    """Raise UsageError at the first point that cannot belong to a curve, naming its line or step."""
    before = -math.inf
    for place, x, loss in zip(places, steps, losses, strict=True):
        for name, value in (("x", x), ("loss", loss)):
            if not math.isfinite(value) or abs(value) > _LARGEST:
                raise UsageError(f"{path}: {place}: {name} {value:g} is not a usable number; leave the point out")
        if loss <= 0:
            raise UsageError(f"{path}: {place}: loss {loss:g} must be above 0; leave the point out")
        if x < 0 or (x == 0 and not is_log):
            remedy = "leave the point out (what comes before the first point is estimated)"
            raise UsageError(f"{path}: {place}: x {x:g} must be above 0; {remedy}")
        if x <= before:
            remedy = "put the points in order and keep one for each x"
            raise UsageError(f"{path}: {place}: x {x:g} comes after {before:g}; {remedy}")
        if 0 < x * (tokens_per_step or 1.0) < 1:
            remedy = "if x counts steps, or billions of tokens, add --tokens-per-step N (or 1e9)"
            raise UsageError(f"{path}: {place}: x {x:g} is less than one token; {remedy}")
        before = x
    if len(steps) < 2:
        raise UsageError(f"{path}: {len(steps)} point(s) with a loss; a curve needs at least two")


def _read_csv(path: Path, columns: str | None) -> tuple[list[str], list[float], list[float]]:
    """Lines, x and loss of every row; a header is optional where there are two columns."""
    text = _text(path)
    delimiter = next((d for d in "\t;," if d in text.split("\n", 1)[0]), ",")
    reader = csv.reader(text.splitlines(), delimiter=delimiter)
    try:
        rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader if any(map(str.strip, row))]
    except csv.Error as error:
        raise UsageError(f"{path}: line {reader.line_num}: not a CSV file ({error}); give two columns") from None
    if not rows:
        raise UsageError(f"{path}: the file is empty; give two columns, x and loss")
    header = rows[0][1]
    chosen = _chosen_columns(path, header, columns)
    if not any(_is_number(cell) for cell in header):
        rows = rows[1:]
    places, steps, losses = [], [], []
    for line, row in rows:
        if len(row) != len(header):
            raise UsageError(f"{path}: line {line}: {len(row)} column(s) instead of {len(header)}; mend the line")
        values = []
        for name, column in zip(("x", "loss"), chosen, strict=True):
            if not _is_number(row[column]):
                shown = row[column][:40]
                raise UsageError(f"{path}: line {line}: {name} {shown!r} is not a number; write it like 1.54 or 2e9")
            values.append(float(row[column]))
        places.append(f"line {line}")
        steps.append(values[0])
        losses.append(values[1])
    return places, steps, losses


def _text(path: Path) -> str:
    remedy = "give the path of a CSV file or of a TensorBoard log"
    try:
        with path.open("rb") as file:
            content = file.read(MAX_CSV_BYTES + 1)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; {remedy}") from None
    if len(content) > MAX_CSV_BYTES:
        raise UsageError(f"{path}: larger than {MAX_CSV_BYTES >> 20} MB; keep fewer points (some thousands do)")
    try:
        # Spreadsheets put a byte-order mark first.
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UsageError(f"{path}: not a text file; {remedy}") from None
    if "\0" in text:
        raise UsageError(f"{path}: not a text file; {remedy}")
    return text


def _chosen_columns(path: Path, header: list[str], columns: str | None) -> tuple[int, int]:
    """Indices of x and loss in a row."""
    shown = ", ".join(header[:_MAX_SHOWN])
    if columns is None:
        if len(header) != 2:
            remedy = f"choose two with --columns X,LOSS from the first line: {shown}"
            raise UsageError(f"{path}: {len(header)} column(s); {remedy}")
        return 0, 1
    names = [name.strip() for name in next(csv.reader([columns]), [])]
    if len(names) != 2:
        raise UsageError(f"--columns {columns}: must be two names, X,LOSS, from the first line: {shown}")
    for name in names:
        if header.count(name) != 1:
            problem = "is not in" if name not in header else "stands more than once in"
            raise UsageError(f"--columns {columns}: {name!r} {problem} the first line of {path}: {shown}")
    return header.index(names[0]), header.index(names[1])


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _read_log(path: Path, tag: str | None) -> tuple[list[str], list[float], list[float], str]:
    """Steps and values of one scalar, in both ways that TensorBoard stores scalars; and its tag."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    if not path.exists():
        raise UsageError(f"{path}: No such file or directory; give the path of a CSV file or of a TensorBoard log")
    # 0 keeps every point; by default a thousand are drawn at random.
    log = EventAccumulator(str(path), size_guidance={"scalars": 0, "tensors": 0})
    try:
        log.Reload()
        tags = log.Tags()
        tensors = [t for t in tags["tensors"] if log.SummaryMetadata(t).plugin_data.plugin_name == "scalars"]
    except Exception as error:
        # Whatever a foreign file makes of its reader, it is the file that is wrong.
        raise UsageError(f"{path}: not a TensorBoard log ({type(error).__name__}); give another path") from None
    found = sorted([*tags["scalars"], *tensors])
    if not found:
        remedy = "give the directory that holds its events.out.tfevents files"
        raise UsageError(f"{path}: no scalar of a TensorBoard log in it; {remedy}")
    if tag is None and len(found) > 1:
        raise UsageError(f"{path}: holds {len(found)} scalars; choose one with --tag: {_shown_tags(found)}")
    if tag is not None and tag not in found:
        raise UsageError(f"--tag {tag}: is not in {path}; choose one of: {_shown_tags(found)}")
    tag = tag or found[0]
    if tag in tensors:
        points = [(event.step, float(make_ndarray(event.tensor_proto).item())) for event in log.Tensors(tag)]
    else:
        points = [(event.step, float(event.value)) for event in log.Scalars(tag)]
    return [f"step {s}" for s, _ in points], [float(s) for s, _ in points], [value for _, value in points], tag


def _shown_tags(tags: list[str]) -> str:
    """The tags that look like losses first; a large model can have thousands of others."""
    ordered = sorted(tags, key=lambda tag: ("loss" not in tag.lower(), tag))
    rest = len(ordered) - _MAX_SHOWN
    return ", ".join(ordered[:_MAX_SHOWN]) + (f" and {rest:,} more" if rest > 0 else "")
