"""The switch distribution over experts as a Bayesian mixture (van Erven, Gruenwald and de Rooij 2007, algorithm 1).

A strategy uses one expert after another. Its prior is pi_M(m) pi_K(k_1) prod pi_T(t_i | t_i > t_{i-1}) pi_K(k_i), with
pi_M(m) = 2^-m for m experts in turn, pi_K uniform and pi_T(n) = 1 / (n (n + 1)). The mixture over all strategies takes
O(n K) and is at most -log2 of its prior longer than any of them; one expert throughout costs 1 + log2 K bits.
"""

from typing import NamedTuple

import numpy as np

from harness.machine.jit import compiled

_GOES_ON = 0.5
"""Probability that a strategy switches once more: pi_M is geometric."""


class Switch(NamedTuple):
    """Posterior weights by lane; each lane is a sequence of its own."""

    open: np.ndarray
    """Of experts that will be switched away from: float64 (lanes, experts)."""
    final: np.ndarray
    """Of experts that stay: float64 (lanes, experts)."""
    times: np.ndarray
    """Symbols so far: int64 (lanes,)."""
    posteriors: np.ndarray
    """Joint weight of the experts, given the bits of the current symbol so far: float64 (lanes, experts)."""
    likelihoods: np.ndarray
    """What the experts gave to the bits of the current symbol so far: float64 (lanes, experts)."""


def new_switch(experts: int, lanes: int) -> Switch:
    """Make the switch with the weights of the prior."""
    return Switch(
        open=np.full((lanes, experts), _GOES_ON / experts),
        final=np.full((lanes, experts), (1 - _GOES_ON) / experts),
        times=np.zeros(lanes, dtype=np.int64),
        posteriors=np.zeros((lanes, experts)),
        likelihoods=np.ones((lanes, experts)),
    )


@compiled
def start_symbol(s, lane):
    """Begin a symbol on a lane."""
    for k in range(s.open.shape[1]):
        s.posteriors[lane, k] = s.open[lane, k] + s.final[lane, k]
        s.likelihoods[lane, k] = 1.0


@compiled
def mixed_probability(s, lane, probabilities):
    """Mix the experts' probabilities of a 1."""
    one = total = 0.0
    for k in range(len(probabilities)):
        one += s.posteriors[lane, k] * probabilities[k]
        total += s.posteriors[lane, k]
    return one / total


@compiled
def learn_bit(s, lane, probabilities, bit):
    """Learn that the bit for which the experts gave `probabilities` is `bit`."""
    total = 0.0
    for k in range(len(probabilities)):
        probability = probabilities[k] if bit else 1.0 - probabilities[k]
        s.likelihoods[lane, k] *= probability
        s.posteriors[lane, k] *= probability
        total += s.posteriors[lane, k]
    for k in range(len(probabilities)):
        s.posteriors[lane, k] /= total


@compiled
def end_symbol(s, lane):
    """Update the weights after a symbol, and let some of the weight switch."""
    experts = s.open.shape[1]
    total = pool = 0.0
    for k in range(experts):
        s.open[lane, k] *= s.likelihoods[lane, k]
        s.final[lane, k] *= s.likelihoods[lane, k]
        total += s.open[lane, k] + s.final[lane, k]
    s.times[lane] += 1
    # pi_T(Z = n | Z >= n) for pi_T(n) = 1 / (n (n + 1)).
    hazard = 1.0 / (s.times[lane] + 1.0)
    for k in range(experts):
        s.open[lane, k] /= total
        s.final[lane, k] /= total
        pool += s.open[lane, k] * hazard
    for k in range(experts):
        s.open[lane, k] = s.open[lane, k] * (1.0 - hazard) + pool / experts * _GOES_ON
        s.final[lane, k] += pool / experts * (1.0 - _GOES_ON)
