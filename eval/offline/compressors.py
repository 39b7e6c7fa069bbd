"""Streams of other compressors: how each codes pieces of a text, and how the text comes back from the streams alone.

An encoder is given the pieces in order (chunks, or the whole text as one) and a training text, which only a dictionary
looks at. A decoder is given the concatenated streams, finds their ends itself, and returns the text.
"""

import functools
import importlib
import io
import lzma
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import brotli
import pyppmd
import zstandard

Compress = Callable[[Sequence[bytes], bytes], Iterable[bytes]]
Decompress = Callable[[bytes], bytes]

# A match finder allocates its dictionary for every chunk: the 64 MiB of preset 9 make that 250 times slower. Any
# dictionary that holds the chunk gives the same bytes.
_MIN_DICTIONARY_BYTES = 4096
_LZMA_EXTREME = 9 | lzma.PRESET_EXTREME
_ZSTD_CHUNK_LEVEL = 19
_PPMD_ORDER, _PPMD_CHUNK_ORDER = 12, 5
# Touched only as the model grows (0.15 GB for 6 MB of text). A model that outgrows it starts again from nothing.
_PPMD_MEMORY_BYTES, _PPMD_CHUNK_MEMORY_BYTES = 1 << 30, 1 << 24
# pyppmd 1.3 loses a byte when one call fills its first output block (32 kB), so it is fed and read in small pieces.
_PPMD_PIECE_BYTES = 8192
_PPMD_LENGTH_BYTES = 8
# The smallest window costs most bits in the head of a brotli stream, this one the fewest.
_BROTLI_CHUNK_WINDOW, _BROTLI_WINDOW = 16, 24
# A chunk of text takes less than that; what a decoder was given beyond its stream is handed back.
_PIECE_BYTES = 4096
_SMALLEST_BZIP3_BLOCK, _LARGEST_BZIP3_BLOCK = 65 << 10, 511 << 20

# Of dictionaries of twice the size each time, until one is no shorter together with its chunks. Lengths of training
# samples and of the segments of a dictionary: the best on held-out text of wiki-mini, by a little.
_SMALLEST_ZSTD_DICTIONARY, _LARGEST_ZSTD_DICTIONARY = 4096, 1 << 20
_SAMPLE_BYTES, _SEGMENT_BYTES, _MATCH_BYTES = 2048, 64, 6


def each(encode: Callable[[bytes], bytes]) -> Compress:
    """An encoder that looks at nothing but the piece."""
    return lambda pieces, _: map(encode, pieces)


def encode_lzma2_raw(chunk: bytes) -> bytes:
    """LZMA2 without a container."""
    return lzma.compress(chunk, format=lzma.FORMAT_RAW, filters=_small_dictionary(_LZMA_EXTREME, len(chunk)))


def decode_lzma2_raw(stream: bytes) -> bytes:
    """Inverse of `encode_lzma2_raw`."""
    return _decode_lzma(stream, format=lzma.FORMAT_RAW, filters=_lzma2_filters(_LZMA_EXTREME))


def encode_xz_chunk(chunk: bytes) -> bytes:
    """A .xz file by the default preset."""
    return lzma.compress(chunk, filters=_small_dictionary(lzma.PRESET_DEFAULT, len(chunk)))


def encode_xz_whole(data: bytes) -> bytes:
    """A .xz file by the strongest preset."""
    return lzma.compress(data, preset=_LZMA_EXTREME)


def decode_xz(stream: bytes) -> bytes:
    """Inverse of both."""
    return _decode_lzma(stream, format=lzma.FORMAT_XZ)


def _lzma2_filters(preset: int) -> list[dict[str, int]]:
    return [{"id": lzma.FILTER_LZMA2, "preset": preset}]


def _small_dictionary(preset: int, num_bytes: int) -> list[dict[str, int]]:
    dictionary_bytes = max(_MIN_DICTIONARY_BYTES, num_bytes)
    return [filter_ | {"dict_size": dictionary_bytes} for filter_ in _lzma2_filters(preset)]


def _decode_lzma(stream: bytes, **container: Any) -> bytes:
    return _decode_each(stream, lambda: lzma.LZMADecompressor(**container))


def _decode_each(stream: bytes, new_decoder: Callable[[], Any]) -> bytes:
    """All texts of streams that say where they end, by decoders with `decompress`, `eof` and `unused_data`."""
    parts, view, position = [], memoryview(stream), 0
    while position < len(stream):
        decoder = new_decoder()
        while not decoder.eof:
            piece = view[position : position + _PIECE_BYTES]
            if not piece:
                break
            position += len(piece)
            parts.append(decoder.decompress(piece))
        else:
            position -= len(decoder.unused_data)
    return b"".join(parts)


