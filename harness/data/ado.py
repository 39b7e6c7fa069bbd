"""Adaptive data optimisation (Jiang et al. 2024): shares of parts from laws of their losses, fitted on the way.

A law c + s n^-b of each part forecasts how fast its loss falls with the tokens read; what falls faster, and was read
lately, is read more. All of it follows from the losses of what was coded before, which a receiver knows too.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from harness.data.batches import MicroBatch, StepBatch
from harness.data.mixture import Mixture
from harness.data.parts import Parts
from harness.data.schedule import TrainConfig
from harness.laws.power_law import Fit, fit_power_law
from harness.machine.ranks import Ranks

# Published, but for the smoothing (a running mean in place of Savitzky and Golay's filter) and the bounds of the law.
WINDOW_STEPS, STEPS_BETWEEN_POINTS = 21, 5
MEMORY, PREFERENCE_EXPONENT, SMALLEST_EXPONENT = 0.9, 0.5, 0.05
SMALLEST_SHARE, WEIGHT_OF_THE_MOMENT = 0.01, 0.1
_MOST_POINTS = 2000


class AdaptiveMixture(Mixture):
    """A mixture of parts in shares that are chosen anew for each step.

    All ranks call its methods together; the first one's choice counts.
    """

    def __init__(
        self, parts: Parts, config: TrainConfig, num_tokens: int, context: int, identity: str, seed: int, ranks: Ranks
    ):
        super().__init__(parts, config, num_tokens, context, identity, seed)
        self._parts, self._ranks = parts, ranks
        self._next_fit, self._steps_between_fits = config.ado_start, config.ado_every
        self.laws: list[Fit] = []
        """The law of each part, of the newest fit; none before the first."""
        self._history, self._mean, self._shares = (self.natural.copy() for _ in range(3))
        self._num_updates = 0
        self._losses: list[np.ndarray] = []
        """Nats per token of each part (parts,) at each step."""
        self._tokens: list[int] = []
        """Tokens read when each step is done."""

    def shares(self) -> np.ndarray:
        """Shares of the parts at the next position (parts,), whether they have ended or not."""
        return self._shares

    def observe(self, batch: StepBatch, losses: Sequence[tuple[np.ndarray, float]]) -> None:
        """Note the losses of a step's new tokens: for each micro-batch of this rank their nats (n, length) and sum."""
        sums = np.zeros((2, len(self.sizes)))
        for micro_batch, (nats, _) in zip(batch.micro_batches, losses, strict=True):
            sums += self._sums(micro_batch, nats)
        nats_sum, tokens = np.array(self._ranks.sum(*sums.ravel())).reshape(sums.shape)
        before = self._losses[-1] if self._losses else np.full(len(tokens), nats_sum.sum() / tokens.sum())
        self._losses.append(np.where(tokens > 0, nats_sum / np.maximum(tokens, 1), before))
        self._tokens.append(batch.num_tokens + (self._tokens[-1] if self._tokens else 0))

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        arrays = {"picks": self._picked(), "losses": np.array(self._losses), "tokens": np.array(self._tokens)}
        arrays |= {name: getattr(self, f"_{name}") for name in _KEPT}
        numbers = [(law.floor, law.scale, law.exponent, law.reference) for law in self.laws]
        counts = {
            "planned": self.planned,
            "next_fit": self._next_fit,
            "num_updates": self._num_updates,
            "laws": numbers,
        }
        return {name: torch.from_numpy(array.copy()) for name, array in arrays.items()} | counts

    def load(self, state: dict[str, Any]) -> None:
        """Go on from what `state` has returned."""
        arrays = {name: value.numpy() for name, value in state.items() if isinstance(value, torch.Tensor)}
        self._read[:], self.planned = 0, 0
        self._take(arrays["picks"])
        # Only the last position belongs to no part's turn.
        self.planned += int(len(arrays["picks"]) < state["planned"])
        self._losses, self._tokens = list(arrays["losses"]), arrays["tokens"].tolist()
        for name in _KEPT:
            setattr(self, f"_{name}", arrays[name].copy())
        self._next_fit, self._num_updates = state["next_fit"], state["num_updates"]
        self.laws = [Fit(*numbers) for numbers in state["laws"]]

    def _plan(self, count: int) -> None:
        if len(self._losses) >= self._next_fit:
            self.laws = fitted(np.array(self._tokens), np.array(self._losses))
            self._next_fit = len(self._losses) + self._steps_between_fits
        if self.laws:
            self._update(self._tokens[-1])
        super()._plan(count)

    def _picks(self, count: int, shares: np.ndarray) -> np.ndarray:
        # Processors of other ranks may round laws otherwise.
        picks = np.array(self._ranks.broadcast(super()._picks(count, shares).tolist()), dtype=np.int64)
        if count:
            counts = np.bincount(picks, minlength=len(self.sizes))
            self._history = MEMORY * self._history + (1 - MEMORY) * counts / count
        return picks

    def _update(self, num_tokens: int) -> None:
        """Choose the shares of a step after `num_tokens`."""
        slopes = np.array([learning_speed(law, num_tokens) for law in self.laws])
        preferred = preferred_shares(self.natural, self._history, slopes)
        self._num_updates += 1
        self._shares = WEIGHT_OF_THE_MOMENT * preferred + (1 - WEIGHT_OF_THE_MOMENT) * self._mean
        weight = 1 / (self._num_updates + 1)
        self._mean = weight * preferred + (1 - weight) * self._mean

    def _sums(self, micro_batch: MicroBatch, nats: np.ndarray) -> np.ndarray:
        """Nats and tokens of each part (2, parts) in a micro-batch."""
        part = self._parts.of_sequences(micro_batch.sequences, self._context)
        rows = np.where(micro_batch.mask, nats, 0.0).sum(axis=1, dtype=np.float64), micro_batch.mask.sum(axis=1)
        return np.stack([np.bincount(part, weights=values, minlength=len(self.sizes)) for values in rows])

    def _picked(self) -> np.ndarray:
        """The part of each position that is known (positions,), uint8, but for the last of all."""
        known = self._ids[: self.planned]
        parts = np.searchsorted(self._first, known[known < self._num_sequences - 1], side="right") - 1
        return parts.astype(np.uint8)


