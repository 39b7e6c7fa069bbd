"""Many experts as one: the probability of each bit of a symbol, from tables of transformers and from adaptive models.

A symbol is coded as the bits of its number, the highest first; the experts' probabilities of them multiply to those of
the symbol, so that mixing bit by bit is mixing the symbols' distributions. All probabilities at a position are computed
before any lane learns from it, since a receiver decodes the lanes side by side; the lanes then learn in their order.
"""

import numpy as np

from harness.machine.jit import compiled, inlined
from harness.online import logistic_mixer as network
from harness.online import ngram
from harness.online import switch as switching
from harness.online.logistic_mixer import new_network
from harness.online.mixture_state import State, leaves
from harness.online.ngram import new_ngram, num_inputs
from harness.online.switch import new_switch

_SMALLEST = 1e-12
_POSITION_CLASSES = 17
_TABLE_WEIGHT, _CONTEXT_WEIGHT = 0.3, 0.1


class Mixture:
    """A Bayesian switch over tables and adaptive experts, for the sequences of one rank."""

    def __init__(self, tables: int, experts: list[str], order: int, vocab_size: int, num_tokens: int, lanes: int):
        """`tables` distributions are given for each symbol; `experts` are names of others that are to take part.

        `order` is the longest context of the n-gram model.
        """
        has_ngram, has_network, has_counts = (name in experts for name in ("ngram", "network", "frequencies"))
        self.vocab_size = vocab_size
        self.uniform = "uniform" in experts
        self.bits = max(1, (vocab_size - 1).bit_length())
        total = tables + self.uniform + has_counts
        contexts = num_inputs(order) if has_ngram else 0
        members = total + has_ngram + has_network
        self.state = State(
            switch=new_switch(members, lanes),
            ngram=new_ngram(order if has_ngram else 0, num_tokens if has_ngram else 1, lanes),
            alone=new_network(contexts, lanes if has_ngram else 1, _CONTEXT_WEIGHT),
            joint=new_network(contexts + tables + 1 if has_network else 0, lanes, _CONTEXT_WEIGHT),
            has_ngram=np.array([has_ngram]),
            has_network=np.array([has_network]),
            counts=np.full(vocab_size if has_counts else 0, 0.5),
            cumulative=np.zeros((total, lanes, (1 << self.bits) + 1)),
            probabilities=np.zeros((lanes, members)),
            places=np.zeros((lanes, 3), dtype=np.int64),
            nodes=np.ones(lanes, dtype=np.int64),
            nats=np.zeros(members),
        )
        self.state.joint.weights[:, :, contexts : contexts + tables] = _TABLE_WEIGHT

    def start(self, starts: np.ndarray, first: int, before: np.ndarray) -> None:
        """Begin at the places `starts` (n,) of the text, lane by lane.

        They are after `first` symbols of their sequences, the last of which are `before` (n,).
        """
        _start(self.state, starts, first, before)

    def bit_probabilities(self, tables: np.ndarray, tokens: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Compute the probability of a 1, float64 (n, length, bits), for every bit of `tokens` (n, length).

        `tables` are float32 (tables, n, length, vocabulary).
        """
        probabilities = np.full((*tokens.shape, self.bits), 0.5)
        _bit_probabilities(self.state, tables, tokens, mask, self.uniform, probabilities)
        return probabilities

    def start_symbols(self, tables: np.ndarray, active: np.ndarray) -> np.ndarray:
        """Begin a symbol on each lane that is `active` (n,); `tables` are float32 (tables, n, vocabulary).

        Returns probabilities of a 0 and a 1, float64 (active lanes, 2), of its first bit.
        """
        self._active, self._num_active = active, int(active.sum())
        probabilities = np.empty((self._num_active, 2))
        _start_symbols(self.state, tables, active, self.uniform)
        _next_bits(self.state, active, self.bits, probabilities)
        return probabilities

    def next_bits(self, bits: np.ndarray) -> np.ndarray:
        """Learn the bits, int64 (active lanes,), for which probabilities were given; returns those of the next ones."""
        probabilities = np.empty((self._num_active, 2))
        _learn_and_next(self.state, bits, self._active, self.bits, probabilities)
        return probabilities

    def end_symbols(self, bits: np.ndarray) -> np.ndarray:
        """Learn the last bits; returns the symbols (active lanes,) that all bits have made."""
        symbols = np.empty(self._num_active, dtype=np.int64)
        _learn_and_end(self.state, bits, self._active, self.bits, self.vocab_size, symbols)
        return symbols

    def learn_sequences(
        self,
        starts: np.ndarray,
        first: int,
        before: np.ndarray,
        tables: np.ndarray,
        tokens: np.ndarray,
        mask: np.ndarray,
    ) -> None:
        """Learn what another rank has coded from `start` on, as if this one had; its own switch and sums stay."""
        kept = [array.copy() for array in (*self.state.switch, self.state.nats)]
        self.start(starts, first, before)
        self.bit_probabilities(tables, tokens, mask)
        for array, before in zip((*self.state.switch, self.state.nats), kept, strict=True):
            array[...] = before

    def bits_of(self, tokens: np.ndarray) -> np.ndarray:
        """Split `tokens` (...) into bits, the highest first: int64 (..., bits)."""
        return tokens[..., None] >> np.arange(self.bits - 1, -1, -1) & 1

    def nats_of(self, probabilities: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """Sum the nats of `tokens` (...), given probabilities of a 1 (..., bits) for their bits."""
        return -np.log(np.where(self.bits_of(tokens), probabilities, 1 - probabilities)).sum(axis=-1)

    def arrays(self) -> dict[str, np.ndarray]:
        """Collect all arrays of the state, for a checkpoint."""
        return dict(leaves(self.state))

    def load(self, arrays: dict[str, np.ndarray]) -> None:
        """Load what `arrays` has collected; raises KeyError or ValueError for those of another mixture."""
        for name, array in leaves(self.state):
            array[...] = arrays[name]


@compiled
def _start(m, starts, first, before):
    for lane in range(len(starts)):
        m.places[lane, 0], m.places[lane, 1], m.places[lane, 2] = starts[lane], first, before[lane]
        if m.has_ngram[0]:
            ngram.start_sequence(m.ngram, lane, starts[lane])


@compiled
def _bit_probabilities(m, tables, tokens, mask, uniform, probabilities):
    lanes, length, bits = probabilities.shape
    known, symbols = np.zeros(lanes, dtype=np.int64), np.zeros(lanes, dtype=np.int64)
    pairs = np.zeros((lanes, 2))
    for i in range(length):
        active = mask[:, i]
        if not active.any():
            break
        _start_symbols(m, tables[:, :, i], active, uniform)
        for depth in range(bits):
            _next_bits(m, active, bits, pairs)
            place = 0
            for lane in range(lanes):
                if active[lane]:
                    probabilities[lane, i, depth] = pairs[place, 1]
                    known[place] = tokens[lane, i] >> (bits - 1 - depth) & 1
                    place += 1
            _learn_bits(m, known, active)
        _end_symbols(m, active, bits, tables.shape[3], symbols)


@compiled
def _start_symbols(m, tables, active, uniform):
    given, lanes, vocab_size = tables.shape
    for lane in range(lanes):
        if not active[lane]:
            continue
        m.nodes[lane] = 1
        for k in range(m.cumulative.shape[0]):
            total, sums = 0.0, m.cumulative[k, lane]
            for v in range(vocab_size):
                if k < given:
                    # No probability is 0, whatever a table says; nor can one that is no number lead an index astray.
                    probability = tables[k, lane, v]
                    total += (probability if 0.0 < probability <= 2.0 else 0.0) + 1e-9
                else:
                    total += 1.0 if uniform and k == given else m.counts[v]
                sums[v + 1] = total
            for v in range(vocab_size, len(sums) - 1):
                sums[v + 1] = total
        switching.start_symbol(m.switch, lane)
        if m.has_ngram[0]:
            ngram.start_byte(m.ngram, lane, m.places[lane, 0])


@compiled
def _next_bits(m, active, bits, pairs):
    place = 0
    for lane in range(len(active)):
        if active[lane]:
            _fill_probabilities(m, lane, bits)
            probability = switching.mixed_probability(m.switch, lane, m.probabilities[lane])
            probability = min(max(probability, _SMALLEST), 1.0 - _SMALLEST)
            pairs[place, 0], pairs[place, 1] = 1.0 - probability, probability
            place += 1


@compiled
def _learn_and_next(m, known, active, bits, pairs):
    _learn_bits(m, known, active)
    _next_bits(m, active, bits, pairs)


@compiled
def _learn_and_end(m, known, active, bits, vocab_size, symbols):
    _learn_bits(m, known, active)
    _end_symbols(m, active, bits, vocab_size, symbols)


@inlined
def _depth(node):
    """Number of bits after the leading one."""
    depth = 0
    while node >> (depth + 1):
        depth += 1
    return depth


@compiled
def _fill_probabilities(m, lane, bits):
    """What every expert says of the lane's next bit."""
    node, probabilities = m.nodes[lane], m.probabilities[lane]
    depth = _depth(node)
    span = 1 << (bits - depth)
    left = node * span - (1 << bits)
    tables = m.cumulative.shape[0]
    for k in range(tables):
        sums = m.cumulative[k, lane]
        whole = sums[left + span] - sums[left]
        probability = (sums[left + span] - sums[left + span // 2]) / whole if whole > 0 else 0.5
        probabilities[k] = min(max(probability, _SMALLEST), 1.0 - _SMALLEST)
    seen = matched = 0
    contexts = 0
    if m.has_ngram[0]:
        x = m.alone.lane_inputs[lane]
        contexts = len(x)
        seen, matched = ngram.inputs(m.ngram, lane, node, depth, x)
        _choose(m, m.alone.lane_choices[lane], lane, node, depth, seen, matched)
        probabilities[tables] = network.probability(m.alone, lane)
    if m.has_network[0]:
        x = m.joint.lane_inputs[lane]
        x[:contexts] = m.alone.lane_inputs[lane, :contexts]
        given = len(x) - 1 - contexts
        for k in range(given):
            x[contexts + k] = ngram.stretch(np.float32(min(max(probabilities[k], 1e-6), 1 - 1e-6)))
        x[contexts + given] = 0.3
        choices = m.joint.lane_choices[lane]
        _choose(m, choices, lane, node, depth, seen, matched)
        choices[3] = min(_depth(m.places[lane, 1] + 1), _POSITION_CLASSES - 1) * 4 + matched
        probabilities[len(probabilities) - 1] = network.probability(m.joint, lane)


@compiled
def _choose(m, choices, lane, node, depth, seen, matched):
    """Which weights of a network the bit takes."""
    last, before = m.places[lane, 2], 0
    if m.has_ngram[0]:
        at = m.places[lane, 0]
        last = m.ngram.history[at - 1] & 255 if at > 0 else 0
        before = m.ngram.history[at - 2] & 255 if at > 1 else 0
    choices[0] = (seen * 16 + depth) * 4 + matched
    choices[1] = node & 1023
    choices[2] = last & 1023
    choices[3] = before
    choices[4] = (last * 256 + node) & 0xFFFF
    h = np.uint64(last * 256 + before) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(node) * np.uint64(0xD1342543DE82EF95)
    choices[5] = np.int64(h >> np.uint64(48))


@compiled
def _learn_bits(m, known, active):
    place = 0
    for lane in range(len(active)):
        if not active[lane]:
            continue
        bit, node = known[place], m.nodes[lane]
        place += 1
        switching.learn_bit(m.switch, lane, m.probabilities[lane], bit)
        if m.has_network[0]:
            network.learn(m.joint, lane, bit)
        if m.has_ngram[0]:
            network.learn(m.alone, lane, bit)
            ngram.learn_bit(m.ngram, lane, node, _depth(node), bit)
        m.nodes[lane] = node << 1 | bit


@compiled
def _end_symbols(m, active, bits, vocab_size, symbols):
    place = 0
    for lane in range(len(active)):
        if not active[lane]:
            continue
        symbol = m.nodes[lane] - (1 << bits)
        if symbol >= vocab_size:
            # No sender has coded this; the checksum of the segment will tell.
            symbol = 0
        symbols[place] = symbol
        place += 1
        for k in range(len(m.nats)):
            m.nats[k] -= np.log(m.switch.likelihoods[lane, k])
        switching.end_symbol(m.switch, lane)
        if len(m.counts):
            m.counts[symbol] += 1.0
        if m.has_ngram[0]:
            ngram.end_byte(m.ngram, lane, m.places[lane, 0], symbol)
        m.places[lane, 0] += 1
        m.places[lane, 1] += 1
        m.places[lane, 2] = symbol
