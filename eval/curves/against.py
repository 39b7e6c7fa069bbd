"""Two loss curves beside each other: how much sooner one is where the other ends, by the curves and by their laws.

The acceleration ratio is T / min{t: L(t) <= L'(T)}, where L' is the other curve and T its end (Gu et al., 2024). Read
off the curves, both are straight on logarithmic axes between points; by the laws, both are L0 + (B / t)^beta.
"""

import math
from dataclasses import asdict, dataclass

import numpy as np

from eval.curves.area import KIND, OnlineLength, online_length
from eval.curves.read import Amounts, Curve
from eval.length import Length
from eval.show import blocks
from eval.show.blocks import Block
from eval.show.cells import KIND as KIND_COLUMN
from eval.show.cells import Column, Record, count, decimal, in_words, length_cells, new_block
from harness.errors import UsageError
from harness.laws.shifted_power import CurveLaw, fit_curve

_UNUSED = ("parameters", "bits_per_weight", "final_loss")


@dataclass(frozen=True, kw_only=True, slots=True)
class Side:
    """One of the two curves, up to the position where both are compared."""

    curve: Curve
    online: OnlineLength
    law: CurveLaw | str
    """Over tokens; words where there is none."""
    end_loss_nats: float
    """At the end, between points read off the curve."""
    tokens_to_other: float | None
    """Tokens after which it is down at the loss with which the other one ends; None where it never is."""
    acceleration: float | None
    """The end over these tokens."""
    law_acceleration: float | None
    """The same by both laws; 0 where this one never gets there, None where there are no two laws."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Two curves up to the same position."""

    tokens: float
    """Where both are compared: `--tokens`, or where the shorter one ends."""
    sides: tuple[Side, Side]
    """The curve, then the one that it is held against."""


def check_amounts(amounts: Amounts) -> None:
    """Raise UsageError for what speaks of an offline code, which two curves have not."""
    given = [f"--{name.replace('_', '-')}" for name in _UNUSED if getattr(amounts, name) is not None]
    if given:
        raise UsageError(f"{', '.join(given)}: about the offline code of one curve; leave it out beside --against")


def compare(first: Curve, second: Curve, amounts: Amounts) -> Comparison:
    """Compare two curves up to `amounts.tokens`, by default to the end of the shorter one.

    Raises UsageError where one of them begins after the other has ended.
    """
    end = min(float(first.tokens[-1]), float(second.tokens[-1]))
    end = end if amounts.tokens is None else min(end, amounts.tokens)
    curves = tuple(_until(curve, end) for curve in (first, second))
    for curve, whole in zip(curves, (first, second), strict=True):
        if len(curve.tokens) < 2:
            raise UsageError(
                f"{whole.name}: begins at {whole.tokens[0]:g} tokens, both curves are known up to {end:g} only; "
                "give curves of the same range"
            )
    laws = [_law(curve) for curve in curves]
    sides = []
    for own, other in ((0, 1), (1, 0)):
        target = float(curves[other].loss_nats[-1])
        tokens = tokens_to(curves[own], target)
        mine, theirs = laws[own], laws[other]
        by_law = None if isinstance(mine, str) or isinstance(theirs, str) else mine.acceleration_over(theirs, end)
        sides.append(
            Side(
                curve=(first, second)[own],
                online=online_length(curves[own], end, amounts.vocab_size),
                law=mine,
                end_loss_nats=float(curves[own].loss_nats[-1]),
                tokens_to_other=tokens,
                acceleration=None if tokens is None else end / tokens,
                law_acceleration=by_law,
            )
        )
    return Comparison(tokens=end, sides=(sides[0], sides[1]))


def _until(curve: Curve, end: float) -> Curve:
    """The curve up to `end`, with a point there."""
    kept = curve.tokens < end
    loss = np.exp(np.interp(math.log(end), np.log(curve.tokens), np.log(curve.loss_nats)))
    if not kept.any():
        return Curve(name=curve.name, tokens=np.array([end]), loss_nats=np.array([loss]))
    return Curve(
        name=curve.name, tokens=np.append(curve.tokens[kept], end), loss_nats=np.append(curve.loss_nats[kept], loss)
    )


def tokens_to(curve: Curve, loss_nats: float) -> float | None:
    """Find the tokens after which a curve is at most `loss_nats` for the first time; None where it never is."""
    below = np.flatnonzero(curve.loss_nats <= loss_nats)
    if not len(below):
        return None
    index = int(below[0])
    if not index:
        return float(curve.tokens[0])
    # Straight on logarithmic axes.
    (t0, t1), (l0, l1) = np.log(curve.tokens[index - 1 : index + 1]), np.log(curve.loss_nats[index - 1 : index + 1])
    return float(np.exp(t0 + (t1 - t0) * (l0 - math.log(loss_nats)) / (l0 - l1)))


def _law(curve: Curve) -> CurveLaw | str:
    try:
        return fit_curve(curve.tokens, curve.loss_nats)
    except ValueError as error:
        return str(error)


def comparison_record(comparison: Comparison, amounts: Amounts) -> list[Record]:
    """A flat row of full numbers for each curve; None where there is none."""
    return [_side_record(side, comparison, amounts) for side in comparison.sides]


