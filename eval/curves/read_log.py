"""Scalars of a TensorBoard log, read record by record: nothing is passed over silently, and a restart is understood.

TensorBoard's own readers end at the first damaged record without a word, and at a restart they drop what will come
again only for scalars of the old kind. Here the later writer counts from its first step on, or from the step that it
marks as its start.
"""

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.errors import UsageError

_MAX_SHOWN = 12
_MAX_RESTARTS_SHOWN = 3
# Length of the record and the checksum of that; then the record and its checksum.
_HEAD, _CHECKSUM = struct.Struct("<QI"), struct.Struct("<I")


@dataclass(kw_only=True, slots=True, frozen=True)
class Scalar:
    """The points of one scalar, in order, with notes on what was left out."""

    tag: str
    steps: list[int]
    values: list[float]
    num_replaced: int
    """Points that a later writer has written anew, or that stood after its first step."""
    notes: list[str]


@dataclass(slots=True)
class _Point:
    """A value at a step, or without one the step from which on its writer starts."""

    step: int
    value: float | None
    seconds: float
    place: int
    """How many events stand before it in its file."""


@dataclass(slots=True)
class _Writer:
    """One event file: TensorBoard's writers open a new one each."""

    path: Path
    started: float = math.inf
    """When its first event was written, in seconds."""
    points: dict[str, list[_Point]] = field(default_factory=dict)
    starts: list[_Point] = field(default_factory=list)
    damages: list[tuple[int, str]] = field(default_factory=list)
    """How many events stand before each, and what is wrong."""
    vectors: dict[str, str] = field(default_factory=dict)
    """By tag what the first value is that is not a number."""
    plugins: dict[str, str] = field(default_factory=dict)
    """By tag what shows its tensors; old scalars are no tensors."""


def read_scalar(path: Path, tag: str | None, allow_damaged: bool) -> Scalar:
    """Read the scalar `tag` (default: the only one) from an event file, or from all of a folder.

    Raises UsageError where there is no such scalar, where two writers were at work at a time, and, unless that is
    allowed, where a file is cut or damaged and no later writer has covered that.
    """
    writers = sorted((_read(file) for file in _event_files(path)), key=lambda writer: (writer.started, writer.path))
    tag = _chosen_tag(path, writers, tag, allow_damaged)
    # Writers of other scalars, such as of an evaluation, have nothing to say about this one.
    writers_of_tag = [writer for writer in writers if tag in writer.points or tag in writer.vectors]
    for writer in writers_of_tag:
        if tag in writer.vectors:
            raise UsageError(f"--tag {tag}: {writer.path}: {writer.vectors[tag]}; choose a scalar with --tag")
    _check_one_at_a_time(writers_of_tag, tag)
    notes = _damage_notes(writers, tag, allow_damaged)
    kept: list[_Point] = []
    restarts: list[int] = []
    num_points = 0
    for writer in writers_of_tag:
        for point in sorted([*writer.starts, *writer.points[tag]], key=lambda point: point.place):
            num_points += point.value is not None
            num_before = len(kept)
            while kept and kept[-1].step >= point.step:
                kept.pop()
            if len(kept) < num_before:
                restarts.append(point.step)
            if point.value is not None:
                kept.append(point)
    num_replaced = num_points - len(kept)
    if num_replaced:
        more = len(restarts) - _MAX_RESTARTS_SHOWN
        steps = ", ".join(map(str, restarts[:_MAX_RESTARTS_SHOWN])) + (f" and {more:,} more" if more > 0 else "")
        notes.append(
            f"Steps come again from step {steps}: the later writer counts from there on, and {num_replaced:,} "
            "earlier point(s) are left out."
        )
    return Scalar(
        tag=tag,
        steps=[point.step for point in kept],
        values=[point.value for point in kept if point.value is not None],
        num_replaced=num_replaced,
        notes=notes,
    )


def _event_files(path: Path) -> list[Path]:
    try:
        files = [path] if path.is_file() else [file for file in path.iterdir() if "tfevents" in file.name]
    except OSError as error:
        remedy = "give the path of a CSV file or of a TensorBoard log"
        raise UsageError(f"{path}: {error.strerror}; {remedy}") from None
    # A profiler leaves empty files with this ending.
    return sorted(file for file in files if file.is_file() and not file.name.endswith(".profile-empty"))


def _read(path: Path) -> _Writer:
    from google.protobuf.message import DecodeError
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog

    writer, place = _Writer(path), 0
    for where, content in _records(path):
        if content is None:
            writer.damages.append((place, where))
            continue
        try:
            event = Event.FromString(content)
        except DecodeError:
            writer.damages.append((place, f"{where} is no event"))
            continue
        place += 1
        if writer.started == math.inf:
            writer.started = event.wall_time
        if event.session_log.status == SessionLog.START:
            writer.starts.append(_Point(event.step, None, event.wall_time, place))
        for value in event.summary.value:
            _add(writer, value, event.step, event.wall_time, place)
    return writer


