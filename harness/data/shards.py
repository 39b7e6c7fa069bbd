"""Token files: one memory-mapped file per split, written once in constant memory.

Layout, little-endian: header | tokens (uint8 or uint16) | zeros to a multiple of 8 | document offsets (uint64).
The header ends with the first 16 bytes of its own SHA-256.
"""

import hashlib
import os
import shutil
import struct
import tempfile
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

import numpy as np

from harness.data.tokenizer import Tokenizer
from harness.errors import RunFailure, UsageError
from harness.files import reason, replacing

if TYPE_CHECKING:
    from harness.data.parts import Parts

MAGIC = b"CLSHARD\n"
VERSION = 1
# magic, version, bytes per token, tokens, documents, raw bytes, SHA-256 of: tokens, tokenizer model, offsets.
HEADER = struct.Struct("<8sIIQQQ32s32s32s")
CHECKSUM_BYTES = 16
HEADER_BYTES = HEADER.size + CHECKSUM_BYTES
ALIGNMENT = 8
OFFSETS_IN_MEMORY = 1 << 16
VERIFY_BLOCK_BYTES = 1 << 24
TOKEN_TYPES: dict[int, np.dtype] = {1: np.dtype("<u1"), 2: np.dtype("<u2")}


@dataclass(kw_only=True, slots=True)
class Shard:
    """An open token file; its arrays are read-only views of the file."""

    path: Path
    """Where the file lies."""
    tokens: np.ndarray
    """Token ids, uint8 or uint16 of shape (num_tokens,)."""
    document_offsets: np.ndarray
    """Index into `tokens` at which each document starts, uint64 of shape (documents,)."""
    raw_bytes: int
    """Size in bytes of the text that the tokens stand for."""
    fingerprint: str
    """SHA-256 (hex) over the token type, the tokenizer's model and all tokens."""
    model_digest: bytes = field(repr=False)
    """SHA-256 of the tokenizer's `model_bytes()`, 32 bytes."""
    offsets_digest: bytes = field(repr=False)
    """SHA-256 of the document offsets, 32 bytes."""
    parts: "Parts | None" = None
    """Where the parts of the text begin, if it has any; what lies beside the file says so."""
    order: np.ndarray | None = None
    """Numbers of the documents (documents,), int64, in their order here, where that is not their own; said likewise."""
    inputs: np.ndarray | None = None
    """Of labels what each is given (num_tokens, channels, rows, columns), uint8 or float32; in a file beside it."""

    @property
    def num_tokens(self) -> int:
        """Number of tokens."""
        return len(self.tokens)

    @property
    def document_lengths(self) -> np.ndarray:
        """Tokens of each document (documents,), int64, in the order of the text, whatever that of the file is."""
        lengths = np.diff(np.append(self.document_offsets, np.uint64(self.num_tokens))).astype(np.int64)
        return lengths if self.order is None else lengths[np.argsort(self.order)]

    def verify(self) -> None:
        """Reads the whole file and recomputes its digests; UsageError if it is damaged."""
        digest = _token_digest(self.tokens.dtype, self.model_digest)
        block_tokens = VERIFY_BLOCK_BYTES // self.tokens.dtype.itemsize
        for start in range(0, self.num_tokens, block_tokens):
            digest.update(self.tokens[start : start + block_tokens].data)
        offsets_digest = hashlib.sha256(self.document_offsets.data).digest()
        if digest.hexdigest() != self.fingerprint or offsets_digest != self.offsets_digest:
            raise _refusal(self.path, "damaged: its SHA-256 differs from the recorded one")
        ends = np.append(self.document_offsets, np.uint64(self.num_tokens))
        if ends[0] != 0 or (ends[1:] <= ends[:-1]).any():
            raise _refusal(self.path, "damaged: its documents do not follow one another")


class Encoded(NamedTuple):
    """Some documents as tokens."""

    lengths: list[int]
    """Tokens of each document."""
    tokens: np.ndarray
    """Token ids of all of them, one after another."""
    raw_bytes: int
    """Size of their text in bytes."""


def token_fingerprint(tokens: np.ndarray, tokenizer: Tokenizer) -> str:
    """`Shard.fingerprint` of `tokens`, which are all there are of a text."""
    digest = _token_digest(token_type(tokenizer), hashlib.sha256(tokenizer.model_bytes()).digest())
    digest.update(np.ascontiguousarray(tokens, dtype=token_type(tokenizer)).data)
    return digest.hexdigest()


def write_shard(path: Path, documents: Iterator[bytes], tokenizer: Tokenizer) -> Shard:
    """Writes the tokens of `documents` to `path`, which appears only when complete, and opens it.

    Empty documents are left out. Raises UsageError if there is no text, RunFailure if it cannot be written.
    """
    return write_encoded(path, _encoded(documents, tokenizer), tokenizer)


def write_encoded(path: Path, parts: Iterator[Encoded], tokenizer: Tokenizer) -> Shard:
    """`write_shard` of documents that are tokens already."""
    try:
        with replacing(path) as file:
            _write(file, path, parts, tokenizer)
    except OSError as error:
        raise RunFailure(f"{path}: cannot be written ({reason(error)})") from error
    return open_shard(path)


