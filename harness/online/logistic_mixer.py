"""Gated logistic mixing of probabilities of a bit (Mattern 2013; Mahoney 2005, the PAQ family).

Several sets of weights, each chosen by a context, mix the stretched probabilities; a last set mixes their results, and
two tables correct what has been systematically wrong. Every weight follows the gradient of the code length of the bits.
"""

from math import exp
from typing import NamedTuple

import numpy as np

from harness.machine.jit import compiled, inlined

NUM_SETS = 4
_CHOICES = 1024
"""Weights a set chooses from."""
_RATE = np.float32(0.002)
_LAST_RATE = np.float32(0.002)
_CORRECTION_RATE = np.float32(0.02)
_KNOTS = 33
_LARGEST = np.float32(11.99)


class Network(NamedTuple):
    """Weights, and what they were given for the bit that is being coded, by lane."""

    weights: np.ndarray
    """float32 (sets, choices, inputs)."""
    last: np.ndarray
    """float32 (nodes, sets)."""
    corrections: np.ndarray
    """float32 (2, choices * 64, knots)."""
    lane_inputs: np.ndarray
    """float32 (lanes, inputs)."""
    lane_choices: np.ndarray
    """int64 (lanes, sets + 2)."""
    lane_outputs: np.ndarray
    """Stretched results of the sets and of the last one: float32 (lanes, sets + 1)."""


def network_bytes(num_inputs: int) -> int:
    """Compute the memory of a network, without what it keeps for each lane."""
    return 4 * (NUM_SETS * _CHOICES * (num_inputs + 1) + 2 * _CHOICES * 64 * _KNOTS) if num_inputs else 0


def new_network(num_inputs: int, lanes: int, first_weight: float) -> Network:
    """Make the network before the first bit; one without inputs is never asked and takes no memory."""
    choices = _CHOICES if num_inputs else 0
    knots = (1 / (1 + np.exp(-(np.arange(_KNOTS) - _KNOTS // 2) * 0.75))).astype(np.float32)
    return Network(
        weights=np.full((NUM_SETS, choices, num_inputs), first_weight, dtype=np.float32),
        last=np.full((choices, NUM_SETS), 1 / NUM_SETS, dtype=np.float32),
        corrections=np.tile(knots, (2, choices * 64, 1)),
        lane_inputs=np.zeros((lanes, num_inputs), dtype=np.float32),
        lane_choices=np.zeros((lanes, NUM_SETS + 2), dtype=np.int64),
        lane_outputs=np.zeros((lanes, NUM_SETS + 1), dtype=np.float32),
    )


@inlined
def squash(x):
    """Compute the logistic function 1 / (1 + exp(-x)), the inverse of `stretch`."""
    return np.float32(1 / (1 + exp(-min(max(x, np.float32(-30)), np.float32(30)))))


@inlined
def _knot(y):
    f = (y + np.float32(12)) * np.float32(4 / 3)
    i = np.int64(f)
    return i, f - np.float32(i)


@compiled
def probability(n, lane):
    """Compute the probability of a 1, given the lane's inputs and choices."""
    x, y = n.lane_inputs[lane], n.lane_outputs[lane]
    total = np.float32(0)
    node = n.lane_choices[lane, 1]
    for s in range(NUM_SETS):
        w = n.weights[s, n.lane_choices[lane, s]]
        dot = np.float32(0)
        for i in range(len(x)):
            dot += w[i] * x[i]
        y[s] = min(max(dot, -_LARGEST), _LARGEST)
        total += n.last[node, s] * y[s]
    y[NUM_SETS] = min(max(total, -_LARGEST), _LARGEST)
    at, fraction = _knot(y[NUM_SETS])
    mean = squash(y[NUM_SETS])
    for c in range(2):
        table = n.corrections[c, n.lane_choices[lane, NUM_SETS + c]]
        mean += table[at] * (np.float32(1) - fraction) + table[at + 1] * fraction
    return mean * np.float32(1 / 3)


@compiled
def learn(n, lane, bit):
    """Learn that the bit for which `probability` was asked is `bit`."""
    x, y, e = n.lane_inputs[lane], n.lane_outputs[lane], np.float32(bit)
    at, fraction = _knot(y[NUM_SETS])
    for c in range(2):
        table = n.corrections[c, n.lane_choices[lane, NUM_SETS + c]]
        table[at] += (e - table[at]) * _CORRECTION_RATE * (np.float32(1) - fraction)
        table[at + 1] += (e - table[at + 1]) * _CORRECTION_RATE * fraction
    step = (e - squash(y[NUM_SETS])) * _LAST_RATE
    node = n.lane_choices[lane, 1]
    for s in range(NUM_SETS):
        n.last[node, s] += step * y[s]
        w = n.weights[s, n.lane_choices[lane, s]]
        gain = (e - squash(y[s])) * _RATE
        for i in range(len(x)):
            w[i] += gain * x[i]
