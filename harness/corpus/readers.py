"""What a file holds: its text as documents, whatever it is packed in, read in one pass and in constant memory."""

import bz2
import gzip
import io
import json
import lzma
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, BinaryIO

from harness.errors import UsageError

TEXT, JSONL, JSON, PARQUET = "text", "jsonl", "json", "parquet"
READERS = dict.fromkeys(
    (".txt", ".text", ".md", ".markdown", ".rst", ".tex", ".html", ".htm", ".xml", ".wiki"), TEXT
) | {".jsonl": JSONL, ".ndjson": JSONL, ".json": JSON, ".parquet": PARQUET}
PACKINGS = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".lzma": "xz", ".zst": "zstd", ".zstd": "zstd"}
RAW_BLOCK_BYTES = 1 << 20
PARQUET_BATCH_ROWS = 100
ON_NULL = ("fail", "skip")
# An array is parsed whole, in several times its size of memory.
MAX_JSON_BYTES = 1 << 28
_HEAD_BYTES = 512
_FIRST_LINE_BYTES = 1 << 24
# A few kilobytes can hold gigabytes: the less is fed at once, the less comes out at once.
_FEED_BYTES = 1 << 12
# What `zstd --long=31` needs, as published dumps do.
_ZSTD_WINDOW_BYTES = 1 << 31
# Heads that no text begins with, and what begins with them.
_BINARY_HEADS = (
    (rb"\x1f\x8b\x08", "gzip data"),
    (rb"BZh[1-9]1AY&SY", "bzip2 data"),
    (rb"\xfd7zXZ\0", "xz data"),
    (rb"\x28\xb5\x2f\xfd", "zstd data"),
    (rb"\x04\x22\x4d\x18", "lz4 data"),
    (rb"PK(\x03\x04|\x05\x06)", "a zip archive"),
    (rb"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (rb"Rar!\x1a\x07", "a rar archive"),
    (rb".{257}ustar", "a tar archive"),
    (rb"PAR1[\0-\x1f]", "a Parquet file"),
    (rb"ARROW1\0|\xff{4}.{3}\0\x10\0\0\0", "an Arrow file"),
    (rb"Obj\x01", "an Avro file"),
    (rb"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    (rb"SQLite format 3\0", "an SQLite database"),
    (rb"\x93NUMPY", "a NumPy array"),
    (rb"\x80[\x02-\x05][\x95}\]c(]", "a pickle"),
    (rb"\x89PNG\r\n\x1a\n", "a PNG picture"),
    (rb"\xff\xd8\xff", "a JPEG picture"),
    (rb"GIF8[79]a", "a GIF picture"),
    (rb"II\*\0|MM\0\*", "a TIFF picture"),
    (rb"RIFF.{4}(WAVE|WEBP|AVI )", "a sound, picture or film"),
    (rb"OggS\0|ID3[\x02-\x04]|fLaC\0|.{4}ftyp", "a sound or film"),
    (rb"%PDF-[0-9]", "a PDF document"),
    (rb"\x7fELF", "an ELF program"),
    (rb"\0asm\x01\0|\xca\xfe\xba\xbe|[\xce\xcf]\xfa\xed\xfe", "a program"),
    (rb"CODELEN\0|CLSHARD\n", "a file of codelength"),
    (rb"version https://git-lfs\.github\.com/spec/", "a Git LFS pointer (fetch the file with `git lfs pull`)"),
)
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")


@dataclass(slots=True)
class Source:
    """A file that text is read from, and what has been read so far."""

    path: Path
    name: str
    """Its path in the folder that was named, or its own."""
    reader: str
    """text, jsonl, json (an array) or parquet."""
    packing: str = ""
    """gzip, bzip2, xz or zstd; empty where it is not compressed."""
    raw_bytes: int = 0
    """Bytes of text read."""
    nulls: int = 0
    """Rows or records without a text that were left out."""
    is_utf16: bool = False
    """Whether the text begins with a mark of UTF-16: it is taken as the bytes that it is all the same."""

    def record(self) -> dict[str, object]:
        """Record what was read of the file."""
        told = {"path": str(self.path), "reader": self.reader, "packing": self.packing, "raw_bytes": self.raw_bytes}
        return told | {"nulls": self.nulls}

    def documents(self, field: str, on_null: str) -> Iterator[bytes]:
        """Read the texts in the file, as UTF-8 bytes; a plain text comes in blocks.

        Raises UsageError naming file and line or row where something is damaged, foreign or not a text.
        """
        with readable(self.path):
            is_parquet = self.reader == PARQUET
            records = _parquet(self.path, self.packing, field) if is_parquet else self._records(field)
            for place, text in records:
                document = text_bytes(f"{self.path}{place}", text, on_null)
                if document is None:
                    self.nulls += 1
                    continue
                self.raw_bytes += len(document)
                yield document

    def _records(self, field: str) -> Iterator[tuple[str, object]]:
        """Where a text stands in the file, and the text, which may be anything."""
        with unpacked(self.path, self.packing) as file:
            head = file.peek(_HEAD_BYTES)[:_HEAD_BYTES]
            _refuse_binary(self.path, head, self.packing)
            self.is_utf16 = head.startswith(_UTF16_MARKS)
            if self.reader == TEXT:
                while block := file.read(RAW_BLOCK_BYTES):
                    yield "", block
            else:
                yield from (_lines if self.reader == JSONL else _items)(self.path, file, field)


def format_of(name: str) -> tuple[str | None, str]:
    """Tell reader and packing from the endings of a file's name, in any case; None where they are unknown."""
    path = PurePath(name.lower())
    packing = PACKINGS.get(path.suffix, "")
    return READERS.get(PurePath(path.stem).suffix if packing else path.suffix), packing


def reader_of_json(path: Path, packing: str, field: str) -> str | None:
    """Tell whether a file that is called JSON is an array or JSON lines; None where it is neither."""
    with readable(path), unpacked(path, packing) as file:
        line = b""
        while line.isspace() or not line:
            line = file.readline(_FIRST_LINE_BYTES)
            if not line:
                return JSON
        line = line.removeprefix(b"\xef\xbb\xbf").lstrip()
        if not line.startswith(b"{"):
            return JSON
        try:
            return JSONL if field in json.loads(line) else None
        except (ValueError, RecursionError):
            return None


@contextmanager
def unpacked(path: Path, packing: str) -> Iterator[io.BufferedReader]:
    """Open a file as a stream of unpacked bytes."""
    with path.open("rb") as file:
        if packing == "gzip":
            yield io.BufferedReader(gzip.GzipFile(fileobj=file), RAW_BLOCK_BYTES)
        else:
            yield io.BufferedReader(_Frames(file, packing), RAW_BLOCK_BYTES) if packing else file


class _Frames(io.RawIOBase):
    """The text of one compressed frame after another; unlike the libraries' own files, junk between them is noticed.

    Raises EOFError where a frame is not complete, ValueError or OSError where it is damaged.
    """

    def __init__(self, file: BinaryIO, packing: str):
        self._file, self._has_begun = file, False
        self._fed = self._decoded = b""
        # The libraries' decompressors have no type in common.
        self._decompressor: Any = None
        self._new: Callable[[], Any] = lzma.LZMADecompressor if packing == "xz" else bz2.BZ2Decompressor
        self._error: type[Exception] = lzma.LZMAError
        if packing == "zstd":
            # Imported here because the other packings do not need it.
            import zstandard

            self._error = zstandard.ZstdError
            self._new = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_BYTES).decompressobj

    def readable(self) -> bool:
        """Always."""
        return True

    def readinto(self, buffer: Any) -> int:
        """The next bytes, at least one before the end."""
        while not self._decoded and self._feed():
            pass
        size = min(len(buffer), len(self._decoded))
        buffer[:size], self._decoded = self._decoded[:size], self._decoded[size:]
        return size

    def _feed(self) -> bool:
        """Decode some more; False at the end of the file."""
        self._fed = self._fed or self._file.read(_FEED_BYTES)
        if not self._fed:
            if self._decompressor is not None or not self._has_begun:
                raise EOFError("the compressed data end early")
            return False
        if self._decompressor is None:
            # Zeros pad the frames of xz.
            self._fed = self._fed.lstrip(b"\0")
            if not self._fed:
                return True
            self._decompressor, self._has_begun = self._new(), True
        try:
            self._decoded, self._fed = self._decompressor.decompress(self._fed), b""
        except self._error as error:
            raise ValueError(first_line(error)) from None
        if self._decompressor.eof:
            self._fed, self._decompressor = self._decompressor.unused_data, None
        return True


def _refuse_binary(path: Path, head: bytes, packing: str) -> None:
    for pattern, what in _BINARY_HEADS:
        if re.match(pattern, head, re.DOTALL):
            inside = f", inside {packing}" if packing else ""
            raise UsageError(
                f"{path}: {what}{inside}, not text; unpack it or give it the ending of its kind "
                "(.gz .bz2 .xz .zst .parquet), or take it out of the corpus"
            )


def _lines(path: Path, file: io.BufferedReader, field: str) -> Iterator[tuple[str, object]]:
    for number, line in enumerate(file, start=1):
        if line.isspace():
            continue
        place = f", line {number}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{path}{place}: not JSON ({first_line(error)}); correct or remove the line") from error
        if not isinstance(record, dict):
            raise UsageError(f"{path}{place}: not a JSON object; each line must be one with corpus.text_field={field}")
        yield place, _field_of(record, field, f"{path}{place}")


