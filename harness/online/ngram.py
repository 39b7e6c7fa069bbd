"""An adaptive model of bytes: what has followed the last one to six bytes, a word or two, and the longest match.

Each context of the next bit (its bytes and the bits of the current byte so far) has a slot in a table: the
probability of a 1, how often it was seen, and its last seven bits. Functions that are learnt along the way turn slots
into stretched probabilities, ln(p / (1 - p)), for `harness.online.logistic_mixer` to mix (Mahoney 2005,
"Adaptive weighing of context models"). Everything follows from the bytes coded so far.
"""

from math import log
from typing import NamedTuple

import numpy as np

from harness.machine.jit import compiled, inlined

UNKNOWN = 0xFFFF
"""In the history: not coded yet."""
MATCH_BYTES = 6
LONGEST_MATCH = 31
_INPUTS_PER_CONTEXT = 3
_OTHER_CONTEXTS = 4
"""Word, two words, and two or three bytes before the last one."""
_LIMIT = 255
_SLOT_BITS = 16, 24
# How fast the functions follow what comes out.
_PROBABILITY_RATE, _RECENT_RATE = np.float32(0.02), np.float32(0.004)
_FIRST_RATE, _MATCH_RATE = np.float32(0.01), np.float32(0.005)
_NEAREST = np.float32(1e-4)
_KNOTS = 33
_WORD_BYTES = 48
"""How far back words are read at the start of a sequence."""
_MATCH_BITS = 22
# Odd 64-bit constants: 2^64 over the golden ratio, and one from Steele and Vigna (2021).
_SPREAD, _SPREAD_AGAIN = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD1342543DE82EF95)


class Ngram(NamedTuple):
    """State of the model; `lane_*` belong to the sequences being coded side by side."""

    history: np.ndarray
    """The text as far as it is known, uint16 (num_tokens,)."""
    slots: np.ndarray
    """Probability of a 1 (32 bits), count (8), last bits after a leading 1 (8), check (16): uint64 (contexts, size)."""
    probabilities: np.ndarray
    """What probabilities have meant: float32 (contexts, 16 counts, knots)."""
    recents: np.ndarray
    """What last bits have meant: float32 (contexts, 256)."""
    first: np.ndarray
    """Probability of a 1 after the bits of the byte alone: float32 (256,)."""
    matches: np.ndarray
    """Where a hash of the last bytes was followed last: int64."""
    match_probabilities: np.ndarray
    """How often a match of a length has been right: float32 (lengths,)."""
    lane_hashes: np.ndarray
    """uint64 (lanes, contexts)."""
    lane_slots: np.ndarray
    """Indices of the slots of the current bit: int64 (lanes, contexts)."""
    lane_words: np.ndarray
    """Hashes of the letters of the word so far, 0 outside of words, and of the word before: uint64 (lanes, 2)."""
    lane_matches: np.ndarray
    """Place in the history of the next byte of the match, -1 without one, and its length: int64 (lanes, 2)."""


def num_inputs(order: int) -> int:
    """Count the inputs of the mixer: three a context, one of the byte's own bits, two of the match, one constant."""
    return _INPUTS_PER_CONTEXT * (order + _OTHER_CONTEXTS) + 4


def num_slots(num_tokens: int) -> int:
    """Compute the size of the table of a context, a power of two."""
    return 1 << int(np.clip(int(num_tokens * 4).bit_length(), *_SLOT_BITS))


def ngram_bytes(order: int, num_tokens: int) -> int:
    """Compute the memory of the model, roughly."""
    return 8 * (order + _OTHER_CONTEXTS) * num_slots(num_tokens) + 2 * num_tokens + (8 << _MATCH_BITS)