def _records(path: Path) -> Iterator[tuple[str, bytes | None]]:
    """Each record with words for its place; None where it is damaged, and what is wrong as words.

    No more is read at a time than the file has.
    """
    from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            while (start := file.tell()) < size:
                where = f"the record at byte {start:,} of {size:,}"
                head = file.read(_HEAD.size)
                if len(head) < _HEAD.size:
                    yield f"ends in the middle of {where}", None
                    return
                length, checksum = _HEAD.unpack(head)
                if masked_crc32c(head[:8]) != checksum:
                    problem = f"{where} is damaged, and nothing after it can be read"
                    yield problem if start else "does not begin like a TensorBoard log", None
                    return
                if length + _CHECKSUM.size > size - file.tell():
                    yield f"ends in the middle of {where}", None
                    return
                content = file.read(length)
                (checksum,) = _CHECKSUM.unpack(file.read(_CHECKSUM.size))
                is_whole = masked_crc32c(content) == checksum
                yield (where, content) if is_whole else (f"{where} is damaged", None)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; give another path") from None


def _add(writer: _Writer, value: Any, step: int, seconds: float, place: int) -> None:
    """Keep a value of a scalar, in either of the ways that TensorBoard stores them."""
    tag, kind = value.tag, value.WhichOneof("value")
    if value.metadata.plugin_data.plugin_name:
        writer.plugins.setdefault(tag, value.metadata.plugin_data.plugin_name)
    if kind == "simple_value":
        writer.plugins[tag] = "scalars"
        writer.points.setdefault(tag, []).append(_Point(step, value.simple_value, seconds, place))
    elif kind == "tensor":
        number = _number(value.tensor)
        if isinstance(number, str):
            writer.vectors.setdefault(tag, f"step {step} holds {number}")
        else:
            writer.points.setdefault(tag, []).append(_Point(step, number, seconds, place))


def _number(tensor: Any) -> float | str:
    """The one number of a tensor, or what it holds instead."""
    from tensorboard.util.tensor_util import make_ndarray

    # Before it is unpacked: a small record can stand for any number of equal values.
    num_values = math.prod(dimension.size for dimension in tensor.tensor_shape.dim)
    if num_values != 1:
        return f"{num_values:,} values instead of one"
    try:
        return float(make_ndarray(tensor).item())
    except (TypeError, ValueError):
        return "something else than a number"


def _chosen_tag(path: Path, writers: list[_Writer], tag: str | None, allow_damaged: bool) -> str:
    # A writer describes a scalar once, at its first value.
    plugins = {name: plugin for writer in reversed(writers) for name, plugin in writer.plugins.items()}
    tags = sorted(name for name, plugin in plugins.items() if plugin == "scalars")
    if not tags:
        for writer in writers if not allow_damaged else ():
            for _, damage in writer.damages:
                raise UsageError(f"{writer.path}: {damage}; give another path")
        remedy = "give the directory that holds its events.out.tfevents files"
        raise UsageError(f"{path}: no scalar of a TensorBoard log in it; {remedy}")
    if tag is None and len(tags) > 1:
        raise UsageError(f"{path}: holds {len(tags)} scalars; choose one with --tag: {_shown_tags(tags)}")
    if tag is not None and tag not in tags:
        raise UsageError(f"--tag {tag}: is not in {path}; choose one of: {_shown_tags(tags)}")
    return tag or tags[0]


def _shown_tags(tags: list[str]) -> str:
    """The tags that look like losses first; a large model can have thousands of others."""
    ordered = sorted(tags, key=lambda tag: ("loss" not in tag.lower(), tag))
    rest = len(ordered) - _MAX_SHOWN
    return ", ".join(ordered[:_MAX_SHOWN]) + (f" and {rest:,} more" if rest > 0 else "")


def _check_one_at_a_time(writers: list[_Writer], tag: str) -> None:
    """Raise UsageError where a file was begun before another one was ended: then neither continues the other."""
    for index, later in enumerate(writers):
        for earlier in writers[:index]:
            if max(point.seconds for point in earlier.points[tag]) > later.started:
                raise UsageError(
                    f"{earlier.path}, {later.path.name}: were written at the same time, as by two ranks or two runs; "
                    "give the path of one of them"
                )


def _damage_notes(writers: list[_Writer], tag: str, allow_damaged: bool) -> list[str]:
    """A line for each damage; raises UsageError for one that hides points, unless that is allowed."""
    notes = []
    for index, writer in enumerate(writers):
        later_steps = [point.step for other in writers[index + 1 :] for point in _claimed(other, tag)]
        for place, damage in writer.damages:
            steps = [point.step for point in writer.points.get(tag, []) if point.place <= place]
            after = f", after step {max(steps)} of {tag}" if steps else ""
            is_covered = bool(steps) and min(later_steps, default=math.inf) <= max(steps) + 1
            if not (is_covered or allow_damaged):
                remedy = "take another copy, or add --allow-damaged to go without"
                raise UsageError(f"{writer.path}: {damage}{after}: points may be missing; {remedy}")
            ending = "a later writer covers what is missing" if is_covered else "points may be missing"
            notes.append(f"{writer.path.name}: {damage}{after}; {ending}.")
    return notes


def _claimed(writer: _Writer, tag: str) -> list[_Point]:
    """Steps from which on a writer counts, if it has the scalar at all."""
    return [*writer.starts, *writer.points[tag]] if tag in writer.points else []
