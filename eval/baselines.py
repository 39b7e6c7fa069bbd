"""What other compressors make of the same bytes, and the proof that each of their streams decodes.

Two conventions, never mixed: `chunk` codes every chunk on its own, as the offline code does, so nothing learnt in one
chunk helps the next; `whole` codes the text as one file. Every stream carries what its decoder needs (magic, lengths,
end markers), so a size is that of a file.
"""

import bz2
import functools
import io
import lzma
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import brotli
import pyppmd
import zstandard

from harness.errors import RunFailure

CHUNK_BYTES = 512
"""Chunk of the published tables, in bytes."""

# A match finder allocates its dictionary for every chunk: the 64 MiB of preset 9 make that 250 times slower. Any
# dictionary that holds the chunk gives the same bytes.
_MIN_DICTIONARY_BYTES = 4096
_LZMA_EXTREME = 9 | lzma.PRESET_EXTREME
_ZSTD_CHUNK_LEVEL = 19
_PPMD_ORDER = 12
# Touched only as the model grows (0.15 GB for 6 MB of text). A model that outgrows it starts again from nothing.
_PPMD_MEMORY_BYTES = 1 << 30
# pyppmd 1.3 loses a byte when one call fills its first output block (32 kB), so it is fed and read in small pieces.
_PPMD_PIECE_BYTES = 8192
_PPMD_LENGTH_BYTES = 8


@dataclass(kw_only=True, slots=True, frozen=True)
class Baseline:
    """One compressor under one convention: all that a column of a table needs."""

    name: str
    """Key in the report's `baselines`."""
    program: str
    """The compressor and its setting, for people."""
    convention: Literal["chunk", "whole"]
    """What is coded on its own: every chunk, or the text as one file."""
    encode: Callable[[bytes], bytes]
    """The stream of one piece (a chunk, or the whole text)."""
    decode: Callable[[bytes], bytes]
    """The text, from the concatenated streams of its pieces."""

    def context(self, chunk_bytes: int = CHUNK_BYTES) -> str:
        """What is coded on its own, in words."""
        return f"{chunk_bytes} B chunk" if self.convention == "chunk" else "whole file"

    def label(self, chunk_bytes: int = CHUNK_BYTES) -> str:
        """Program and context, as in `LZMA2 / 512 B chunk`."""
        return f"{self.program} / {self.context(chunk_bytes)}"

    def streams(self, data: bytes, chunk_bytes: int = CHUNK_BYTES) -> Iterator[bytes]:
        """The streams of all pieces of `data` in order; the last chunk may be short, empty data have no chunk."""
        if self.convention == "whole":
            return iter([self.encode(data)])
        return (self.encode(data[start : start + chunk_bytes]) for start in range(0, len(data), chunk_bytes))


def measure(data: bytes, chunk_bytes: int = CHUNK_BYTES, names: Collection[str] | None = None) -> dict[str, int]:
    """Bytes that each baseline, or each of the named ones, needs for `data`, in the order of `BASELINES`.

    Nothing is sampled: about 1 MB/s for each chunked code, 0.3 MB/s for brotli. Every stream is decoded again; raises
    RunFailure where that does not give `data` back, since such a size would be worth nothing.
    """
    return {b.name: _decodable_bytes(b, data, chunk_bytes) for b in BASELINES if names is None or b.name in names}


def _decodable_bytes(baseline: Baseline, data: bytes, chunk_bytes: int) -> int:
    coded = b"".join(baseline.streams(data, chunk_bytes))
    if baseline.decode(coded) != data:
        raise RunFailure(f"{baseline.label(chunk_bytes)}: does not decode to what was coded; install another version")
    return len(coded)


def _lzma2_filters(preset: int) -> list[dict[str, int]]:
    return [{"id": lzma.FILTER_LZMA2, "preset": preset}]


def _small_dictionary(preset: int, num_bytes: int) -> list[dict[str, int]]:
    dictionary_bytes = max(_MIN_DICTIONARY_BYTES, num_bytes)
    return [filter_ | {"dict_size": dictionary_bytes} for filter_ in _lzma2_filters(preset)]


def _encode_lzma2_raw(chunk: bytes) -> bytes:
    return lzma.compress(chunk, format=lzma.FORMAT_RAW, filters=_small_dictionary(_LZMA_EXTREME, len(chunk)))


def _decode_lzma2_raw(stream: bytes) -> bytes:
    return _decode_lzma(stream, format=lzma.FORMAT_RAW, filters=_lzma2_filters(_LZMA_EXTREME))


