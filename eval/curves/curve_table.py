"""Tables of the code lengths of a loss curve.

For programs (csv, json): one record, full numbers, units in the keys. For people (rich, md, latex): the codes, the
parts of the online code, and the fit. A missing value is an empty cell. Everything says that no file stands behind it.
"""

import math

from eval.curves import area
from eval.curves.area import OnlineLength, two_part_length
from eval.curves.read import Amounts, Curve, nats_of
from eval.length import Length
from eval.show import blocks, cells
from eval.show.blocks import Block
from eval.show.cells import Column, Record, count, decimal, in_words, new_block
from harness.units import bits_from_bytes, bits_per_byte

KIND = f"{area.KIND}, from a plotted curve; no file stands behind it"


def curve_record(curve: Curve, online: OnlineLength, amounts: Amounts, unit: str) -> Record:
    """One flat row of full, unrounded values; None where the user gave too little. `unit` is that of `final_loss`."""
    total, law = online.total, online.law
    is_given = amounts.final_loss is not None
    final_loss_nats = online.last_loss_nats if amounts.final_loss is None else nats_of(amounts.final_loss, unit)
    record: Record = {"curve": curve.name, "kind": KIND, "tokens": total.tokens}
    for name, part in (("online", total), ("head", online.head), ("plotted", online.plotted), ("tail", online.tail)):
        record |= {f"{name}_tokens": part.tokens} if name != "online" else {}
        record |= _sizes({f"{name}{bound}": size for bound, size in _bounds(part.length)})
    offline: Length | None = None
    if amounts.parameters is not None and amounts.bits_per_weight is not None:
        offline = two_part_length(total.tokens, final_loss_nats, amounts.parameters, amounts.bits_per_weight)
    for name, key in (("offline_data", "data_bytes"), ("model", "model_bytes"), ("offline", "total_bytes")):
        record |= _sizes({name: getattr(offline, key) if offline else None})
    record |= {"raw_bytes": amounts.raw_bytes}
    for name in ("online", "online_lower", "online_upper", "offline"):
        bits, raw_bytes = record[f"{name}_bits"], amounts.raw_bytes
        if bits is None or raw_bytes is None:
            record |= {f"{name}_bits_per_byte": None, f"{name}_raw_per_coded": None}
            continue
        record[f"{name}_bits_per_byte"] = bits_per_byte(bits, raw_bytes)
        record[f"{name}_raw_per_coded"] = raw_bytes / record[f"{name}_bytes"]
    record |= {"parameters": amounts.parameters, "bits_per_weight": amounts.bits_per_weight}
    record |= {"online_nats_per_token": total.estimate_nats / total.tokens}
    record |= {"first_loss_nats": float(curve.loss_nats[0]), "last_loss_nats": online.last_loss_nats}
    record |= {"final_loss_nats": final_loss_nats, "final_loss_is_given": is_given}
    record |= {"fit_c_nats": law.c_nats, "fit_a_nats": law.a_nats, "fit_b": law.exponent}
    record |= {"fit_rms_nats": online.law_rms_nats, "points": online.num_points}
    record |= {"points_beyond": online.num_points_beyond, "rises": online.num_rises, "first_step": curve.first_step}
    record |= {
        "points_replaced": curve.num_replaced,
        "points_skipped": curve.num_skipped,
        "notes": " ".join(curve.notes),
    }
    return record


def _bounds(length: Length) -> list[tuple[str, float | None]]:
    return [("", length.total_bytes), ("_lower", length.at_least_bytes), ("_upper", length.at_most_bytes)]


def _sizes(sizes: dict[str, float | None]) -> Record:
    """Code lengths by name in bits, then in bytes."""
    bits = {f"{name}_bits": None if size is None else bits_from_bytes(size) for name, size in sizes.items()}
    return bits | {f"{name}_bytes": size for name, size in sizes.items()}


def render(record: Record, curve: Curve, fmt: str, width: int | None = None) -> str:
    """The table of a curve as text ending in a newline; see `eval.show.blocks.render`."""
    return blocks.render([_codes_block(record), _parts_block(record), _fit_block(record, curve)], record, fmt, width)


