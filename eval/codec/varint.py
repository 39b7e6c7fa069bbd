"""Whole numbers of any size in as few bytes as they need: 7 bits a byte, the lowest first, 128 where more follow."""

_MOST_BITS = 63


def varint(value: int) -> bytes:
    """The bytes of a number that is not negative."""
    out = bytearray()
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def read_varint(content: bytes, at: int) -> tuple[int, int]:
    """The number that begins at a place, and the place after it; raises ValueError where none below 2^63 ends there."""
    value = shift = 0
    while at < len(content) and shift < _MOST_BITS:
        byte = content[at]
        value |= (byte & 127) << shift
        shift, at = shift + 7, at + 1
        if byte < 128:
            return value, at
    raise ValueError("no number")