def _decode_xz(stream: bytes) -> bytes:
    return _decode_lzma(stream, format=lzma.FORMAT_XZ)


def _decode_lzma(stream: bytes, **container: Any) -> bytes:
    parts = []
    while stream:
        decoder = lzma.LZMADecompressor(**container)
        parts.append(decoder.decompress(stream))
        stream = decoder.unused_data
    return b"".join(parts)


def _encode_xz_chunk(chunk: bytes) -> bytes:
    return lzma.compress(chunk, filters=_small_dictionary(lzma.PRESET_DEFAULT, len(chunk)))


def _encode_xz_whole(data: bytes) -> bytes:
    return lzma.compress(data, preset=_LZMA_EXTREME)


@functools.cache
def _zstd_chunk_compressor() -> zstandard.ZstdCompressor:
    return zstandard.ZstdCompressor(level=_ZSTD_CHUNK_LEVEL)


def _encode_zstd_chunk(chunk: bytes) -> bytes:
    return _zstd_chunk_compressor().compress(chunk)


def _encode_zstd_whole(data: bytes) -> bytes:
    parameters = zstandard.ZstdCompressionParameters.from_level(22, window_log=27, enable_ldm=True)
    return zstandard.ZstdCompressor(compression_params=parameters).compress(data)


def _decode_zstd(stream: bytes) -> bytes:
    with zstandard.ZstdDecompressor().stream_reader(io.BytesIO(stream), read_across_frames=True) as reader:
        return reader.read()


def _encode_brotli(data: bytes) -> bytes:
    return brotli.compress(data, quality=11, lgwin=24)


def _encode_ppmd(data: bytes) -> bytes:
    encoder = pyppmd.Ppmd8Encoder(_PPMD_ORDER, _PPMD_MEMORY_BYTES, pyppmd.PPMD8_RESTORE_METHOD_RESTART)
    starts = range(0, len(data), _PPMD_PIECE_BYTES)
    parts = [encoder.encode(data[start : start + _PPMD_PIECE_BYTES]) for start in starts]
    # The stream does not say where it ends, so a file needs the length.
    return len(data).to_bytes(_PPMD_LENGTH_BYTES, "little") + b"".join(parts) + encoder.flush()


def _decode_ppmd(stream: bytes) -> bytes:
    missing_bytes = int.from_bytes(stream[:_PPMD_LENGTH_BYTES], "little")
    decoder = pyppmd.Ppmd8Decoder(_PPMD_ORDER, _PPMD_MEMORY_BYTES, pyppmd.PPMD8_RESTORE_METHOD_RESTART)
    parts, fresh_input = [], stream[_PPMD_LENGTH_BYTES:]
    while missing_bytes:
        parts.append(decoder.decode(fresh_input, min(missing_bytes, _PPMD_PIECE_BYTES)))
        missing_bytes -= len(parts[-1])
        # The decoder reads ahead of the last symbol; it asks for bytes that do not matter.
        fresh_input = b"\0" if decoder.needs_input else b""
    return b"".join(parts)


BASELINES: tuple[Baseline, ...] = (
    Baseline(
        name="lzma2_chunk", program="LZMA2", convention="chunk", encode=_encode_lzma2_raw, decode=_decode_lzma2_raw
    ),
    Baseline(
        name="lzma2_chunk_xz", program="LZMA2 .xz", convention="chunk", encode=_encode_xz_chunk, decode=_decode_xz
    ),
    Baseline(name="zstd_chunk", program="zstd -19", convention="chunk", encode=_encode_zstd_chunk, decode=_decode_zstd),
    Baseline(name="lzma2_whole", program="xz -9e", convention="whole", encode=_encode_xz_whole, decode=_decode_xz),
    Baseline(
        name="zstd_whole",
        program="zstd -22 --long",
        convention="whole",
        encode=_encode_zstd_whole,
        decode=_decode_zstd,
    ),
    Baseline(name="bz2_whole", program="bzip2 -9", convention="whole", encode=bz2.compress, decode=bz2.decompress),
    Baseline(
        name="brotli_whole", program="brotli -q 11", convention="whole", encode=_encode_brotli, decode=brotli.decompress
    ),
    Baseline(name="ppmd_whole", program="PPMd order 12", convention="whole", encode=_encode_ppmd, decode=_decode_ppmd),
)
"""Every baseline, chunked ones first."""
