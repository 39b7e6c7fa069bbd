"""How values of a record are shown, and blocks of a table made of columns."""

from collections.abc import Callable
from typing import Any

from eval.length import Length
from eval.show.blocks import Block
from harness.units import bits_from_bytes, bits_per_byte

Record = dict[str, Any]
Column = tuple[str, str, Callable[[Any], str]]
"""Header, key in the record, and how the value is shown; words stand left, numbers right."""


def new_block(title: str, columns: list[Column], records: list[Record], notes: list[str]) -> Block:
    """A block with a row a record; a missing value is an empty cell."""
    return Block(
        title=title,
        header=[name for name, _, _ in columns],
        is_number=[show is not in_words for _, _, show in columns],
        rows=[[show(record.get(key)) for _, key, show in columns] for record in records],
        emphasised_rows=[record.get("is_emphasised", False) for record in records],
        notes=notes,
    )


def ratio(part: float | None, whole: float | None) -> float | None:
    """`part` of `whole`, None where one is missing."""
    return None if part is None or not whole else part / whole


def in_words(value: Any) -> str:
    """Words in one line."""
    return "" if value is None else " ".join(str(value).split())


def count(value: float | None) -> str:
    """A whole number with separators."""
    return "" if value is None else f"{round(value):,}"


def decimal(value: float | None) -> str:
    """Three decimals."""
    return "" if value is None else f"{value:.3f}"


def percent(value: float | None) -> str:
    """A share in percent."""
    return "" if value is None else f"{100 * value:.1f} %"


def length_cells(length: Length | None, raw_bytes: float | None) -> Record:
    """What tables say of a code length and of what it is worth, beside the bytes of its text; empty where it is None.

    Keys: `model_bytes`, `data_bytes`, `total_bytes`, `bits_per_byte`, `data_bits_per_byte`, `of_raw`, `kind`.
    """
    if length is None:
        return {}
    return {
        "model_bytes": length.model_bytes or None,
        "data_bytes": length.data_bytes,
        "total_bytes": length.total_bytes,
        "bits_per_byte": length.bits_per_byte(raw_bytes) if raw_bytes else None,
        "data_bits_per_byte": bits_per_byte(bits_from_bytes(length.data_bytes), raw_bytes) if raw_bytes else None,
        "of_raw": ratio(length.total_bytes, raw_bytes),
        "kind": length.kind,
    }


def shorter_codes(own: str, length: Length | None, others: dict[str, Length]) -> list[str]:
    """A note that names the codes which are shorter than `own`, the shortest first; nothing where there is no other."""
    if length is None or not others:
        return []
    own_bytes = length.total_bytes
    shorter = sorted((o.total_bytes, name) for name, o in others.items() if o.total_bytes < own_bytes)
    names = "; ".join(f"{name}, by {percent(1 - size / own_bytes)}" for size, name in shorter)
    return [f"Shorter than {own}: {names or 'none of the other compressors'}."]


KIND: Column = ("kind", "kind", in_words)
"""What a code length is worth: the column that stands in every table of them."""