def _encoded(documents: Iterator[bytes], tokenizer: Tokenizer) -> Iterator[Encoded]:
    for document in documents:
        if document:
            tokens = tokenizer.encode(document)
            yield Encoded([len(tokens)], tokens, len(document))


def _write(file: BinaryIO, path: Path, parts: Iterator[Encoded], tokenizer: Tokenizer) -> None:
    dtype = token_type(tokenizer)
    model_digest = hashlib.sha256(tokenizer.model_bytes()).digest()
    digest = _token_digest(dtype, model_digest)
    offsets_digest = hashlib.sha256()
    num_tokens = num_documents = raw_bytes = 0
    file.write(bytes(HEADER_BYTES))
    # Offsets come after the tokens; until then they wait in an unnamed file, as there may be more than memory holds.
    with tempfile.TemporaryFile(dir=path.parent) as waiting:
        offsets = array("Q")
        for part in parts:
            for length in part.lengths:
                offsets.append(num_tokens)
                num_tokens += length
                if len(offsets) == OFFSETS_IN_MEMORY:
                    _spill(offsets, waiting, offsets_digest)
            tokens = part.tokens.astype(dtype, copy=False)
            digest.update(tokens.data)
            file.write(tokens.data)
            num_documents += len(part.lengths)
            raw_bytes += part.raw_bytes
        if num_tokens == 0:
            raise UsageError(f"{path}: the corpus is empty; check corpus.path and corpus.text_field")
        _spill(offsets, waiting, offsets_digest)
        file.write(bytes(_padding(num_tokens * dtype.itemsize)))
        waiting.seek(0)
        shutil.copyfileobj(waiting, file)
    digests = (digest.digest(), model_digest, offsets_digest.digest())
    header = HEADER.pack(MAGIC, VERSION, dtype.itemsize, num_tokens, num_documents, raw_bytes, *digests)
    file.seek(0)
    file.write(header + _checksum(header))


def open_shard(path: Path) -> Shard:
    """Opens what `write_shard` wrote, in a time that does not depend on its size.

    Raises UsageError for a missing, foreign, truncated or visibly damaged file; `Shard.verify` reads all of it.
    """
    try:
        with path.open("rb") as file:
            head = file.read(HEADER_BYTES)
            file_bytes = os.fstat(file.fileno()).st_size
    except OSError as error:
        raise _refusal(path, f"cannot be read ({error.strerror})") from error
    if not head.startswith(MAGIC):
        raise _refusal(path, "not a token file")
    if len(head) < HEADER_BYTES:
        raise _refusal(path, f"truncated to {len(head)} bytes")
    header, checksum = head[: HEADER.size], head[HEADER.size :]
    _, version, width, num_tokens, num_documents, raw_bytes, digest, model_digest, offsets_digest = HEADER.unpack(
        header
    )
    if version != VERSION:
        raise _refusal(path, f"version {version}, this program reads version {VERSION}")
    if _checksum(header) != checksum or width not in TOKEN_TYPES or not num_tokens:
        raise _refusal(path, "damaged header")
    offsets_start = HEADER_BYTES + num_tokens * width + _padding(num_tokens * width)
    expected_bytes = offsets_start + num_documents * 8
    if file_bytes != expected_bytes:
        raise _refusal(path, f"{file_bytes} bytes instead of {expected_bytes}")
    return Shard(
        path=path,
        tokens=np.memmap(path, dtype=TOKEN_TYPES[width], mode="r", offset=HEADER_BYTES, shape=(num_tokens,)),
        document_offsets=np.memmap(path, dtype="<u8", mode="r", offset=offsets_start, shape=(num_documents,)),
        raw_bytes=raw_bytes,
        fingerprint=digest.hex(),
        model_digest=model_digest,
        offsets_digest=offsets_digest,
    )


def _refusal(path: Path, reason: str) -> UsageError:
    return UsageError(f"{path}: {reason}; run `codelength data` to prepare the corpus again")


def token_type(tokenizer: Tokenizer) -> np.dtype:
    """How the tokens of a tokenizer are stored."""
    return TOKEN_TYPES[1 if tokenizer.vocab_size <= 1 << 8 else 2]


def _token_digest(dtype: np.dtype, model_digest: bytes) -> "hashlib._Hash":
    return hashlib.sha256(dtype.str.encode() + b"\n" + model_digest)


def _checksum(header: bytes) -> bytes:
    return hashlib.sha256(header).digest()[:CHECKSUM_BYTES]


def _padding(num_bytes: int) -> int:
    return -num_bytes % ALIGNMENT


def _spill(offsets: "array[int]", waiting: BinaryIO, digest: "hashlib._Hash") -> None:
    """Moves the offsets gathered so far to the file, as little-endian whatever the machine."""
    block = np.asarray(offsets, dtype="<u8").tobytes()
    del offsets[:]
    digest.update(block)
    waiting.write(block)