def new_ngram(order: int, num_tokens: int, lanes: int) -> Ngram:
    """Make the model before the first byte of a text of `num_tokens` bytes; one of order 0 takes no memory."""
    contexts, size = order + _OTHER_CONTEXTS if order else 0, num_slots(num_tokens)
    empty = np.uint64(1 << 31 | 1 << 40)
    knots = (1 / (1 + np.exp(-(np.arange(_KNOTS) - _KNOTS // 2) / 2))).astype(np.float32)
    return Ngram(
        history=np.full(num_tokens, UNKNOWN, dtype=np.uint16),
        slots=np.full((contexts, size), empty, dtype=np.uint64),
        probabilities=np.tile(knots, (contexts, 16, 1)),
        recents=np.full((contexts, 256), 0.5, dtype=np.float32),
        first=np.full(256, 0.5, dtype=np.float32),
        matches=np.full(1 << _MATCH_BITS if order else 0, -1, dtype=np.int64),
        match_probabilities=np.full(LONGEST_MATCH + 1, 0.75, dtype=np.float32),
        lane_hashes=np.zeros((lanes, contexts), dtype=np.uint64),
        lane_slots=np.zeros((lanes, contexts), dtype=np.int64),
        lane_words=np.zeros((lanes, 2), dtype=np.uint64),
        lane_matches=np.full((lanes, 2), -1, dtype=np.int64),
    )


@inlined
def stretch(p):
    """Compute ln(p / (1 - p))."""
    return np.float32(log(p / (np.float32(1) - p)))


@inlined
def _moved(probability, outcome, rate):
    """A probability a step nearer to an outcome; never so near to 0 or 1 that stretching it would overflow."""
    return min(max(probability + (outcome - probability) * rate, _NEAREST), np.float32(1) - _NEAREST)


@inlined
def _mixed(h, value):
    h = (h + np.uint64(value) + np.uint64(1)) * _SPREAD
    return h ^ (h >> np.uint64(29))


@inlined
def _is_letter(byte):
    lower = byte | 32
    return (97 <= lower <= 122) or byte >= 128


@compiled
def start_sequence(m, lane, at):
    """Begin a sequence at place `at` of the text; what comes before it is context as far as it is known."""
    start = at
    while start > 0 and at - start < _WORD_BYTES and m.history[start - 1] != UNKNOWN:
        start -= 1
    m.lane_words[lane] = 0
    for i in range(start, at):
        _read_word(m, lane, m.history[i])
    m.lane_matches[lane, 0] = -1
    _find_match(m, lane, at)


@compiled
def start_byte(m, lane, at):
    """Hash the contexts of the byte at place `at`, and look for a match."""
    h, known = np.uint64(0), True
    orders = m.lane_hashes.shape[1] - _OTHER_CONTEXTS
    for o in range(orders):
        known = known and at > o and m.history[at - 1 - o] != UNKNOWN
        if known:
            h = _mixed(h, m.history[at - 1 - o])
        m.lane_hashes[lane, o] = h
    last, second, third, fourth = _before(m, at, 1), _before(m, at, 2), _before(m, at, 3), _before(m, at, 4)
    word, word_before = m.lane_words[lane]
    m.lane_hashes[lane, orders] = _mixed(word, last)
    m.lane_hashes[lane, orders + 1] = _mixed(word, 0) + word_before * _SPREAD
    gap = _mixed(_mixed(np.uint64(1), second), third)
    m.lane_hashes[lane, orders + 2] = gap
    m.lane_hashes[lane, orders + 3] = _mixed(gap, fourth)
    for k in range(orders + _OTHER_CONTEXTS):
        m.lane_hashes[lane, k] += np.uint64(k) * _SPREAD_AGAIN


@inlined
def _before(m, at, distance):
    return m.history[at - distance] if at >= distance else np.uint16(UNKNOWN)


@inlined
def _read_word(m, lane, byte):
    if _is_letter(byte):
        m.lane_words[lane, 0] = _mixed(m.lane_words[lane, 0], byte | 32)
    elif m.lane_words[lane, 0] != 0:
        m.lane_words[lane, 1], m.lane_words[lane, 0] = m.lane_words[lane, 0], 0


@compiled
def find_slots(m, lane, node):
    """Find the slots of the bit after the bits in `node` (with a leading one); one of another context starts anew."""
    mask = np.uint64(m.slots.shape[1] - 1)
    for k in range(m.lane_hashes.shape[1]):
        h = (m.lane_hashes[lane, k] + np.uint64(node)) * _SPREAD_AGAIN
        h ^= h >> np.uint64(32)
        h *= _SPREAD
        j = np.int64((h >> np.uint64(20)) & mask)
        check = h >> np.uint64(48)
        if m.slots[k, j] >> np.uint64(48) != check:
            m.slots[k, j] = np.uint64(1 << 31 | 1 << 40) | check << np.uint64(48)
        m.lane_slots[lane, k] = j


@inlined
def _unpacked(slot):
    probability = np.float32((slot & np.uint64(0xFFFFFFFF)) + np.uint64(1 << 9)) * np.float32(1 / (2.0**32 + 2**10))
    return (
        probability,
        np.int64(slot >> np.uint64(32) & np.uint64(255)),
        np.int64(slot >> np.uint64(40) & np.uint64(255)),
    )


@inlined
def _knot(s):
    """Left knot of a stretched probability, and how far it is from it."""
    f = min(max(s * np.float32(2) + np.float32(16), np.float32(0)), np.float32(31.999))
    i = np.int64(f)
    return i, f - np.float32(i)


@compiled
def inputs(m, lane, node, depth, x):
    """Fill `x` with stretched probabilities of a 1; returns the number of orders whose context was seen, and the match.

    The match is 0 without one, else 1 to 3 by its length.
    """
    find_slots(m, lane, node)
    i, seen = 0, 0
    contexts = m.lane_hashes.shape[1]
    for k in range(contexts):
        probability, count, recent = _unpacked(m.slots[k, m.lane_slots[lane, k]])
        if count == 0:
            x[i], x[i + 1], x[i + 2] = 0, 0, 0
        else:
            s = stretch(probability)
            at, w = _knot(s)
            means = m.probabilities[k, min(count, 15)]
            x[i] = stretch(means[at] * (np.float32(1) - w) + means[at + 1] * w)
            x[i + 1] = stretch(m.recents[k, recent])
            x[i + 2] = (probability - np.float32(0.5)) * np.float32(2)
            seen += k < contexts - _OTHER_CONTEXTS
        i += 3
    x[i] = stretch(m.first[node & 255])
    x[i + 1], x[i + 2], x[i + 3] = 0, 0, np.float32(0.3)
    place, length = m.lane_matches[lane]
    matched = 0
    if place >= 0:
        expected = np.int64(m.history[place]) | 256
        if expected >> (8 - depth) == node:
            sign = np.float32(1) if expected >> (7 - depth) & 1 else np.float32(-1)
            x[i + 1] = sign * stretch(m.match_probabilities[length])
            x[i + 2] = sign * np.float32(length) * np.float32(1 / 16)
            matched = 1 if length < 12 else 2 if length < 24 else 3
    return seen, matched


@compiled
def learn_bit(m, lane, node, depth, bit):
    """Learn that the bit after `node` is `bit`; `inputs` was called before."""
    e = np.float32(bit)
    for k in range(m.lane_hashes.shape[1]):
        j = m.lane_slots[lane, k]
        probability, count, recent = _unpacked(m.slots[k, j])
        if count:
            at, w = _knot(stretch(probability))
            means = m.probabilities[k, min(count, 15)]
            means[at] = _moved(means[at], e, _PROBABILITY_RATE * (np.float32(1) - w))
            means[at + 1] = _moved(means[at + 1], e, _PROBABILITY_RATE * w)
            m.recents[k, recent] = _moved(m.recents[k, recent], e, _RECENT_RATE)
    m.first[node & 255] = _moved(m.first[node & 255], e, _FIRST_RATE)
    place, length = m.lane_matches[lane]
    if place >= 0:
        expected = np.int64(m.history[place]) | 256
        if expected >> (8 - depth) == node:
            hit = np.float32((expected >> (7 - depth) & 1) == bit)
            m.match_probabilities[length] = _moved(m.match_probabilities[length], hit, _MATCH_RATE)
    learn_slots(m, lane, bit)


@compiled
def learn_slots(m, lane, bit):
    """Move the slots of this bit towards it."""
    for k in range(m.lane_hashes.shape[1]):
        j = m.lane_slots[lane, k]
        slot = m.slots[k, j]
        count = np.int64(slot >> np.uint64(32) & np.uint64(255))
        recent = np.int64(slot >> np.uint64(40) & np.uint64(255))
        probability = np.int64(slot & np.uint64(0xFFFFFFFF))
        target = np.int64(0xFFFFFFFF) if bit else np.int64(0)
        # Steps of 1 / (count + 1.5) are the average of what was seen with half a bit of either kind.
        probability += (target - probability) * np.int64(2) // np.int64(2 * count + 3)
        recent = (recent << 1 | bit) if recent < 128 else ((recent << 1 | bit) & 127 | 128)
        slot = slot & np.uint64(0xFFFF << 48) | np.uint64(probability)
        m.slots[k, j] = slot | np.uint64(min(count + 1, _LIMIT)) << np.uint64(32) | np.uint64(recent) << np.uint64(40)


@compiled
def end_byte(m, lane, at, byte):
    """Learn that the byte at place `at` is `byte`."""
    m.history[at] = byte
    if m.lane_matches[lane, 0] >= 0:
        place = m.lane_matches[lane, 0]
        goes_on = m.history[place] == byte and place + 1 < len(m.history) and m.history[place + 1] != UNKNOWN
        if goes_on:
            m.lane_matches[lane, 0] = place + 1
            m.lane_matches[lane, 1] = min(m.lane_matches[lane, 1] + 1, LONGEST_MATCH)
        else:
            m.lane_matches[lane, 0] = -1
    _read_word(m, lane, byte)
    _find_match(m, lane, at + 1)


@compiled
def _find_match(m, lane, at):
    """Where the bytes before place `at` were followed last, unless a match is going on; remembers `at`."""
    h = np.uint64(0)
    for o in range(MATCH_BYTES):
        if at <= o or m.history[at - 1 - o] == UNKNOWN:
            return
        h = _mixed(h, m.history[at - 1 - o])
    j = np.int64(h >> np.uint64(64 - _MATCH_BITS))
    place = m.matches[j]
    if m.lane_matches[lane, 0] < 0 and 0 <= place < len(m.history) and m.history[place] != UNKNOWN:
        length = 0
        while (
            length < LONGEST_MATCH
            and place > length
            and m.history[place - 1 - length] != UNKNOWN
            and m.history[place - 1 - length] == m.history[at - 1 - length]
        ):
            length += 1
        if length >= MATCH_BYTES:
            m.lane_matches[lane, 0], m.lane_matches[lane, 1] = place, length
    m.matches[j] = at
