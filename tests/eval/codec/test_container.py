"""The file format: every damage is found, and nothing in a file makes the reader use more than its size."""

import hashlib
import json
import tracemalloc
import zlib
from pathlib import Path

import pytest

from eval.codec.container import (
    CHECKSUM_BYTES,
    MAGIC,
    MAX_HEADER_JSON_BYTES,
    TAGS,
    VERSION,
    framing_bytes,
    pack_json,
    pack_sections,
    read_sections,
    unpack_json,
)
from harness.errors import UsageError

SECTIONS = {"HEAD": b"some header", "PART": b"", "DATA": bytes(range(40))}


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
    return body + hashlib.sha256(body).digest()[:CHECKSUM_BYTES]


def test_sections_come_back_in_order(tmp_path):
    path = tmp_path / "a.cl"
    content = pack_sections(SECTIONS)
    path.write_bytes(content)
    assert list(read_sections(path).items()) == list(SECTIONS.items())
    assert len(content) == framing_bytes(SECTIONS) + sum(map(len, SECTIONS.values())) + CHECKSUM_BYTES
    path.write_bytes(pack_sections({"HEAD": b""}))
    assert read_sections(path) == {"HEAD": b""}


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
    for foreign in (b"", b"CODELEN", MAGIC, MAGIC + b"\5\x80abc", b"PK\x03\x04" + b"\0" * 1000, b"text\n" * 100):
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
    later = signed(MAGIC + bytes([VERSION + 1]) + content[4:-CHECKSUM_BYTES])
    for version, other, remedy in (
        (VERSION + 1, later, "a later release"),
        # Version 4 began otherwise.
        (4, b"CODELEN\0\4\0\3\0HEAD" + bytes(60), "before release 0.1.0"),
    ):
        path.write_bytes(other)
        message = refusal(path)
        assert f"version {version}" in message and remedy in message
        assert f"reads {VERSION}" in message


def malformed_bodies() -> dict[str, bytes]:
    """Bodies with wrong tables, to be signed; tags are numbers, the last one's has 128 more."""
    prefix = MAGIC + bytes([VERSION])
    return {
        "no last section": prefix + b"\0\4abcd",
        "an unknown tag": prefix + bytes([len(TAGS)]) + b"\4\x83abcd",
        "an unknown last tag": prefix + b"\xffabcd",
        "too short": prefix + b"\0\5\x83abcd",
        "huge length": prefix + b"\0" + b"\xff" * 8 + b"\x7f\x83abcd",
        "a length without an end": prefix + b"\0" + b"\xff" * 12 + b"\x83abcd",
        "a length that is cut": prefix + b"\0\xff\xff",
        "a name twice": prefix + b"\0\2\x80abcd",
        "sections without end": prefix + b"\0\0\1\0" * 9,
    }


@pytest.mark.parametrize("kind", malformed_bodies())
def test_a_wrong_table_under_a_right_checksum_is_refused(tmp_path, kind):
    path = tmp_path / "a.cl"
    path.write_bytes(signed(malformed_bodies()[kind]))
    refusal(path)


def deflated(content: bytes) -> bytes:
    """As headers are."""
    deflater = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return deflater.compress(content) + deflater.flush()


def test_json_comes_back():
    content = {"text": "äöü\n", "number": 2**60, "nested": {"list": [1, 2.5, None, True]}}
    content |= {"digest": "0123456789abcdef" * 4, "long": "ab" * 300, "odd": "123456789abcd", "number too": 1234567890}
    assert unpack_json(pack_json(content), Path("a.cl")) == content
    # A digest takes its bytes, and what headers usually say next to nothing.
    usual = {"precision": "float32", "muon_precision": "float32", "device": "cpu"}
    assert len(pack_json({"environment": usual | {"code": "9d51fca4"}})) < 20


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"no deflated data",
        pack_json({"a": 1})[:-1],
        deflated(b"{"),
        deflated(b"[1, 2]"),
        deflated(b"null"),
        deflated(b'{"a": "\xff"}'),
        deflated(b'{"a": "\x84"}') + b"abc",
        deflated(b'{"a": "\x84"}') + b"abcde",
        pack_json({"a": "01234567"}) + b"\0",
        zlib.compress(b'{"a": 1}'),
        deflated(b"[" * 500_000),
        deflated(b'{"a": ' * 100_000),
        deflated(b'{"a": ' + b"9" * 100_000 + b"}"),
        deflated(json.dumps({"a": "x" * MAX_HEADER_JSON_BYTES}).encode()),
    ],
    ids=lambda payload: f"{len(payload)} bytes",
)
def test_a_header_that_is_no_json_object_is_refused(payload):
    with pytest.raises(UsageError, match=r"^a\.cl: malformed header"):
        unpack_json(payload, Path("a.cl"))


def test_a_bomb_is_refused_without_unpacking_it():
    bomb = deflated(b"\0" * 100_000_000)
    tracemalloc.start()
    try:
        with pytest.raises(UsageError, match="malformed header"):
            unpack_json(bomb, Path("a.cl"))
        assert tracemalloc.get_traced_memory()[1] < 8 * MAX_HEADER_JSON_BYTES
    finally:
        tracemalloc.stop()
