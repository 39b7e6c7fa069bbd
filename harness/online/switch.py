"""The switch distribution over experts as a Bayesian mixture (van Erven, Gruenwald and de Rooij 2007, algorithm 1).

A strategy uses one expert after another. Its prior is pi_M(m) pi_K(k_1) prod pi_T(t_i | t_i > t_{i-1}) pi_K(k_i), with
pi_M(m) = 2^-m for m experts in turn, pi_K uniform and pi_T(n) = 1 / (n (n + 1)). The mixture over all strategies takes
O(n K) and is at most -log2 of its prior longer than any of them; one expert throughout costs 1 + log2 K bits.
"""

from typing import NamedTuple

import numpy as np

from harness.machine.jit import compiled

_GOES_ON = 0.5
"""Chance that a strategy switches once more: pi_M is geometric."""


class Switch(NamedTuple):
    """Posterior weights by lane; each lane is a sequence of its own."""

    open: np.ndarray
    """Of experts that will be switched away from: float64 (lanes, experts)."""
    final: np.ndarray
    """Of experts that stay: float64 (lanes, experts)."""
    times: np.ndarray
    """Symbols so far: int64 (lanes,)."""
    shares: np.ndarray
    """Joint weight of the experts, given the bits of the current symbol so far: float64 (lanes, experts)."""
    likelihoods: np.ndarray
    """What the experts gave to the bits of the current symbol so far: float64 (lanes, experts)."""


def new_switch(experts: int, lanes: int) -> Switch:
    """The prior."""
    return Switch(
        open=np.full((lanes, experts), _GOES_ON / experts),
        final=np.full((lanes, experts), (1 - _GOES_ON) / experts),
        times=np.zeros(lanes, dtype=np.int64),
        shares=np.zeros((lanes, experts)),
        likelihoods=np.ones((lanes, experts)),
    )


@compiled
def start_symbol(s, lane):
    """Begin a symbol."""
    for k in range(s.open.shape[1]):
        s.shares[lane, k] = s.open[lane, k] + s.final[lane, k]
        s.likelihoods[lane, k] = 1.0


@compiled
def mixed_chance(s, lane, chances):
    """Chance of a 1, given those of the experts."""
    one = total = 0.0
    for k in range(len(chances)):
        one += s.shares[lane, k] * chances[k]
        total += s.shares[lane, k]
    return one / total


@compiled
def learn_bit(s, lane, chances, bit):
    """The bit for which the experts gave `chances` is `bit`."""
    total = 0.0
    for k in range(len(chances)):
        chance = chances[k] if bit else 1.0 - chances[k]
        s.likelihoods[lane, k] *= chance
        s.shares[lane, k] *= chance
        total += s.shares[lane, k]
    for k in range(len(chances)):
        s.shares[lane, k] /= total


@compiled
def end_symbol(s, lane):
    """Weights after the symbol, and what switches at this time."""
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
