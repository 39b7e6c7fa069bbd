"""Published loss curves as users have them: two columns of a CSV file, or a scalar of a TensorBoard log.

Positions become tokens and losses become nats per token here; nothing behind this file knows another unit.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from eval.curves.read_csv import is_number, read_table
from eval.curves.read_log import read_scalar
from harness.errors import UsageError
from harness.units import Amount, nats_from_bits

UNITS = ("nats", "bits")
# Far beyond every corpus and model, and far from the ends of a float64.
_LARGEST = 1e30
_MAX_DIGITS = 16
# Where only every second step is logged, 1, 3, 5 is as likely from a trainer that counts from 1.
_SHORTEST_INTERVAL = 3


@dataclass(kw_only=True, slots=True, frozen=True)
class Curve:
    """A training loss against the tokens read until then."""

    name: str
    """Where it comes from: the path, and the tag of a TensorBoard log."""
    tokens: np.ndarray
    """Tokens read at each point: 1-D float64, increasing, at least 1."""
    loss_nats: np.ndarray
    """Loss per token at each point: 1-D float64, above 0."""
    first_step: int | None = None
    """What the first step is called; None where x counts tokens."""
    num_replaced: int = 0
    """Points of a log that a later writer replaced."""
    num_skipped: int = 0
    """Points without a usable loss that were left out."""
    notes: tuple[str, ...] = ()
    """What was assumed and left out, a line each."""


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
    """Read numbers as users write them (1400000000000, 1.4e12); raises UsageError for one that cannot be meant."""
    numbers = {}
    for name, text in texts.items():
        if text is None:
            continue
        key, smallest = f"--{name.replace('_', '-')}", _SMALLEST.get(name, 0)
        number = float(text) if is_number(text) else math.nan
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


@dataclass(kw_only=True, slots=True, frozen=True)
class Options:
    """How to read a curve, as users say it; None where they do not."""

    columns: str | None = None
    """The two columns "X,LOSS" of a CSV file."""
    tag: str | None = None
    """The scalar of a TensorBoard log."""
    first_step: str | None = None
    """What the trainer calls its first step."""
    skip_nan: bool = False
    """Leave out points whose loss is not a usable number."""
    allow_damaged: bool = False
    """Read what can be read of a log that is cut or damaged."""


def read_curve(path: Path, unit: str | None, tokens_per_step: float | None, options: Options) -> Curve:
    """Read a CSV file or a TensorBoard log (a directory or an event file) whose losses are in `unit` per token.

    A point's x counts units of `tokens_per_step` tokens (default: tokens) and stands where its step ends. Raises
    UsageError for anything that is not a curve of two points.
    """
    unit = check_unit(unit)
    is_log = path.is_dir() or "tfevents" in path.name
    first_step = _check_options(path, options, is_log, tokens_per_step)
    if is_log:
        scalar = read_scalar(path, options.tag, options.allow_damaged)
        points = [(f"step {step}", float(step), loss) for step, loss in zip(scalar.steps, scalar.values, strict=True)]
        name, num_replaced, notes = f"{path} {scalar.tag}", scalar.num_replaced, scalar.notes
    else:
        table = read_table(path, options.columns, options.skip_nan)
        points = [(f"line {line}", x, loss) for line, x, loss in zip(table.lines, table.x, table.losses, strict=True)]
        name, num_replaced, notes = str(path), 0, []
        if table.num_blank:
            notes.append(f"{table.num_blank:,} row(s) without a loss in this column are left out.")
    num_all = len(points)
    points = [point for point in points if not (options.skip_nan and _is_unusable(point[2]))]
    if len(points) < num_all:
        notes.append(f"--skip-nan: {num_all - len(points):,} point(s) without a usable loss are left out.")
    if tokens_per_step is not None:
        first_step, note = _first_step([x for _, x, _ in points], first_step, is_log)
        notes += [note] if note else []
    before_first = 1 if first_step is None else first_step
    _check_points(path, points, before_first, tokens_per_step or 1.0, is_log)
    x = np.array([x for _, x, _ in points])
    return Curve(
        name=name,
        tokens=(x + (1 - before_first)) * (tokens_per_step or 1.0),
        loss_nats=nats_of(np.array([loss for _, _, loss in points]), unit),
        first_step=first_step,
        num_replaced=num_replaced,
        num_skipped=num_all - len(points),
        notes=tuple(notes),
    )


def _check_options(path: Path, options: Options, is_log: bool, tokens_per_step: float | None) -> int | None:
    """The first step, if it is given; raises UsageError for what does not fit the kind of file."""
    columns, tag, first_step = options.columns, options.tag, options.first_step
    if is_log and columns:
        raise UsageError(f"--columns {columns}: is for a CSV file; name the scalar of a TensorBoard log with --tag")
    if tag and not is_log:
        raise UsageError(f"--tag {tag}: is for a TensorBoard log; name the columns of a CSV file with --columns X,LOSS")
    if options.allow_damaged and not is_log:
        raise UsageError("--allow-damaged: is for a TensorBoard log; mend the CSV file")
    if is_log and tokens_per_step is None:
        raise UsageError(f"{path}: a TensorBoard log counts steps; add --tokens-per-step N (sequences x length)")
    if first_step is None:
        return None
    if not (first_step.isdecimal() and len(first_step) < _MAX_DIGITS):
        raise UsageError(f"--first-step {first_step}: must be a whole number, such as 0 or 1")
    if tokens_per_step is None:
        raise UsageError(f"--first-step {first_step}: is for an x that counts steps; add --tokens-per-step N")
    return int(first_step)


def _first_step(steps: list[float], given: int | None, is_log: bool) -> tuple[int, str]:
    """What the first step is called, and what was assumed of it, in words."""
    later, sooner = "step s ends after s + 1 times --tokens-per-step", "step s ends after s times --tokens-per-step"
    if given is not None:
        return given, ""
    if is_log and steps[:1] == [0]:
        return 0, f"The log starts at step 0, so {later} (otherwise: --first-step N)."
    if is_log and _ends_of_intervals(steps):
        shown = f"{steps[0]:g}, {steps[1]:g}, ..."
        return 0, f"Steps {shown} end intervals that start at step 0, so {later} (otherwise: --first-step 1)."
    if not is_log:
        return 1, "Assumed: x ends after x times --tokens-per-step (if x counts steps from 0: --first-step 0)."
    return 1, f"Assumed: the first step is called 1, so {sooner} (otherwise: --first-step 0)."


def _ends_of_intervals(steps: list[float]) -> bool:
    """Whether steps look like 49, 99, 149: logged at the end of every fifty, counted from 0."""
    if len(steps) < 2 or steps[1] - steps[0] < _SHORTEST_INTERVAL:
        return False
    interval = steps[1] - steps[0]
    # The last one may stand at the end of a run.
    return steps[0] == interval - 1 and all((step + 1) % interval == 0 for step in steps[:-1])


def check_unit(unit: str | None) -> str:
    """Check the unit; raises UsageError where it is missing or unknown: a number alone does not tell nats from bits."""
    if unit is None or unit not in UNITS:
        problem = "is missing" if unit is None else f"{unit}: is unknown"
        raise UsageError(f"--unit {problem}; choose nats or bits (per token), as the source of the curve says")
    return unit


def nats_of(loss: Amount, unit: str) -> Amount:
    """Convert a loss in one of `UNITS` to nats."""
    return nats_from_bits(loss) if unit == "bits" else loss


def _is_unusable(loss: float) -> bool:
    return not 0 < loss <= _LARGEST


def _check_points(
    path: Path, points: list[tuple[str, float, float]], first_step: int, tokens_per_step: float, is_log: bool
) -> None:
    """Raise UsageError at the first point that cannot belong to a curve, naming its line or step."""
    before = -math.inf
    # Nobody can edit an event file.
    remedy = "add --skip-nan to leave such points out"
    leave_out = remedy if is_log else f"remove the line, or {remedy}"
    for place, x, loss in points:
        if not math.isfinite(x) or abs(x) > _LARGEST:
            raise UsageError(f"{path}: {place}: x {x:g} is not a usable number; leave the point out")
        if _is_unusable(loss):
            problem = "must be above 0" if -_LARGEST <= loss <= 0 else "is not a usable number"
            raise UsageError(f"{path}: {place}: loss {loss:g} {problem}; {leave_out}")
        tokens = (x + (1 - first_step)) * tokens_per_step
        if x < first_step and (is_log or first_step != 1):
            raise UsageError(f"{path}: {place}: comes before --first-step {first_step}; choose a smaller one")
        if tokens <= 0:
            remedy = "remove the line (what comes before the first point is estimated)"
            if x == 0:
                remedy = f"if x counts steps from 0, add --first-step 0 and --tokens-per-step N, otherwise {remedy}"
            raise UsageError(f"{path}: {place}: x {x:g} must be above 0; {remedy}")
        if x <= before:
            remedy = "put the points in order and keep one for each x"
            raise UsageError(f"{path}: {place}: x {x:g} comes after {before:g}; {remedy}")
        if tokens < 1:
            remedy = "if x counts steps, or billions of tokens, add --tokens-per-step N (or 1e9)"
            raise UsageError(f"{path}: {place}: x {x:g} is less than one token; {remedy}")
        before = x
    if len(points) < 2:
        raise UsageError(f"{path}: {len(points)} point(s) with a loss; a curve needs at least two")
