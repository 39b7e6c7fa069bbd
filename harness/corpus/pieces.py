"""Pieces of a preparation: parts of a text, or their tokens, in files that tell whether they are complete."""

import hashlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from harness.files import replacing

# A second or more of work for each process: what a preparation that was ended loses.
PIECE_BYTES = 1 << 22
_MAGIC = b"CLPIECE\n"
# magic, identity, number of lengths, bytes of content, bytes of text, SHA-256 of lengths and content.
_HEAD = struct.Struct("<8s32sQQQ32s")
_TEXT_IDENTITY = bytes(32)


@dataclass(frozen=True, slots=True)
class Piece:
    """A run of documents: their text, or their tokens."""

    lengths: np.ndarray
    """Bytes or tokens of each document, uint64."""
    content: bytes
    """Text, or tokens as they stand in a shard."""
    raw_bytes: int
    """Size of the text in bytes."""
    digest: bytes
    """SHA-256 of lengths and content."""


def write_piece(path: Path, identity: bytes, lengths: list[int], content: bytes, raw_bytes: int) -> None:
    """Write a piece whole and durably; `identity` (32 bytes) says what it was made from.

    Raises OSError.
    """
    table = np.asarray(lengths, dtype="<u8").tobytes()
    digest = hashlib.sha256(table + content).digest()
    with replacing(path) as file:
        file.write(_HEAD.pack(_MAGIC, identity, len(lengths), len(content), raw_bytes, digest))
        file.write(table)
        file.write(content)


def read_piece(path: Path, identity: bytes) -> Piece | None:
    """Read a piece; None where there is none of this identity, or it is damaged."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    if len(data) < _HEAD.size:
        return None
    magic, written_identity, count, content_bytes, raw_bytes, digest = _HEAD.unpack_from(data)
    content_start = _HEAD.size + 8 * count
    if magic != _MAGIC or written_identity != identity or len(data) != content_start + content_bytes:
        return None
    if hashlib.sha256(memoryview(data)[_HEAD.size :]).digest() != digest:
        return None
    lengths = np.frombuffer(data, dtype="<u8", count=count, offset=_HEAD.size)
    return Piece(lengths, data[content_start:], raw_bytes, digest)


def write_text_pieces(folder: Path, split: str, documents: Iterator[bytes]) -> int:
    """Write the documents of a split as pieces of about `PIECE_BYTES`; returns how many.

    Raises OSError.
    """
    count = 0
    waiting, num_bytes = [], 0
    for document in documents:
        if document:
            waiting.append(document)
            num_bytes += len(document)
        if num_bytes >= PIECE_BYTES:
            _write_text(text_path(folder, split, count), waiting)
            count, waiting, num_bytes = count + 1, [], 0
    if waiting:
        _write_text(text_path(folder, split, count), waiting)
        count += 1
    return count


def documents_of(piece: Piece) -> Iterator[bytes]:
    """Split a piece of text into its documents."""
    start = 0
    for length in piece.lengths.tolist():
        yield piece.content[start : start + length]
        start += length


def text_path(folder: Path, split: str, number: int) -> Path:
    """Path of a piece of text."""
    return folder / f"{split}-{number:06d}.text"


def tokens_path(folder: Path, split: str, number: int) -> Path:
    """Path of the tokens of a piece of text."""
    return folder / f"{split}-{number:06d}.tokens"


def read_text(path: Path) -> Piece | None:
    """Read a piece of text; None where it is damaged."""
    return read_piece(path, _TEXT_IDENTITY)


def _write_text(path: Path, documents: list[bytes]) -> None:
    content = b"".join(documents)
    write_piece(path, _TEXT_IDENTITY, list(map(len, documents)), content, len(content))
