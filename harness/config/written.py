"""Settings as people write them, in YAML files and as `key=value`, checked against the fields of a dataclass.

Text is taken as it is written: on the command line `name=007` and `name=1e-4` are these very characters, and in YAML
files, where a number, a date or `no` would arrive as something else, such a value has to stand in quotes.
"""

import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from harness.config.presets import preset_path
from harness.config.settings import T, as_text, expand_home, is_text, leaves, resolved, shown
from harness.errors import UsageError

MAX_INCLUDE_DEPTH = 8
MAX_FILE_BYTES, MAX_NODES = 1 << 20, 100_000
_REFUSALS = (
    *(OmegaConfBaseException, yaml.YAMLError, RecursionError),
    # Digits without end, numbers beyond floats.
    *(ValueError, OverflowError),
)
# YAML reads 010 as 8, and 12:30:45 as 45045.
_MISREAD = re.compile(r"[-+]?(0[0-9_]+|[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?)")


def load_settings(kind: type[T], path: Path | str | None, overrides: list[str] | tuple[str, ...] = ()) -> T:
    """Load an object of the dataclass `kind`, which has `problems()`: its defaults, a YAML file, then `key=value`.

    A top-level `include:` of a file lists other files, relative to it, that are read before it. Raises UsageError with
    one line per problem: unknown keys, wrong types and bad values of all sections together.
    """
    problems: list[str] = []
    layers = [
        *(_read_layers(Path(path)) if path else []),
        *(_parse_override(text, kind, problems) for text in overrides),
    ]
    return resolved([leaf for layer in layers for leaf in leaves(layer)], problems, kind)


def chosen_value(key: str, path: Path | str, overrides: list[str]) -> object:
    """Look up the value of one top-level key, None where it is not given, before it is known what the others mean.

    Raises UsageError where the file cannot be read.
    """
    layers = _read_layers(Path(path))
    given = [text.partition("=")[2] for text in overrides if text.partition("=")[0] == key]
    written: list[object] = [*(layer[key] for layer in layers if key in layer), *given]
    return written[-1] if written else None


def read_yaml(path: Path, what: str, content_words: str, remedy: str) -> dict:
    """Read the mapping in a YAML file; `what` it is and `content_words` of what it holds go into errors.

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
        includes = [expand_home(as_text(name)) for name in (given if isinstance(given, list) else [given])]
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


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:160]