def _items(path: Path, file: io.BufferedReader, field: str) -> Iterator[tuple[str, object]]:
    """Texts of a JSON array of objects or of strings."""
    remedy = f"make it JSON lines: jq -c '.[]' {path.name} > {PurePath(path.name).stem}.jsonl"
    content = file.read(MAX_JSON_BYTES + 1)
    if len(content) > MAX_JSON_BYTES:
        raise UsageError(f"{path}: an array of more than {MAX_JSON_BYTES:,} bytes; {remedy}")
    if not content.strip():
        return
    try:
        array = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: not JSON ({first_line(error)}); correct the file, or {remedy}") from error
    if not isinstance(array, list):
        raise UsageError(f"{path}: not a JSON array; {remedy}")
    for number, item in enumerate(array, start=1):
        place = f", item {number}"
        if isinstance(item, dict):
            item = _field_of(item, field, f"{path}{place}")
        yield place, item


def _field_of(record: dict, field: str, source: str) -> object:
    if field not in record:
        raise UsageError(no_field(source, field, list(record)))
    return record[field]


def _parquet(path: Path, packing: str, field: str) -> Iterator[tuple[str, object]]:
    # Imported here because the other kinds of file do not need it.
    import pyarrow.parquet

    if packing:
        raise UsageError(f"{path}: Parquet inside {packing} cannot be read in parts; unpack it")
    try:
        with pyarrow.parquet.ParquetFile(path) as parquet:
            if field not in parquet.schema_arrow.names:
                raise UsageError(no_field(str(path), field, parquet.schema_arrow.names))
            row = 0
            for batch in parquet.iter_batches(batch_size=PARQUET_BATCH_ROWS, columns=[field]):
                for text in batch[field].to_pylist():
                    row += 1
                    yield f", row {row}", text
    except pyarrow.ArrowException as error:
        raise UsageError(f"{path}: cannot be read ({first_line(error)}); replace the file") from error


