"""Bounds of all numbers in a configuration: whatever has none of its own is a number that can be computed with."""

import math
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

# Beyond any size of a text, a model or a job; sums and products of a few still fit into 64 bits or a float.
LARGEST_INTEGER, LARGEST_FLOAT = 1 << 48, 1e30


def number_problems(section: "DataclassInstance | type[DataclassInstance]", prefix: str = "") -> list[str]:
    """A line for every number of a configuration, sections and lists included, that is no number or without measure."""
    found = []
    for field in fields(section):
        key, value = f"{prefix}{field.name}", getattr(section, field.name)
        if is_dataclass(value):
            found.extend(number_problems(value, f"{key}."))
            continue
        found.extend(f"{key}={_shown(number)}: {_problem(number)}" for number in _numbers(value) if _problem(number))
    return found


def _numbers(value: object) -> Iterator[int | float]:
    for entry in value if isinstance(value, list) else [value]:
        if isinstance(entry, int | float):
            yield entry


def _problem(number: int | float) -> str:
    if isinstance(number, int):
        return "" if abs(number) <= LARGEST_INTEGER else f"must be at most {LARGEST_INTEGER}"
    return "" if math.isfinite(number) and abs(number) <= LARGEST_FLOAT else f"must be at most {LARGEST_FLOAT:.0e}"


def _shown(number: int | float) -> str:
    return f"{number:.6g}" if isinstance(number, float) else f"{number:.3e}" if number.bit_length() < 1000 else "..."
