"""The file format: every damage is found, and nothing in a file makes the reader use more than its size."""

import hashlib
import json
import struct
import tracemalloc
import zlib
from pathlib import Path

import pytest

from eval.codec.container import (
    CHECKSUM_BYTES,
    MAGIC,
    MAX_HEADER_JSON_BYTES,
    MAX_SECTIONS,
    VERSION,
    framing_bytes,
    pack_json,
    pack_sections,
    read_sections,
    unpack_json,
)
from harness.errors import UsageError

SECTIONS = {"HEAD": b"some header", "NONE": b"", "DATA": bytes(range(40))}


def refusal(path: Path) -> str:
    """The message with which `path` is refused; one line that names it."""
    with pytest.raises(UsageError) as caught:
        read_sections(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message


def signed(body: bytes) -> bytes:
    """A file with a right checksum, whatever it holds."""
    return body + hashlib.sha256(body).digest()


def test_sections_come_back_in_order(tmp_path):
    path = tmp_path / "a.cl"
    content = pack_sections(SECTIONS)
    path.write_bytes(content)
    assert list(read_sections(path).items()) == list(SECTIONS.items())
    assert len(content) == framing_bytes(len(SECTIONS)) + sum(map(len, SECTIONS.values())) + CHECKSUM_BYTES
    path.write_bytes(pack_sections({}))
    assert read_sections(path) == {}


def test_every_changed_byte_is_found(tmp_path):
    path = tmp_path / "a.cl"
    content = pack_sections(SECTIONS)
    for at in range(len(content)):
        for flip in (1, 2, 4, 8, 16, 32, 64, 128, 255):
            path.write_bytes(content[:at] + bytes([content[at] ^ flip]) + content[at + 1 :])
            refusal(path)


def test_every_truncation_and_every_addition_is_found(tmp_path):
    path = tmp_path / "a.cl"
    content = pack_sections(SECTIONS)
    for length in range(len(content)):
        path.write_bytes(content[:length])
        refusal(path)
    for other in (content + b"\0", content + b"x" * 100, content + content, b"\0" + content, content[1:]):
        path.write_bytes(other)
        refusal(path)


def test_what_is_no_archive_is_refused(tmp_path):
    path = tmp_path / "a.cl"
    assert "No such file" in refusal(path)
    assert "directory" in refusal(tmp_path)
    for foreign in (b"", b"CODELEN", MAGIC, b"PK\x03\x04" + b"\0" * 1000, b"text\n" * 100):
        path.write_bytes(foreign)
        assert "not a codelength archive" in refusal(path)
    assert "not a codelength archive" in refusal(Path("/dev/zero"))


def test_a_file_larger_than_memory_is_refused_unread(tmp_path):
    path = tmp_path / "a.cl"
    with path.open("wb") as file:
        file.write(MAGIC)
        file.truncate(1 << 42)
    assert "GB of memory" in refusal(path)


def test_another_version_is_named(tmp_path):
    path = tmp_path / "a.cl"
    content = pack_sections(SECTIONS)
    for version, remedy in ((VERSION + 1, "a later release"), (VERSION - 1, "before release 0.1.0")):
        path.write_bytes(signed(MAGIC + struct.pack("<H", version) + content[10:-CHECKSUM_BYTES]))
        message = refusal(path)
        assert f"version {version}" in message and remedy in message
        assert f"reads {VERSION}" in message


def malformed_bodies() -> dict[str, bytes]:
    """Bodies with wrong tables, to be signed."""
    prefix, one = MAGIC + struct.pack("<H", VERSION), struct.pack("<4sQ", b"HEAD", 4)
    return {
        "more sections than entries": prefix + struct.pack("<H", 5) + one + b"abcd",
        "fewer sections than bytes": prefix + struct.pack("<H", 0) + one + b"abcd",
        "65,535 sections": prefix + struct.pack("<H", 65535) + one + b"abcd",
        "too many sections": prefix + struct.pack("<H", MAX_SECTIONS + 1) + (one + b"abcd") * (MAX_SECTIONS + 1),
        "too short": prefix + struct.pack("<H", 1) + one + b"abc",
        "too long": prefix + struct.pack("<H", 1) + one + b"abcde",
        "huge length": prefix + struct.pack("<H", 1) + struct.pack("<4sQ", b"HEAD", 2**64 - 1) + b"abcd",
        "lengths that wrap": prefix
        + struct.pack("<H", 2)
        + struct.pack("<4sQ4sQ", b"HEAD", 2**64 - 1, b"DATA", 5)
        + b"abcd",
        "a name twice": prefix + struct.pack("<H", 2) + one + one + b"abcdefgh",
        "no table": prefix + struct.pack("<H", 1),
    }


@pytest.mark.parametrize("kind", malformed_bodies())
def test_a_wrong_table_under_a_right_checksum_is_refused(tmp_path, kind):
    path = tmp_path / "a.cl"
    path.write_bytes(signed(malformed_bodies()[kind]))
    refusal(path)


def test_json_comes_back():
    content = {"text": "äöü\n", "number": 2**60, "nested": {"list": [1, 2.5, None, True]}}
    assert unpack_json(pack_json(content), Path("a.cl")) == content


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"no deflated data",
        pack_json({"a": 1})[:-1],
        zlib.compress(b"{"),
        zlib.compress(b"[1, 2]"),
        zlib.compress(b"null"),
        zlib.compress(b'{"a": "\xff"}'),
        zlib.compress(b"[" * 500_000),
        zlib.compress(b'{"a": ' * 100_000),
        zlib.compress(b'{"a": ' + b"9" * 100_000 + b"}"),
        zlib.compress(json.dumps({"a": "x" * MAX_HEADER_JSON_BYTES}).encode()),
    ],
    ids=lambda payload: f"{len(payload)} bytes",
)
def test_a_header_that_is_no_json_object_is_refused(payload):
    with pytest.raises(UsageError, match=r"^a\.cl: malformed header"):
        unpack_json(payload, Path("a.cl"))


def test_a_bomb_is_refused_without_unpacking_it():
    bomb = zlib.compress(b"\0" * 100_000_000, 9)
    tracemalloc.start()
    try:
        with pytest.raises(UsageError, match="malformed header"):
            unpack_json(bomb, Path("a.cl"))
        assert tracemalloc.get_traced_memory()[1] < 8 * MAX_HEADER_JSON_BYTES
    finally:
        tracemalloc.stop()
