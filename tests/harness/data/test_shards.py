"""A token file holds exactly its documents, appears only when complete, and never opens damaged."""

import errno
import resource
import struct
import tracemalloc

import numpy as np
import pytest

from harness.data.shards import HEADER_BYTES, open_shard, write_shard
from harness.data.tokenizer import ByteTokenizer, SentencePieceTokenizer
from harness.errors import RunFailure, UsageError
from harness.files import reason

DOCUMENTS = [b"first ", b"", b"the second\n", bytes(range(256))]


def byte_shard(folder, documents=DOCUMENTS):
    return write_shard(folder / "train.tokens", iter(documents), ByteTokenizer())


@pytest.mark.parametrize("tokenizer", [ByteTokenizer(), SentencePieceTokenizer(["th", " s", "the", "e", "t"])])
def test_tokens_documents_and_sizes_are_those_of_the_corpus(tmp_path, tokenizer):
    written = write_shard(tmp_path / "train.tokens", iter(DOCUMENTS), tokenizer)
    shard = open_shard(tmp_path / "train.tokens")
    assert tokenizer.decode(shard.tokens) == b"".join(DOCUMENTS)
    assert shard.tokens.dtype == (np.uint8 if tokenizer.kind == "bytes" else np.uint16)
    assert shard.num_tokens == len(shard.tokens)
    assert shard.raw_bytes == sum(map(len, DOCUMENTS))
    pieces = np.split(shard.tokens, shard.document_offsets[1:].astype(np.int64))
    assert [tokenizer.decode(piece) for piece in pieces] == [document for document in DOCUMENTS if document]
    assert shard.document_offsets[0] == 0
    assert written.fingerprint == shard.fingerprint
    shard.verify()


def test_a_shard_cannot_be_written_through(tmp_path):
    with pytest.raises(ValueError):
        byte_shard(tmp_path).tokens[0] = 1


def test_more_documents_than_are_kept_in_memory_keep_their_offsets(tmp_path):
    shard = byte_shard(tmp_path, [b"ab"] * 150_001)
    assert np.array_equal(shard.document_offsets, np.arange(0, 300_002, 2, dtype=np.uint64))
    shard.verify()


def test_memory_does_not_grow_with_the_number_of_documents(tmp_path):
    tracemalloc.start()
    shard = byte_shard(tmp_path, (b"a" for _ in range(150_000)))
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(shard.document_offsets) == 150_000
    assert peak_bytes < 1_600_000


def test_the_fingerprint_is_that_of_the_tokens_and_the_tokenizer(tmp_path):
    reference = byte_shard(tmp_path).fingerprint
    assert reference == "02b3d9a65d1a95b8651393b396aa3a1c3365bd099b296f5b42c64831cf8d5588"
    assert byte_shard(tmp_path, [b"".join(DOCUMENTS)]).fingerprint == reference
    assert byte_shard(tmp_path, [*DOCUMENTS, b"x"]).fingerprint != reference
    by_model = [
        write_shard(tmp_path / "s", iter([b"zzz"]), SentencePieceTokenizer([piece])).fingerprint for piece in ("a", "b")
    ]
    assert by_model[0] != by_model[1]


def test_an_empty_corpus_is_refused_and_leaves_nothing(tmp_path):
    with pytest.raises(UsageError, match="empty"):
        byte_shard(tmp_path, [b"", b""])
    assert list(tmp_path.iterdir()) == []


def test_a_failure_while_writing_keeps_the_earlier_file_and_leaves_no_other(tmp_path):
    before = byte_shard(tmp_path).fingerprint

    def failing():
        yield b"x" * 100_000
        raise UsageError("corpus.path: gone")

    with pytest.raises(UsageError, match="gone"):
        write_shard(tmp_path / "train.tokens", failing(), ByteTokenizer())
    assert [file.name for file in tmp_path.iterdir()] == ["train.tokens"]
    assert open_shard(tmp_path / "train.tokens").fingerprint == before


def test_a_file_that_cannot_be_written_is_one_line_and_leaves_nothing(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(RunFailure, match=r"cannot be written \(File too large: raise it with `ulimit -f`\)"):
            byte_shard(tmp_path, [b"x" * 200_000])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


def test_only_a_full_disk_or_quota_is_told_to_free_space(tmp_path):
    with pytest.raises(OSError) as caught, open("/dev/full", "wb", buffering=0) as full:  # noqa: PTH123
        full.write(b"x")
    assert reason(caught.value) == "No space left on device: free disk space, or use another folder"
    assert "free disk space" in reason(OSError(errno.EDQUOT, "Disk quota exceeded"))
    with pytest.raises(RunFailure, match=r"cannot be written \(No such file or directory\)$"):
        byte_shard(tmp_path / "missing")


def test_every_damaged_byte_and_every_truncation_is_refused(tmp_path):
    path = byte_shard(tmp_path).path
    good = path.read_bytes()
    padding = slice(HEADER_BYTES + 273, HEADER_BYTES + 280)
    assert good[padding] == bytes(7)
    for position in set(range(len(good))) - set(range(padding.start, padding.stop)):
        path.write_bytes(good[:position] + bytes([good[position] ^ 1]) + good[position + 1 :])
        with pytest.raises(UsageError, match=r"train.tokens: .*; run `codelength data`"):
            open_shard(path).verify()
        # Damage to the header is seen without reading the rest.
        if position < HEADER_BYTES:
            with pytest.raises(UsageError):
                open_shard(path)
    for length in range(len(good)):
        path.write_bytes(good[:length])
        with pytest.raises(UsageError):
            open_shard(path)
    path.write_bytes(good + b"\0")
    with pytest.raises(UsageError):
        open_shard(path)


def test_missing_foreign_and_future_files_are_told_apart(tmp_path):
    path = tmp_path / "train.tokens"
    with pytest.raises(UsageError, match="cannot be read"):
        open_shard(path)
    path.write_bytes(b"Some other file. " * 100)
    with pytest.raises(UsageError, match="not a token file"):
        open_shard(path)
    data = byte_shard(tmp_path).path.read_bytes()
    path.write_bytes(data[:8] + struct.pack("<I", 2) + data[12:])
    with pytest.raises(UsageError, match="version 2, this program reads version 1"):
        open_shard(path)