def _side_record(side: Side, comparison: Comparison, amounts: Amounts) -> Record:
    length = side.online.total.length
    law = dict.fromkeys(("L0", "B", "beta", "t0", "r")) if isinstance(side.law, str) else asdict(side.law)
    units = {"L0": "law_L0_nats", "B": "law_B_tokens", "beta": "law_beta", "t0": "law_t0_tokens", "r": "law_r"}
    record: Record = {"curve": side.curve.name, "kind": KIND, "tokens": comparison.tokens}
    record |= {"area_bits": length.total_bits, "area_bytes": length.total_bytes}
    record |= {"area_at_least_bytes": length.at_least_bytes, "area_at_most_bytes": length.at_most_bytes}
    record |= {"area_bits_per_byte": length.bits_per_byte(amounts.raw_bytes) if amounts.raw_bytes else None}
    record |= {"area_nats_per_token": side.online.total.estimate_nats / comparison.tokens}
    record |= {"end_loss_nats": side.end_loss_nats, "points": side.online.num_points}
    record |= {units[name]: value for name, value in law.items()}
    record |= {"tokens_to_other": side.tokens_to_other, "acceleration": side.acceleration}
    return record | {"law_acceleration": side.law_acceleration, "notes": " ".join(side.curve.notes)}


def render(comparison: Comparison, amounts: Amounts, fmt: str, width: int | None = None) -> str:
    """The tables of a comparison as text ending in a newline; see `eval.show.blocks.render`."""
    record = comparison_record(comparison, amounts)
    return blocks.render([_area_block(comparison, amounts), _law_block(comparison)], record, fmt, width)


def _area_block(comparison: Comparison, amounts: Amounts) -> Block:
    lengths = [side.online.total.length for side in comparison.sides]
    rows = [
        length_cells(length, amounts.raw_bytes)
        | {"curve": side.curve.name, "at_least": length.at_least_bytes, "at_most": length.at_most_bytes}
        | {"mean": side.online.total.estimate_nats / comparison.tokens, "end": side.end_loss_nats}
        | {"is_emphasised": length is min(lengths, key=lambda one: one.total_bytes)}
        for side, length in zip(comparison.sides, lengths, strict=True)
    ]
    columns: list[Column] = [
        ("curve", "curve", in_words),
        ("area, bytes", "total_bytes", count),
        ("at least", "at_least", count),
        ("at most", "at_most", count),
        ("bits/byte", "bits_per_byte", decimal),
        ("nats/token", "mean", _four_digits),
        ("loss at the end", "end", _four_digits),
        KIND_COLUMN,
    ]
    title = f"Two curves up to {count(comparison.tokens)} tokens"
    notes = [f"area: the online code of these tokens, {KIND}, from plotted curves; no file stands behind it."]
    notes.append(_area_words(comparison.sides, lengths))
    notes += [note for own in (0, 1) for note in _acceleration_words(comparison, own)]
    # What was assumed of both is said once.
    notes += dict.fromkeys(note for side in comparison.sides for note in side.curve.notes)
    return new_block(title, columns, rows, notes)


def _area_words(sides: tuple[Side, Side], lengths: list[Length]) -> str:
    first, second = (length.total_bytes for length in lengths)
    if math.isclose(first, second):
        return "Both areas are the same."
    shorter, longer = (0, 1) if first < second else (1, 0)
    share = 1 - lengths[shorter].total_bytes / lengths[longer].total_bytes
    return f"{sides[shorter].curve.name} has the smaller area, by {100 * share:.1f} %."


def _acceleration_words(comparison: Comparison, own: int) -> list[str]:
    """When one curve is where the other one ends; where both end at the same loss, or it never is, that too."""
    side, other = comparison.sides[own], comparison.sides[1 - own]
    place = f"the loss with which {other.curve.name} ends ({other.end_loss_nats:.4f} nats)"
    if side.tokens_to_other is None:
        words = f"{side.curve.name} never comes down to {place}."
    else:
        tokens = f"after {count(side.tokens_to_other)} tokens"
        words = f"{side.curve.name} is at {place} {tokens}: {side.acceleration:.3g} times as fast by the curves."
    if side.law_acceleration:
        return [words, f"By the laws it is {side.law_acceleration:.3g} times as fast."]
    return [words, "By the laws it never gets there."] if side.law_acceleration == 0 else [words]


def _law_block(comparison: Comparison) -> Block:
    rows, notes = [], []
    for side in comparison.sides:
        law = side.law
        if isinstance(law, str):
            notes.append(f"{side.curve.name}: no law, {law}.")
            continue
        values = [f"{value:.4g}" for value in (law.L0, law.B, law.beta, law.t0)]
        rows.append([side.curve.name, *values, f"{law.r:.5f}", count(side.online.num_points)])
    return Block(
        title="Laws L(t) = L0 + (B / t)^beta, nats/token after t tokens",
        header=["curve", "L0", "B", "beta", "from t0 on", "r", "points"],
        is_number=[False] + [True] * 6,
        rows=rows,
        notes=[*notes, "r: of ln(L - L0) with ln t; t0 (at most the middle point) and L0 are those of the largest."],
    )


def _four_digits(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
