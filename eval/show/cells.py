"""How values of a record are shown, and blocks of a table made of columns."""

from collections.abc import Callable
from typing import Any

from eval.show.blocks import Block

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


def total(*parts: float | None) -> float | None:
    """The sum, None where a part is missing."""
    known = [part for part in parts if part is not None]
    return sum(known) if len(known) == len(parts) else None


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


def verdict(value: bool | str | None) -> str:
    """Whether something was verified, or a word for why there was nothing to verify."""
    return value if isinstance(value, str) else "-" if value is None else "yes" if value else "NO"


def checked(record: Record) -> bool | str | None:
    """What `verdict` says of a flat record."""
    return "ideal" if record["is_ideal"] else record["verified"]


def shorter_codes(own: str, own_bytes: float | None, others: dict[str, float | None]) -> list[str]:
    """A note that names the codes which are shorter than `own`, the shortest first; nothing where a size is missing."""
    known = {name: size for name, size in others.items() if size is not None}
    if not own_bytes or not known:
        return []
    shorter = sorted((size, name) for name, size in known.items() if size < own_bytes)
    names = "; ".join(f"{name}, by {percent(1 - size / own_bytes)}" for size, name in shorter)
    return [f"Shorter than {own}: {names or 'none of the other compressors'}."]