def parquet_texts(path: Path, field: str) -> Iterator[tuple[str, object]]:
    """Read the texts of a Parquet file, each with its place, `FILE, row N` from 1 on.

    Raises UsageError where the file is damaged or has no such field.
    """
    with readable(path):
        for place, text in _parquet(path, "", field):
            yield f"{path}{place}", text


def text_bytes(source: str, text: object, on_null: str) -> bytes | None:
    """Encode `text` as UTF-8; lone surrogates, which JSON can hold, are kept as their three bytes.

    None for a null where `on_null` is skip. Raises UsageError for any other thing that is not a text.
    """
    if isinstance(text, bytes):
        return text
    if isinstance(text, str):
        return text.encode("utf-8", "surrogatepass")
    if text is None:
        if on_null == "skip":
            return None
        raise UsageError(f"{source}: the text is null; corpus.on_null=skip leaves such records out")
    raise UsageError(f"{source}: the text is {type(text).__name__}, not a string; check corpus.text_field")


def no_field(source: str, field: str, names: list[str]) -> str:
    """Say what is wrong where a record has other fields."""
    return f"{source}: no field corpus.text_field={field}; set it to one of: {', '.join(names)}"


def first_line(error: Exception) -> str:
    """Cut what a library says to one line."""
    return (str(error).splitlines() or [type(error).__name__])[0]


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn errors of the system or a decoder about a file into UsageError of one line."""
    try:
        yield
    # pyarrow's errors are ValueError or OSError; gzip and bz2 raise OSError, EOFError or zlib's own.
    except (OSError, ValueError, EOFError, zlib.error) as error:
        raise UsageError(f"{path}: cannot be read ({first_line(error)}); replace the file") from error
