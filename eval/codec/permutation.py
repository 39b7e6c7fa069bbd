"""The order of the documents of a text to bytes and back: their permutation in log2 n! bits, and their lengths.

Layout: u32 number of documents | for each block of up to 1,024 documents the digits of the permutation (Lehmer's code),
as one number of mixed radix, little-endian | lengths in tokens as varints, packed by brotli.
"""

import math
import struct
from bisect import bisect_left, insort
from dataclasses import dataclass

import brotli
import numpy as np

from eval.codec.varint import read_varint, varint

_COUNT = struct.Struct("<I")
_BLOCK_DOCUMENTS = 1024
_MOST_VARINT_BYTES = 10


@dataclass(frozen=True, slots=True)
class DocumentOrder:
    """In which order the documents of a text are coded."""

    order: np.ndarray
    """Number in the text of the document that is coded first, second and so on (documents,), int64."""
    lengths: np.ndarray
    """Tokens of each document, in the order of the text (documents,), int64."""

    def in_text(self, tokens: np.ndarray) -> np.ndarray:
        """Put coded `tokens` (n,) into the order of the text."""
        ends = np.cumsum(self.lengths[self.order])
        pieces = np.split(tokens, ends[:-1])
        return np.concatenate([pieces[place] for place in np.argsort(self.order)])

    def to_bytes(self) -> bytes:
        """Pack order and lengths."""
        lengths = b"".join(map(varint, self.lengths.tolist()))
        return _COUNT.pack(len(self.order)) + _packed(self.order.tolist()) + brotli.compress(lengths)

    @property
    def order_bits(self) -> float:
        """log2 n!, what naming one of all orders takes."""
        return math.lgamma(len(self.order) + 1) / math.log(2)


def read_order(content: bytes, num_tokens: int) -> DocumentOrder:
    """Read what `DocumentOrder.to_bytes` has written; raises ValueError where it is no order of `num_tokens`."""
    if len(content) < _COUNT.size:
        raise ValueError("no order")
    (count,) = _COUNT.unpack_from(content)
    if not 0 < count <= num_tokens:
        raise ValueError("more documents than tokens")
    digits: list[int] = []
    at = _COUNT.size
    for first in range(0, count, _BLOCK_DOCUMENTS):
        radices = range(count - first, max(0, count - first - _BLOCK_DOCUMENTS), -1)
        size = _size(radices)
        number, block = int.from_bytes(content[at : at + size], "little"), []
        for radix in reversed(radices):
            number, digit = divmod(number, radix)
            block.append(digit)
        if number or at + size > len(content):
            raise ValueError("no permutation")
        digits.extend(reversed(block))
        at += size
    left = list(range(count))
    order = np.array([left.pop(digit) for digit in digits])
    lengths = _lengths(content[at:], count)
    if sum(lengths) != num_tokens or min(lengths) < 1:
        raise ValueError("lengths of another text")
    return DocumentOrder(order, np.array(lengths))


def _packed(order: list[int]) -> bytes:
    """Lehmer's code: for each document how many with smaller numbers are still to come."""
    read: list[int] = []
    digits = []
    for number in order:
        digits.append(number - bisect_left(read, number))
        insort(read, number)
    count, blocks = len(order), []
    for first in range(0, count, _BLOCK_DOCUMENTS):
        radices = range(count - first, max(0, count - first - _BLOCK_DOCUMENTS), -1)
        packed = 0
        for digit, radix in zip(digits[first:], radices, strict=False):
            packed = packed * radix + digit
        blocks.append(packed.to_bytes(_size(radices), "little"))
    return b"".join(blocks)


def _size(radices: range) -> int:
    """Bytes that hold any number of these radices."""
    return -(-(math.prod(radices) - 1).bit_length() // 8)


def _lengths(packed: bytes, count: int) -> list[int]:
    try:
        decompressor = brotli.Decompressor()
        content = decompressor.process(packed, output_buffer_limit=_MOST_VARINT_BYTES * count + 1)
        is_whole = decompressor.is_finished()
    except brotli.error as error:
        raise ValueError("no lengths") from error
    values, at = [], 0
    while at < len(content):
        value, at = read_varint(content, at)
        values.append(value)
    if not is_whole or len(values) != count:
        raise ValueError("no lengths")
    return values