_KEPT = ("history", "mean", "shares", "behind")


def fitted(
    tokens: np.ndarray, losses: np.ndarray, window: int = WINDOW_STEPS, every: int = STEPS_BETWEEN_POINTS
) -> list[Fit]:
    """Fit a law to the means over `window` steps of each column of `losses` (steps, parts) over `tokens` (steps,)."""
    ends = np.arange(window - 1, len(tokens), every)
    ends = ends[:: -(-len(ends) // _MOST_POINTS)]
    sums = np.cumsum(np.vstack([np.zeros(losses.shape[1] + 1), np.column_stack([tokens, losses])]), axis=0)
    means = (sums[ends + 1] - sums[ends + 1 - window]) / window
    return [fit_power_law(means[:, 0], column) for column in means[:, 1:].T]


def learning_speed(law: Fit, tokens: float) -> float:
    """By how much the loss falls with a token more, in nats; laws that hardly fall count as if b were 0.05."""
    return max(law.exponent, SMALLEST_EXPONENT) * (float(law.at(tokens)) - law.floor) / tokens


def preferred_shares(natural: np.ndarray, history: np.ndarray, slopes: np.ndarray) -> np.ndarray:
    """Shares (parts,) in proportion to natural ones, slopes and the root of how much was read lately; least 0.01."""
    wanted = natural * history**PREFERENCE_EXPONENT * slopes
    shares = wanted / wanted.sum() if wanted.sum() > 0 else natural
    deficit = max(SMALLEST_SHARE * len(shares) - 1, 0.0)
    floored = np.maximum(shares * (1 - deficit), SMALLEST_SHARE)
    return floored / floored.sum()