def _codes_block(record: Record) -> Block:
    """The online code with its bounds, and the two-part code where the size of the model is known."""
    rows = []
    names = {"online": "online", "online_lower": "online, at least", "online_upper": "online, at most"}
    for key, name in (names | {"offline": "offline"}).items():
        row = {what: record[f"{key}_{what}"] for what in ("bytes", "bits", "bits_per_byte", "raw_per_coded")}
        row |= {"code": name, "kind": area.KIND, "data": row["bytes"], "is_emphasised": name == _shorter(record)}
        if key == "offline":
            row |= {"model": record["model_bytes"], "data": record["offline_data_bytes"]}
        if row["bytes"] is not None:
            rows.append(row)
    columns: list[Column] = [
        ("code", "code", in_words),
        ("model bytes", "model", count),
        ("data bytes", "data", count),
        ("total bytes", "bytes", count),
        ("total bits", "bits", count),
        ("bits/byte", "bits_per_byte", decimal),
        ("raw/coded", "raw_per_coded", _one_digit),
        cells.KIND,
    ]
    notes = [f"All of it is {KIND}.", *_verdict(record)]
    if record["online_upper_bits"] is None:
        notes.append("No upper bound: only --vocab-size says what a token before the first point can cost.")
    if record["offline_bits"] is not None:
        source = "the given final loss" if record["final_loss_is_given"] else "the last loss that counts"
        weights = f"{count(record['parameters'])} parameters of {record['bits_per_weight']:g} bits"
        notes.append(f"offline: every token at {source} ({record['final_loss_nats']:.4f} nats), and {weights}.")
    tokens, mean = count(record["tokens"]), record["online_nats_per_token"]
    title = f"Code lengths of {tokens} tokens, {mean:.4f} nats each online ({record['curve']})"
    return new_block(title, columns, rows, notes)


def _shorter(record: Record, online: str = "online") -> str | None:
    """Which code is the shorter one, if both are known and differ."""
    online_bits, offline_bits = record[f"{online}_bits"], record["offline_bits"]
    if None in (online_bits, offline_bits) or math.isclose(online_bits, offline_bits):
        return None
    return "online" if online_bits < offline_bits else "offline"


def _verdict(record: Record) -> list[str]:
    """Which code is shorter by how much, and whether the bounds of the online code leave that open."""
    if record["offline_bits"] is None:
        return []
    winner = _shorter(record)
    if winner is None:
        return ["Online and offline are equally long."]
    loser = "offline" if winner == "online" else "online"
    share = 1 - record[f"{winner}_bits"] / record[f"{loser}_bits"]
    bounds = {_shorter(record, bound) for bound in ("online_lower", "online_upper")}
    is_open = "the bounds of online leave this open" if bounds != {winner} else "so it is at both bounds of online"
    return [f"{winner} is shorter than {loser} by {100 * share:.1f} %; {is_open}."]


def _parts_block(record: Record) -> Block:
    """Where the online length comes from."""
    names = {"head": "before the first point", "plotted": "between the points", "tail": "after the last point"}
    rows = []
    for key, name in names.items():
        if record[f"{key}_tokens"]:
            sizes = (record[f"{key}_{bound}bytes"] for bound in ("", "lower_", "upper_"))
            rows.append([name, count(record[f"{key}_tokens"]), *map(count, sizes)])
    notes = ["before the first point: the fit, at least the first loss and at most the logarithm of --vocab-size."]
    if record["tail_tokens"]:
        notes.append("after the last point: extrapolated by the fit, at most the last loss; no lower bound but 0.")
    if record["points_beyond"]:
        beyond = f"{count(record['points_beyond'])} point(s) beyond {count(record['tokens'])} tokens"
        notes.append(f"First exposures only: {beyond} left out.")
    if record["rises"]:
        notes.append(
            f"The curve rises at {count(record['rises'])} of {count(record['points'])} points; "
            "the bounds are sure for a curve that never rises."
        )
    return Block(
        title="Parts of the online code",
        header=["tokens", "number", f"bytes ({area.KIND})", "at least", "at most"],
        is_number=[False] + [True] * 4,
        rows=rows,
        notes=notes,
    )


def _fit_block(record: Record, curve: Curve) -> Block:
    """The fitted law and the curve behind it."""
    values = ("fit_c_nats", "fit_a_nats", "fit_b", "fit_rms_nats", "first_loss_nats", "last_loss_nats")
    row = [count(record["points"]), *(_significant(record[key]) for key in values)]
    notes = ["two points: the pure power law through them."] if record["points"] == 2 and record["fit_b"] else []
    notes += curve.notes
    return Block(
        title="Fit l(t) = c + a t^-b, nats/token after t tokens",
        header=["points", "c", "a", "b", "residual RMS", "first loss", "last loss"],
        is_number=[True] * 7,
        rows=[row],
        notes=notes,
    )


def _one_digit(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _significant(value: float) -> str:
    # What is left of rounding in float64 would look like a finding.
    return f"{value:.4g}" if abs(value) > 1e-12 else "0"