@functools.cache
def _zstd_chunk_compressor() -> zstandard.ZstdCompressor:
    return zstandard.ZstdCompressor(level=_ZSTD_CHUNK_LEVEL)


def encode_zstd_chunk(chunk: bytes) -> bytes:
    """A zstd frame."""
    return _zstd_chunk_compressor().compress(chunk)


def encode_zstd_whole(data: bytes) -> bytes:
    """A zstd frame by the strongest setting."""
    parameters = zstandard.ZstdCompressionParameters.from_level(22, window_log=27, enable_ldm=True)
    return zstandard.ZstdCompressor(compression_params=parameters).compress(data)


def decode_zstd(stream: bytes) -> bytes:
    """Inverse of both."""
    return _read_frames(zstandard.ZstdDecompressor(), stream)


def _read_frames(decoder: zstandard.ZstdDecompressor, stream: bytes) -> bytes:
    with decoder.stream_reader(io.BytesIO(stream), read_across_frames=True) as reader:
        return reader.read()


def encode_zstd_with_dictionary(pieces: Sequence[bytes], training: bytes) -> list[bytes]:
    """The shortest of several dictionaries of the training text, packed by brotli, then a bare frame a piece.

    Frames leave out what the dictionary and the file of them all tell: magic number, number of the dictionary, size.
    Without pieces there is no dictionary either.
    """
    if not pieces:
        return []
    best = _encode_with(b"", pieces)
    size = _SMALLEST_ZSTD_DICTIONARY
    # Fewer samples teach nothing about other text.
    while size <= min(_LARGEST_ZSTD_DICTIONARY, len(training) // 8):
        streams = _encode_with(_trained_dictionary(training, size), pieces)
        if sum(map(len, streams)) >= sum(map(len, best)):
            break
        best, size = streams, 2 * size
    return best


def _trained_dictionary(training: bytes, size: int) -> bytes:
    starts = range(0, len(training), _SAMPLE_BYTES)
    samples: list[bytes | bytearray | memoryview] = [training[start : start + _SAMPLE_BYTES] for start in starts]
    try:
        trained = zstandard.train_dictionary(
            size, samples, k=_SEGMENT_BYTES, d=_MATCH_BYTES, level=_ZSTD_CHUNK_LEVEL, dict_id=1
        )
    except zstandard.ZstdError:
        # The text repeats itself so much that there is nothing to choose.
        return b""
    return trained.as_bytes()


def _encode_with(dictionary: bytes, pieces: Sequence[bytes]) -> list[bytes]:
    parameters = zstandard.ZstdCompressionParameters.from_level(
        _ZSTD_CHUNK_LEVEL,
        source_size=max(map(len, pieces)),
        dict_size=len(dictionary),
        format=zstandard.FORMAT_ZSTD1_MAGICLESS,
        write_dict_id=False,
        write_content_size=False,
    )
    shared = zstandard.ZstdCompressionDict(dictionary) if dictionary else None
    compressor = zstandard.ZstdCompressor(compression_params=parameters, dict_data=shared)
    return [_encode_brotli(dictionary, _BROTLI_CHUNK_WINDOW), *map(compressor.compress, pieces)]


def decode_zstd_with_dictionary(stream: bytes) -> bytes:
    """Inverse of `encode_zstd_with_dictionary`."""
    if not stream:
        return b""
    packed = _BrotliDecoder()
    dictionary = packed.decompress(stream)
    shared = zstandard.ZstdCompressionDict(dictionary) if dictionary else None
    decoder = zstandard.ZstdDecompressor(format=zstandard.FORMAT_ZSTD1_MAGICLESS, dict_data=shared)
    return _read_frames(decoder, packed.unused_data)


def encode_brotli_chunk(chunk: bytes) -> bytes:
    """A brotli stream in a small window."""
    return _encode_brotli(chunk, _BROTLI_CHUNK_WINDOW)


def encode_brotli_whole(data: bytes) -> bytes:
    """A brotli stream in a large window."""
    return _encode_brotli(data, _BROTLI_WINDOW)


def _encode_brotli(data: bytes, window: int) -> bytes:
    return brotli.compress(data, quality=11, lgwin=window)


def decode_brotli_chunks(stream: bytes) -> bytes:
    """Inverse of `encode_brotli_chunk`."""
    return _decode_each(stream, _BrotliDecoder)


class _BrotliDecoder:
    """Finds the end of a stream, which the library's decoder knows and does not tell: it is fed byte by byte."""

    def __init__(self) -> None:
        self._decoder = brotli.Decompressor()
        self.eof, self.unused_data = False, b""

    def decompress(self, piece: bytes) -> bytes:
        parts = []
        for position in range(len(piece)):
            parts.append(self._decoder.process(piece[position : position + 1]))
            if self._decoder.is_finished():
                self.eof, self.unused_data = True, bytes(piece[position + 1 :])
                break
        return b"".join(parts)


def encode_ppmd_chunk(chunk: bytes) -> bytes:
    """PPMd of low order, with a mark at its end."""
    encoder = pyppmd.Ppmd8Encoder(_PPMD_CHUNK_ORDER, _PPMD_CHUNK_MEMORY_BYTES, pyppmd.PPMD8_RESTORE_METHOD_RESTART)
    return _feed_ppmd(encoder, chunk)


def decode_ppmd_chunks(stream: bytes) -> bytes:
    """Inverse of `encode_ppmd_chunk`."""
    return _decode_each(stream, _PpmdDecoder)


class _PpmdDecoder:
    """Decodes to the mark at the end."""

    def __init__(self) -> None:
        restart = pyppmd.PPMD8_RESTORE_METHOD_RESTART
        self._decoder = pyppmd.Ppmd8Decoder(_PPMD_CHUNK_ORDER, _PPMD_CHUNK_MEMORY_BYTES, restart)
        self.eof, self.unused_data = False, b""

    def decompress(self, piece: bytes) -> bytes:
        parts = [self._decoder.decode(bytes(piece), _PPMD_PIECE_BYTES)]
        while not self._decoder.eof and not self._decoder.needs_input:
            parts.append(self._decoder.decode(b"", _PPMD_PIECE_BYTES))
        self.eof, self.unused_data = self._decoder.eof, self._decoder.unused_data
        return b"".join(parts)


def encode_ppmd_whole(data: bytes) -> bytes:
    """The length, then PPMd of high order."""
    encoder = pyppmd.Ppmd8Encoder(_PPMD_ORDER, _PPMD_MEMORY_BYTES, pyppmd.PPMD8_RESTORE_METHOD_RESTART)
    return len(data).to_bytes(_PPMD_LENGTH_BYTES, "little") + _feed_ppmd(encoder, data)


def _feed_ppmd(encoder: pyppmd.Ppmd8Encoder, data: bytes) -> bytes:
    starts = range(0, len(data), _PPMD_PIECE_BYTES)
    parts = [encoder.encode(data[start : start + _PPMD_PIECE_BYTES]) for start in starts]
    return b"".join(parts) + encoder.flush()


def decode_ppmd_whole(stream: bytes) -> bytes:
    """Inverse of `encode_ppmd_whole`."""
    missing_bytes = int.from_bytes(stream[:_PPMD_LENGTH_BYTES], "little")
    decoder = pyppmd.Ppmd8Decoder(_PPMD_ORDER, _PPMD_MEMORY_BYTES, pyppmd.PPMD8_RESTORE_METHOD_RESTART)
    parts, fresh_input = [], stream[_PPMD_LENGTH_BYTES:]
    while missing_bytes:
        parts.append(decoder.decode(fresh_input, min(missing_bytes, _PPMD_PIECE_BYTES)))
        missing_bytes -= len(parts[-1])
        # The decoder reads ahead of the last symbol; it asks for bytes that do not matter.
        fresh_input = b"\0" if decoder.needs_input else b""
    return b"".join(parts)


def encode_zpaq(data: bytes) -> bytes:
    """A ZPAQ block by its strongest method; a second thread would cut the text in two."""
    return importlib.import_module("zpaq").compress(data, level=5, threads=1, hints=False)


def decode_zpaq(stream: bytes) -> bytes:
    """Inverse of `encode_zpaq`."""
    return importlib.import_module("zpaq").decompress(stream, threads=1)


def encode_bzip3(data: bytes) -> bytes:
    """A bzip3 file of one block."""
    block_bytes = min(max(len(data), _SMALLEST_BZIP3_BLOCK), _LARGEST_BZIP3_BLOCK)
    return importlib.import_module("bz3").compress(data, block_bytes)


def decode_bzip3(stream: bytes) -> bytes:
    """Inverse of `encode_bzip3`."""
    return importlib.import_module("bz3").decompress(stream)
