"""The file format of an archive: tagged sections and a checksum; parsed with limits, nothing is ever unpickled.

    magic "CODELEN\\0" | u16 version | u16 number of sections | (4-byte tag, u64 length) per section
    | payloads in that order | SHA-256 of everything before

All integers are little-endian. The checksum covers every byte, so any damage or truncation is found before decoding.
"""

import hashlib
import json
import os
import struct
import zlib
from pathlib import Path
from typing import Any

from harness.errors import UsageError
from harness.machine.memory import check_memory

MAGIC = b"CODELEN\0"
# The first that a release writes; docs/formats.md tells what changed, and what each version promises.
VERSION = 4
MAX_SECTIONS = 16
MAX_HEADER_JSON_BYTES = 1 << 20
CHECKSUM_BYTES = 32
_PREFIX = struct.Struct("<8sHH")
_ENTRY = struct.Struct("<4sQ")


def pack_sections(sections: dict[str, bytes]) -> bytes:
    """Pack sections with 4-letter names into a file."""
    prefix = _PREFIX.pack(MAGIC, VERSION, len(sections))
    table = b"".join(_ENTRY.pack(name.encode(), len(payload)) for name, payload in sections.items())
    body = b"".join([prefix, table, *sections.values()])
    return body + hashlib.sha256(body).digest()


def framing_bytes(num_sections: int) -> int:
    """Count the bytes of magic, version and section table."""
    return _PREFIX.size + num_sections * _ENTRY.size


def read_sections(path: Path) -> dict[str, bytes]:
    """Read the sections of a file.

    Raises UsageError for files that are missing, foreign, damaged, truncated, of another version or larger than memory.
    """
    try:
        with path.open("rb") as file:
            content = file.read(len(MAGIC))
            # The whole file, its body and the sections of it.
            check_memory(3 * os.fstat(file.fileno()).st_size)
            # The rest of a foreign file may be large, or endless.
            content += file.read() if content == MAGIC else b""
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; give the path of an archive made by codelength") from None
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None
    if content[: len(MAGIC)] != MAGIC or len(content) < _PREFIX.size + CHECKSUM_BYTES:
        raise UsageError(f"{path}: not a codelength archive, or cut short; fetch it again")
    _, version, count = _PREFIX.unpack_from(content)
    body, checksum = content[:-CHECKSUM_BYTES], content[-CHECKSUM_BYTES:]
    if hashlib.sha256(body).digest() != checksum:
        raise UsageError(f"{path}: damaged or cut short (its checksum differs); fetch it again")
    if version != VERSION:
        raise UsageError(f"{path}: format version {version}, this release reads {VERSION}; {_who_reads(version)}")
    if count > MAX_SECTIONS or len(body) < framing_bytes(count):
        raise UsageError(f"{path}: malformed section table; fetch it again")
    sections, offset = {}, framing_bytes(count)
    for index in range(count):
        tag, length = _ENTRY.unpack_from(body, _PREFIX.size + index * _ENTRY.size)
        sections[tag.decode("latin-1")] = body[offset : offset + length]
        offset += length
    if offset != len(body) or len(sections) != count:
        raise UsageError(f"{path}: sections do not add up to the file; fetch it again")
    return sections


def _who_reads(version: int) -> str:
    if version > VERSION:
        return "read it with a later release"
    return "made before release 0.1.0: read it with the revision that wrote it (docs/formats.md)"


def pack_json(content: dict[str, Any]) -> bytes:
    """Pack a value as compact JSON, deflated."""
    return zlib.compress(json.dumps(content, separators=(",", ":")).encode(), 9)


def unpack_json(payload: bytes, source: Path) -> dict[str, Any]:
    """Unpack what `pack_json` packed, at most 1 MiB of JSON.

    Raises UsageError where the payload is something else.
    """
    inflater = zlib.decompressobj()
    try:
        text = inflater.decompress(payload, MAX_HEADER_JSON_BYTES)
        content = json.loads(text) if inflater.eof else None
    except (zlib.error, ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise UsageError(f"{source}: malformed header; fetch it again")
    return content
