"""Settings checked against the fields of a dataclass: of which type they are, and which keys there are."""

import json
import math
import re
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, get_args, get_origin, get_type_hints

from harness.bounds import number_problems
from harness.errors import UsageError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    class _Settings(DataclassInstance, Protocol):
        def problems(self) -> list[str]: ...


T = TypeVar("T", bound="_Settings")
# Torch and numpy keep whole numbers in 64 bits; floats are whole in each step up to 53.
INTEGER_BITS, FLOAT_BITS = 63, 53
# Far from the largest number of 32 bits, so that products of settings stay below it too.
LARGEST_REAL = 1e30
MAX_NAME_BYTES = 200
MAX_SHOWN_CHARACTERS = 100
PATHS = (
    "runs_dir",
    "data_dir",
    "corpus.path",
    "corpus.heldout_path",
    "corpus.documents",
    "train.policy",
    "eval.split",
    "online.start",
)
"""Text settings in which a leading `~` is the home directory."""
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*)")


def resolved(settings: list[tuple[str, object]], problems: list[str], kind: type[T]) -> T:
    """Apply `settings`, dotted keys with values, to the defaults; `problems` are lines from before.

    Raises UsageError with a line for each of them and for each one found here.
    """
    config = kind()
    for dotted, value in settings:
        try:
            section, name, annotation = _field(config, dotted)
            value = _typed(value, annotation)
            setattr(section, name, expand_home(value) if dotted in PATHS and isinstance(value, str) else value)
        except ValueError as error:
            problems.append(f"{dotted}={shown(value)}: {error}")
    refused = config.problems()
    problems.extend(refused)
    # Sections bound what has a reason of its own; all other numbers are bounded here.
    named = {problem.partition("=")[0] for problem in refused}
    problems.extend(text for text in number_problems(config) if text.partition("=")[0] not in named)
    if problems:
        raise UsageError("\n".join(problems))
    return config


def setting(key: str, value: object) -> str:
    """Write a setting as `key=value` that reads back as the same value."""
    return f"{key}={value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}"


def leaves(tree: dict, prefix: str = "") -> list[tuple[str, object]]:
    """List the leaves of a tree of mappings with their dotted keys."""
    pairs: list[tuple[str, object]] = []
    for key, value in tree.items():
        dotted = f"{prefix}{key}"
        pairs.extend(leaves(value, f"{dotted}.") if isinstance(value, dict) else [(dotted, value)])
    return pairs


def shown(value: object) -> str:
    """Shorten a value to what an error line shows of it."""
    text = str(value)
    text = text if text.isprintable() else ascii(text)
    return text if len(text) <= MAX_SHOWN_CHARACTERS else f"{text[:MAX_SHOWN_CHARACTERS]}..."


def name_problems(name: str) -> list[str]:
    """Say what is wrong where `name` cannot name a directory inside another one, of at most 200 bytes of UTF-8."""
    is_plain = name.isprintable() and name == name.strip() and 0 < len(name.encode()) <= MAX_NAME_BYTES
    if is_plain and "/" not in name and name not in (".", "..") and not name.startswith("-"):
        return []
    return [
        f"name={shown(name)}: must be a plain directory name: printable, no slash, not . or .., no dash in front, at "
        f"most {MAX_NAME_BYTES} bytes"
    ]


def is_text(kind: type, key: str) -> bool:
    """Whether a dotted key of the dataclass `kind` holds text."""
    try:
        *_, annotation = _field(kind(), key)
    except ValueError:
        return False
    return str in (annotation, *get_args(annotation)) and get_origin(annotation) is not list


def _field(section: "DataclassInstance | type[DataclassInstance]", dotted: str) -> tuple[object, str, Any]:
    """The section that a dotted key names, the name in it, and its type; raises ValueError where there is none."""
    *path, last = dotted.split(".")
    for name in path:
        inner = _member(section, name)
        if not is_dataclass(inner):
            raise ValueError(f"unknown key; {name} is a value, not a section")
        section = inner
    if is_dataclass(inner := _member(section, last)):
        names = [field.name for field in fields(inner)]
        raise ValueError(f"is a section; set its keys, as {dotted}.{names[0]}=...; known here: {', '.join(names)}")
    return section, last, get_type_hints(type(section))[last]


def _member(section: "DataclassInstance | type[DataclassInstance]", name: str) -> object:
    known = [field.name for field in fields(section)]
    if name not in known:
        raise ValueError(f"unknown key; known here: {', '.join(known)}")
    return getattr(section, name)


def _typed(value: object, annotation: Any) -> object:
    """`value` as a field takes it; raises ValueError with what it must be."""
    if isinstance(annotation, UnionType):
        if value is None or value == "null" or (value == "" and str in get_args(annotation)):
            return None
        (annotation,) = (part for part in get_args(annotation) if part is not NoneType)
    if get_origin(annotation) is list:
        (element,) = get_args(annotation)
        if not isinstance(value, list):
            raise ValueError(f"must be a list; write [{'' if value is None else shown(value)}]")
        return [_typed(item, element) for item in value]
    if value is None and annotation is not str:
        raise ValueError("has no null; leave the key out for its default")
    return {str: as_text, bool: _flag, int: _whole, float: _real}[annotation](value)


def as_text(value: object) -> str:
    """Check that `value` is text that a setting may hold; raises ValueError with what it must be."""
    if not isinstance(value, str):
        raise ValueError("must be text, and is something else to YAML; put it in quotes")
    if "\0" in value or "${" in value or any("\ud800" <= character <= "\udfff" for character in value):
        raise ValueError("must be UTF-8, without NUL and without ${")
    return value


def _flag(value: object) -> bool:
    if isinstance(value, bool) or value in ("true", "false"):
        return value in (True, "true")
    raise ValueError("must be true or false")


def _whole(value: object) -> int:
    if isinstance(value, str) and _INTEGER.fullmatch(value) and len(value) < INTEGER_BITS:
        value = int(value)
    if isinstance(value, float) and value.is_integer() and abs(value) <= 1 << FLOAT_BITS:
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError("must be a whole number, such as 1000 or 1e3")
    if abs(value) >= 1 << INTEGER_BITS:
        raise ValueError(f"must be a whole number below 2^{INTEGER_BITS}")
    return value


def _real(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError("must be a number")
    try:
        number = float(value)
    except ValueError:
        raise ValueError("must be a number, such as 0.1 or 1e-4") from None
    except OverflowError:
        number = math.inf
    if not abs(number) <= LARGEST_REAL:
        raise ValueError(f"must be a finite number, up to {LARGEST_REAL:g}")
    return number


def expand_home(path: str) -> str:
    """Expand the leading `~` of a path to the home directory."""
    if not path.startswith("~"):
        return path
    try:
        return str(Path(path).expanduser())
    except RuntimeError:
        raise ValueError("no home directory is known for it; write the whole path") from None
