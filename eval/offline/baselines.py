"""What other compressors make of the same bytes, and the proof that each of their streams decodes.

Two conventions, never mixed: `chunk` codes every chunk on its own, as the offline code does, so nothing learnt in one
chunk helps the next; `whole` codes the text as one file. Every stream carries what its decoder needs (magic, lengths,
end markers), so a size is that of a file.
"""

import bz2
import importlib.util
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Literal

import brotli

from eval.offline import compressors
from harness.errors import RunFailure

CHUNK_BYTES = 512
"""Chunk of the published tables, in bytes."""


@dataclass(kw_only=True, slots=True, frozen=True)
class Baseline:
    """One compressor under one convention: all that a column of a table needs."""

    name: str
    """Key in the report's `baselines`."""
    program: str
    """The compressor and its setting, for people."""
    convention: Literal["chunk", "whole"]
    """What is coded on its own: every chunk, or the text as one file."""
    encode: compressors.Compress
    """The streams of the pieces (chunks, or the whole text); a dictionary is the first stream."""
    decode: compressors.Decompress
    """The text, from the concatenated streams."""
    package: str
    """The distribution whose version decides the streams; Python's own where empty."""
    module: str = ""
    """Where the package is an extra that may be missing: what it is imported as."""
    learns: bool = False
    """Whether a training text makes it shorter."""

    @property
    def is_installed(self) -> bool:
        """Whether it can run here."""
        return not self.module or importlib.util.find_spec(self.module) is not None

    def context(self, chunk_bytes: int = CHUNK_BYTES) -> str:
        """What is coded on its own, in words."""
        return f"{chunk_bytes} B chunk" if self.convention == "chunk" else "whole file"

    def label(self, chunk_bytes: int = CHUNK_BYTES) -> str:
        """Program and context, as in `LZMA2 / 512 B chunk`."""
        return f"{self.program} / {self.context(chunk_bytes)}"

    def streams(self, data: bytes, chunk_bytes: int = CHUNK_BYTES, training: bytes = b"") -> Iterable[bytes]:
        """The streams of all pieces of `data` in order; the last chunk may be short, empty data have no chunk."""
        step = chunk_bytes if self.convention == "chunk" else max(len(data), 1)
        pieces = [data[start : start + step] for start in range(0, len(data), step)]
        return self.encode(pieces or [data] * (self.convention == "whole"), training)


def measure(
    data: bytes, chunk_bytes: int = CHUNK_BYTES, names: Collection[str] | None = None, training: bytes = b""
) -> dict[str, int]:
    """Bytes that each installed baseline, or each of the named ones, needs for `data`, in the order of `BASELINES`.

    `training` is a text that dictionaries may be made of; they count. Nothing is sampled: about 1 MB/s for each code,
    0.2 MB/s for brotli, zpaq and a dictionary. Every stream is decoded again; raises RunFailure where that does not
    give `data` back, since such a size would be worth nothing.
    """
    return {
        b.name: _decodable_bytes(b, data, chunk_bytes, training)
        for b in BASELINES
        if b.is_installed and (names is None or b.name in names)
    }


def _decodable_bytes(baseline: Baseline, data: bytes, chunk_bytes: int, training: bytes) -> int:
    coded = b"".join(baseline.streams(data, chunk_bytes, training))
    if baseline.decode(coded) != data:
        raise RunFailure(f"{baseline.label(chunk_bytes)}: does not decode to what was coded; install another version")
    return len(coded)


BASELINES: tuple[Baseline, ...] = (
    Baseline(
        name="lzma2_chunk",
        program="LZMA2",
        convention="chunk",
        encode=compressors.each(compressors.encode_lzma2_raw),
        decode=compressors.decode_lzma2_raw,
        package="",
    ),
    Baseline(
        name="lzma2_chunk_xz",
        program="LZMA2 .xz",
        convention="chunk",
        encode=compressors.each(compressors.encode_xz_chunk),
        decode=compressors.decode_xz,
        package="",
    ),
    Baseline(
        name="zstd_chunk",
        program="zstd -19",
        convention="chunk",
        encode=compressors.each(compressors.encode_zstd_chunk),
        decode=compressors.decode_zstd,
        package="zstandard",
    ),
    Baseline(
        name="zstd_chunk_dictionary",
        program="zstd -19 with dictionary",
        convention="chunk",
        encode=compressors.encode_zstd_with_dictionary,
        decode=compressors.decode_zstd_with_dictionary,
        package="zstandard",
        learns=True,
    ),
    Baseline(
        name="brotli_chunk",
        program="brotli -q 11",
        convention="chunk",
        encode=compressors.each(compressors.encode_brotli_chunk),
        decode=compressors.decode_brotli_chunks,
        package="brotli",
    ),
    Baseline(
        name="ppmd_chunk",
        program="PPMd order 5",
        convention="chunk",
        encode=compressors.each(compressors.encode_ppmd_chunk),
        decode=compressors.decode_ppmd_chunks,
        package="pyppmd",
    ),
    Baseline(
        name="lzma2_whole",
        program="xz -9e",
        convention="whole",
        encode=compressors.each(compressors.encode_xz_whole),
        decode=compressors.decode_xz,
        package="",
    ),
    Baseline(
        name="zstd_whole",
        program="zstd -22 --long",
        convention="whole",
        encode=compressors.each(compressors.encode_zstd_whole),
        decode=compressors.decode_zstd,
        package="zstandard",
    ),
    Baseline(
        name="bz2_whole",
        program="bzip2 -9",
        convention="whole",
        encode=compressors.each(bz2.compress),
        decode=bz2.decompress,
        package="",
    ),
    Baseline(
        name="brotli_whole",
        program="brotli -q 11",
        convention="whole",
        encode=compressors.each(compressors.encode_brotli_whole),
        decode=brotli.decompress,
        package="brotli",
    ),
    Baseline(
        name="ppmd_whole",
        program="PPMd order 12",
        convention="whole",
        encode=compressors.each(compressors.encode_ppmd_whole),
        decode=compressors.decode_ppmd_whole,
        package="pyppmd",
    ),
    Baseline(
        name="bzip3_whole",
        program="bzip3",
        convention="whole",
        encode=compressors.each(compressors.encode_bzip3),
        decode=compressors.decode_bzip3,
        package="bzip3",
        module="bz3",
    ),
    Baseline(
        name="zpaq_whole",
        program="zpaq -m5",
        convention="whole",
        encode=compressors.each(compressors.encode_zpaq),
        decode=compressors.decode_zpaq,
        package="zpaq",
        module="zpaq",
    ),
)
"""Every baseline, chunked ones first; those of extras last."""
