"""Settings as people write them, in YAML files and as `key=value`, checked against the fields of a dataclass.

Text is taken as it is written: on the command line `name=007` and `name=1e-4` are these very characters, and in YAML
files, where a number, a date or `no` would arrive as something else, such a value has to stand in quotes.
"""

import io
import json
import math
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, get_args, get_origin, get_type_hints

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from harness.config.bounds import number_problems
from harness.config.presets import preset_path
from harness.errors import UsageError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    class _Settings(DataclassInstance, Protocol):
        def problems(self) -> list[str]: ...


T = TypeVar("T", bound="_Settings")
MAX_INCLUDE_DEPTH = 8
MAX_FILE_BYTES, MAX_NODES = 1 << 20, 100_000
# Torch and numpy keep whole numbers in 64 bits; floats are whole in each step up to 53.
INTEGER_BITS, FLOAT_BITS = 63, 53
# Far from the largest number of 32 bits, so that products of settings stay below it too.
LARGEST_REAL = 1e30
MAX_NAME_BYTES = 200
MAX_SHOWN_CHARACTERS = 100
PATHS = ("runs_dir", "data_dir", "corpus.path", "corpus.heldout_path", "eval.split")
"""Text settings in which a leading `~` is the home directory."""
_REFUSALS = (
    *(OmegaConfBaseException, yaml.YAMLError, RecursionError),
    # Digits without end, numbers beyond floats.
    *(ValueError, OverflowError),
)
# YAML reads 010 as 8, and 12:30:45 as 45045.
_MISREAD = re.compile(r"[-+]?(0[0-9_]+|[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?)")
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*)")


def load_settings(kind: type[T], path: Path | str | None, overrides: list[str] | tuple[str, ...] = ()) -> T:
    """An object of the dataclass `kind`, which has `problems()`: its defaults, then a YAML file, then `key=value`.

    A top-level `include:` of a file lists other files, relative to it, that are read before it. Raises UsageError with
    one line per problem: unknown keys, wrong types and bad values of all sections together.
    """
    problems: list[str] = []
    layers = [
        *(_read_layers(Path(path)) if path else []),
        *(_parse_override(text, kind, problems) for text in overrides),
    ]
    return resolved([leaf for layer in layers for leaf in leaves(layer)], problems, kind)


def resolved(settings: list[tuple[str, object]], problems: list[str], kind: type[T]) -> T:
    """Defaults with `settings`, dotted keys with values, one after another; `problems` are those found before.

    Raises UsageError with a line for each of them and for each one found here.
    """
    config = kind()
    for dotted, value in settings:
        try:
            section, name, annotation = _field(config, dotted)
            value = _typed(value, annotation)
            setattr(section, name, _at_home(value) if dotted in PATHS and isinstance(value, str) else value)
        except ValueError as error:
            problems.append(f"{dotted}={shown(value)}: {error}")
    own = config.problems()
    problems.extend(own)
    # Sections bound what has a reason of its own; all other numbers are bounded here.
    named = {problem.partition("=")[0] for problem in own}
    problems.extend(text for text in number_problems(config) if text.partition("=")[0] not in named)
    if problems:
        raise UsageError("\n".join(problems))
    return config


def setting(key: str, value: object) -> str:
    """`key=value` that reads back as the same value."""
    return f"{key}={value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}"


def leaves(tree: dict, prefix: str = "") -> list[tuple[str, object]]:
    """Dotted keys of a tree of mappings with what is not a mapping itself."""
    found: list[tuple[str, object]] = []
    for key, value in tree.items():
        dotted = f"{prefix}{key}"
        found.extend(leaves(value, f"{dotted}.") if isinstance(value, dict) else [(dotted, value)])
    return found


def shown(value: object) -> str:
    """A value as an error line shows it: on one line, and not all of it where it is long."""
    text = str(value)
    text = text if text.isprintable() else ascii(text)
    return text if len(text) <= MAX_SHOWN_CHARACTERS else f"{text[:MAX_SHOWN_CHARACTERS]}..."


def name_problems(name: str) -> list[str]:
    """A line where `name`, in bytes of UTF-8 at most 200 long, cannot name a directory inside another one."""
    is_plain = name.isprintable() and name == name.strip() and 0 < len(name.encode()) <= MAX_NAME_BYTES
    if is_plain and "/" not in name and name not in (".", "..") and not name.startswith("-"):
        return []
    return [
        f"name={shown(name)}: must be a plain directory name: printable, no slash, not . or .., no dash in front, at "
        f"most {MAX_NAME_BYTES} bytes"
    ]


