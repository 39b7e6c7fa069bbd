"""The file format of an archive: tagged sections and a checksum; parsed with limits, nothing is ever unpickled.

    magic, 3 bytes | u8 version | (u8 tag, varint length) per section, the last one's tag plus 128, without its length
    | payloads in that order | the first 4 bytes of the SHA-256 of everything before

The checksum covers every byte, so that damage and truncation are found before decoding: all but one in 2^32, and these
by the digest of what was coded, which the payloads hold. A length has 7 bits a byte, the lowest first.
"""

import hashlib
import json
import os
import re
import struct
import zlib
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

from eval.codec.dictionary import TYPICAL_HEADERS
from eval.codec.varint import read_varint, varint
from harness.errors import UsageError
from harness.machine.memory import check_memory

# No text begins so.
MAGIC = b"\xcdCL"
# docs/formats.md tells what changed, and what each version promises.
VERSION = 5
TAGS = ("HEAD", "TOKN", "MODL", "DATA", "FLOW", "SEGM", "PART", "ORDR", "STRT", "LABL", "PLCY")
"""Names of sections; files have their numbers here."""
MAX_HEADER_JSON_BYTES = 1 << 20
CHECKSUM_BYTES = 4
RESULT_DIGITS, EARLY_DIGITS = 16, 8
"""Hexadecimal digits that a file has of the SHA-256 of its text, and of what refuses a file before it is decoded."""
_PREFIX_BYTES = len(MAGIC) + 1
_LAST = 1 << 7
# Versions 1 to 4.
_EARLIER_MAGIC, _EARLIER = b"CODELEN\0", struct.Struct("<8sH")
# A run of digits stands in the JSON as one byte, 128 more than the number of bytes that it takes after it.
_DIGITS, _MARK = re.compile(r"(?:[0-9a-f]{2}){4,127}"), re.compile("[\x80-\xff]")


def pack_sections(sections: dict[str, bytes]) -> bytes:
    """Pack sections, named as in `TAGS`, into a file: one at least."""
    body = MAGIC + bytes([VERSION]) + _table(sections) + b"".join(sections.values())
    return body + _checksum(body)


def framing_bytes(sections: dict[str, bytes]) -> int:
    """Count the bytes of magic, version and section table."""
    return _PREFIX_BYTES + len(_table(sections))


def read_sections(path: Path) -> dict[str, bytes]:
    """Read the sections of a file.

    Raises UsageError for files that are missing, foreign, damaged, truncated, of another version or larger than memory.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_EARLIER.size)
            # The whole file, its body and the sections of it.
            check_memory(3 * os.fstat(file.fileno()).st_size)
            # The rest of a foreign file may be large, or endless.
            content += file.read() if content.startswith(MAGIC) else b""
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; give the path of an archive made by codelength") from None
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None
    if content.startswith(_EARLIER_MAGIC) and len(content) == _EARLIER.size:
        raise _other_version(path, _EARLIER.unpack_from(content)[1])
    if not content.startswith(MAGIC) or len(content) <= _PREFIX_BYTES + CHECKSUM_BYTES:
        raise UsageError(f"{path}: not a codelength archive, or cut short; fetch it again")
    body = content[:-CHECKSUM_BYTES]
    if _checksum(body) != content[-CHECKSUM_BYTES:]:
        raise UsageError(f"{path}: damaged or cut short (its checksum differs); fetch it again")
    if body[len(MAGIC)] != VERSION:
        raise _other_version(path, body[len(MAGIC)])
    try:
        return _split(body)
    except (ValueError, IndexError):
        raise UsageError(f"{path}: malformed section table; fetch it again") from None


def _table(sections: dict[str, bytes]) -> bytes:
    *first, last = sections
    entries = [bytes([TAGS.index(name)]) + varint(len(sections[name])) for name in first]
    return b"".join(entries) + bytes([TAGS.index(last) | _LAST])


def _split(body: bytes) -> dict[str, bytes]:
    """Sections of a body; raises ValueError or IndexError where its table is wrong."""
    sizes: dict[str, int] = {}
    at, is_last = _PREFIX_BYTES, False
    while not is_last:
        is_last, name = bool(body[at] & _LAST), TAGS[body[at] & ~_LAST]
        if name in sizes:
            raise ValueError("a name twice")
        sizes[name], at = (0, at + 1) if is_last else read_varint(body, at + 1)
    sizes[name] = len(body) - at - sum(sizes.values())
    if sizes[name] < 0:
        raise ValueError("longer than the file")
    sections = {}
    for name, size in sizes.items():
        sections[name] = body[at : at + size]
        at += size
    return sections


def _checksum(body: bytes) -> bytes:
    return hashlib.sha256(body).digest()[:CHECKSUM_BYTES]


def _other_version(path: Path, version: int) -> UsageError:
    return UsageError(f"{path}: format version {version}, this release reads {VERSION}; {_who_reads(version)}")


def _who_reads(version: int) -> str:
    if version > VERSION:
        return "read it with a later release"
    return "made before release 0.1.0: read it with the revision that wrote it (docs/formats.md)"


def pack_json(content: dict[str, Any]) -> bytes:
    """Pack a value as compact JSON, deflated with a dictionary of what headers usually say.

    Runs of hexadecimal digits, of which nothing repeats, follow as bytes.
    """
    text = json.dumps(content, separators=(",", ":"))
    runs = _DIGITS.findall(text)
    marked = _DIGITS.sub(lambda run: chr(128 + len(run[0]) // 2), text).encode("latin-1")
    deflater = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS, zdict=TYPICAL_HEADERS)
    return deflater.compress(marked) + deflater.flush() + bytes.fromhex("".join(runs))


def unpack_json(payload: bytes, source: Path) -> dict[str, Any]:
    """Unpack what `pack_json` packed, at most 1 MiB of JSON and twice the payload in digits.

    Raises UsageError where the payload is something else.
    """
    inflater = zlib.decompressobj(-zlib.MAX_WBITS, zdict=TYPICAL_HEADERS)
    content = None
    try:
        text = inflater.decompress(payload, MAX_HEADER_JSON_BYTES).decode("latin-1")
        sizes = [ord(mark) - 128 for mark in _MARK.findall(text)]
        if inflater.eof and sum(sizes) == len(inflater.unused_data):
            digits = iter(_split_at(inflater.unused_data.hex(), sizes))
            content = json.loads(_MARK.sub(lambda mark: next(digits), text))
    except (zlib.error, ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise UsageError(f"{source}: malformed header; fetch it again")
    return content


def _split_at(digits: str, sizes: list[int]) -> list[str]:
    """Runs of digits of so many bytes each."""
    ends = [0, *(2 * end for end in accumulate(sizes))]
    return [digits[start:end] for start, end in pairwise(ends)]
