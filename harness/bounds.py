"""Bounds of settings, declared beside each field and checked in one place.

A field without a bound of its own is only a number that can be computed with.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

# Beyond any size of a text, a model or a job; sums and products of a few still fit into 64 bits or a float.
LARGEST_INTEGER, LARGEST_FLOAT = 1 << 48, 1e30
_BOUND = "bound"


@dataclass(frozen=True, kw_only=True, slots=True)
class Bound:
    """What a value must be; None is allowed where the field's type has it."""

    choices: Sequence[str] = ()
    least: float | None = None
    above: float | None = None
    most: float | None = None
    words: str = ""
    """What a bad value is answered with, in place of the usual words."""

    def allows(self, value: Any) -> bool:
        """Whether a value is within the bound."""
        if value is None:
            return True
        if self.choices:
            return value in self.choices
        is_number = isinstance(value, int) or math.isfinite(value)
        is_high_enough = (self.least is None or value >= self.least) and (self.above is None or value > self.above)
        return is_number and is_high_enough and (self.most is None or value <= self.most)

    def __str__(self) -> str:
        if self.words:
            return self.words
        if self.choices:
            return f"unknown; use one of {', '.join(self.choices)}"
        if self.above is not None:
            return "must be positive" if self.most is None else f"must be positive and at most {self.most:,}"
        if self.most is None:
            return "must be 0 or more" if self.least == 0 else f"must be at least {self.least}"
        return f"must be between {self.least} and {self.most}"


def bounded(default: Any, **bound: Any) -> Any:
    """Declare a field of a dataclass with a default and a `Bound`."""
    return field(default=default, metadata={_BOUND: Bound(**bound)})


def bound_problems(section: "DataclassInstance", prefix: str) -> list[str]:
    """List the fields of a section that are out of bounds, a line each; `prefix` begins their keys."""
    problems = []
    for part in fields(section):
        bound, value = part.metadata.get(_BOUND), getattr(section, part.name)
        if bound and not bound.allows(value):
            problems.append(f"{prefix}{part.name}={value}: {bound}")
    return problems


def number_problems(section: "DataclassInstance | type[DataclassInstance]", prefix: str = "") -> list[str]:
    """List the numbers of a configuration that are NaN, infinite or beyond all use, a line each."""
    problems = []
    for part in fields(section):
        key, value = f"{prefix}{part.name}", getattr(section, part.name)
        if is_dataclass(value):
            problems.extend(number_problems(value, f"{key}."))
            continue
        problems.extend(f"{key}={_shown(number)}: {_problem(number)}" for number in _numbers(value) if _problem(number))
    return problems


def _numbers(value: object) -> Iterator[int | float]:
    if isinstance(value, list):
        for entry in value:
            yield from _numbers(entry)
    elif isinstance(value, int | float):
        yield value


def _problem(number: int | float) -> str:
    if isinstance(number, int):
        return "" if abs(number) <= LARGEST_INTEGER else f"must be at most {LARGEST_INTEGER}"
    return "" if math.isfinite(number) and abs(number) <= LARGEST_FLOAT else f"must be at most {LARGEST_FLOAT:.0e}"


def _shown(number: int | float) -> str:
    return f"{number:.6g}" if isinstance(number, float) else f"{number:.3e}" if number.bit_length() < 1000 else "..."