def read_yaml(path: Path, what: str, content_words: str, remedy: str) -> dict:
    """The mapping in a YAML file; `what` the file is and `content_words` what it holds go into the errors.

    Raises UsageError where it is missing, not YAML, not a mapping, or has numbers that YAML misreads.
    """
    try:
        with path.open("rb") as file:
            text = file.read(MAX_FILE_BYTES + 1).decode()
        if len(text) > MAX_FILE_BYTES:
            raise ValueError(f"more than {MAX_FILE_BYTES:,} bytes")
        _check_numbers(text)
        content = _plain(OmegaConf.load(io.StringIO(text)))
    except FileNotFoundError:
        raise UsageError(f"{path}: no such {what}; {remedy}") from None
    except (OSError, *_REFUSALS) as error:
        raise UsageError(f"{path}: not readable as YAML ({_one_line(error)})") from None
    if not isinstance(content, dict):
        raise UsageError(f"{path}: must be a YAML mapping of {content_words}; {remedy}")
    return content


def _read_layers(path: Path, depth: int = 0) -> list[dict]:
    if depth > MAX_INCLUDE_DEPTH:
        raise UsageError(f"{path}: includes are nested deeper than {MAX_INCLUDE_DEPTH}; does a file include itself?")
    path = path if depth else preset_path(path)
    content = read_yaml(path, "configuration file", "sections", "`codelength init` lists the presets")
    given = content.pop("include", [])
    try:
        includes = [_at_home(_text(name)) for name in (given if isinstance(given, list) else [given])]
    except ValueError as error:
        raise UsageError(
            f"{path}: include={shown(given)}: {error}; name a YAML file, or several in a list, or leave it out"
        ) from None
    return [layer for name in includes for layer in _read_layers(path.parent / name, depth + 1)] + [content]


def _parse_override(text: str, kind: type, problems: list[str]) -> dict:
    """The mapping of one `key=value`."""
    key, equals, written = text.partition("=")
    if not equals or not key:
        problems.append(f"{shown(text)}: an override must look like key=value, for example train.epochs=2")
        return {}
    try:
        return {key: _parse_text(written) if is_text(kind, key) else _parse_value(written)}
    except _REFUSALS as error:
        problems.append(f"{shown(text)}: not readable ({_one_line(error)})")
        return {}


def is_text(kind: type, key: str) -> bool:
    """Whether a dotted key of the dataclass `kind` holds text."""
    try:
        *_, annotation = _field(kind(), key)
    except ValueError:
        return False
    return str in (annotation, *get_args(annotation)) and get_origin(annotation) is not list


def _parse_text(written: str) -> str:
    """Text as it stands there, but for `${...}`, which is resolved as in files."""
    return _plain(OmegaConf.create([written]))[0] if "${" in written else written


def _parse_value(written: str) -> object:
    """Numbers, flags and lists."""
    _check_numbers(written)
    return _plain(OmegaConf.from_dotlist([f"value={written}"]))["value"]


def _plain(content: object) -> Any:
    """What OmegaConf has read as lists, mappings and values, with `${...}` resolved."""
    return OmegaConf.to_container(content, resolve=True)


def _check_numbers(text: str) -> None:
    """Raises ValueError where YAML would read other numbers than people do, or where few bytes stand for much."""
    for index, node in enumerate(_scalars(yaml.compose(text, yaml.SafeLoader))):
        if index == MAX_NODES:
            raise ValueError(f"more than {MAX_NODES:,} values, aliases included")
        if node.style is None and _MISREAD.fullmatch(node.value):
            raise ValueError(
                f"{shown(node.value)}: YAML reads this as another number; write it without leading zeros and colons, "
                "or as text in quotes"
            )


def _scalars(node: yaml.Node | None) -> Iterator[yaml.ScalarNode]:
    if isinstance(node, yaml.ScalarNode):
        yield node
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _scalars(item)
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield from _scalars(key)
            yield from _scalars(value)


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
    return {str: _text, bool: _flag, int: _whole, float: _real}[annotation](value)


def _text(value: object) -> str:
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


def _at_home(path: str) -> str:
    """A path whose leading `~` is a home directory."""
    if not path.startswith("~"):
        return path
    try:
        return str(Path(path).expanduser())
    except RuntimeError:
        raise ValueError("no home directory is known for it; write the whole path") from None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:160]
