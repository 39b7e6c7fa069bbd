"""The grid of each tensor: steps at which model bytes plus data bytes of the coded text are smallest.

From steps that balance weights against text in theory (`harness.pruning.step_sizes`), a common factor is searched by
really coding the weights, and after it each step is moved by half octaves as long as that makes the total smaller.
With error feedback a dead zone around zero is searched too, which makes zeros of small weights.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from eval.offline.archive import QuantisedModel
from eval.offline.ideal import ideal_bits, split
from eval.weights.codec import LARGEST_MAGNITUDE, encode_weights, quantise
from harness.data.tokenizer import Tokenizer
from harness.model.transformer import ModelConfig
from harness.pruning.feedback import Feedback
from harness.pruning.step_sizes import COARSEST_STEP, FINE_STEP, PROBE_STEP, Scale, balanced_steps
from harness.pruning.structure import find_dead
from harness.units import bits_from_bytes, bytes_from_bits, nats_from_bits

SAMPLE_CHUNKS = 64
SMALLEST_RMS = 1e-30
# The factor is searched between these powers of two.
SMALLEST_LOG2, LARGEST_LOG2 = -6.0, 3.0
# Of weights on a grid a half of their steps costs as much as the whole ones: a walk from there alone would get stuck.
USUAL_LOG2 = (-2.0, -1.0, 0.0, 1.0)
# Steps by which the dead zone is widened as long as the total shrinks, in steps of the grid.
DEAD_ZONE_STEP = 0.1
LARGEST_DEAD_ZONE = 0.5
# Others make up for what coarse steps lose.
COARSEST_WITH_FEEDBACK = 4.0
Weights = dict[str, np.ndarray]
Steps = dict[str, np.float32]


@dataclass(frozen=True, slots=True)
class GridPoint:
    """One factor on all steps, with a dead zone, and what they cost."""

    factor: float
    model_bytes: int
    data_bytes: float
    """Ideal length of the text, projected from a sample of its chunks."""
    dead_zone: float = 0.0
    """Fraction of a step by which more than the nearest half of it becomes 0."""

    @property
    def total_bytes(self) -> float:
        """Model and data together."""
        return self.model_bytes + self.data_bytes


class Search:
    """What factors on all steps cost, each worked out once."""

    def __init__(
        self,
        weights: Weights,
        trained_steps: Steps,
        model: ModelConfig,
        tokenizer: Tokenizer,
        text: bytes,
        chunk_bytes: int,
        dtype: torch.dtype,
        feedback: Feedback | None = None,
    ):
        """`text` is what the model is to code, in chunks of `chunk_bytes`.

        Tensors that fine-tuning put on a grid start from `trained_steps`, the others from balancing steps. Without
        `feedback` each weight goes to the nearest step.
        """
        self.feedback = feedback
        self._rounded: dict[str, tuple[tuple[float, float], np.ndarray]] = {}
        self.weights, self._model, self._tokenizer, self._dtype = weights, model, tokenizer, dtype
        self._sample = take_sample(text, chunk_bytes)
        self._scale = len(text) / max(1, sum(map(len, self._sample)))
        self._free = [name for name in weights if name not in trained_steps] if text else []
        self._scales = {name: _scale(tensor) for name, tensor in weights.items()}
        self._base = (self._balanced() if text else uniform_steps(weights, PROBE_STEP)) | trained_steps
        self._points: dict[tuple[float, float], GridPoint] = {}

    def point(self, log2_factor: float, dead_zone: float = 0.0) -> GridPoint:
        """The cost of a power of two on all steps, with a dead zone in these steps."""
        key = log2_factor, dead_zone
        if key not in self._points:
            self._points[key] = self._cost(2.0**log2_factor, self._steps(log2_factor), dead_zone)
        return self._points[key]

    def refined(self, log2_factor: float, dead_zone: float = 0.0) -> tuple[Steps, GridPoint]:
        """Steps near those of a power of two, each moved by half octaves while model and text together shrink.

        Steps that fine-tuning has seen stay: the weights lie on them.
        """
        steps, least = self._steps(log2_factor), self.point(log2_factor, dead_zone)
        for name in self._free:
            for ratio in (np.sqrt(2.0), np.sqrt(0.5)):
                while (step := self._limited(name, ratio * steps[name])) != steps[name]:
                    cost = self._cost(least.factor, steps | {name: step}, dead_zone)
                    if cost.total_bytes >= least.total_bytes:
                        break
                    steps, least = steps | {name: step}, cost
        return steps, least

    def quantised(self, steps: Steps, dead_zone: float = 0.0) -> QuantisedModel:
        """The model on a grid, without the weights that its zeros keep from the output: they would only cost bits."""
        if self.feedback:
            integers = {name: self._with_feedback(name, steps[name], dead_zone) for name in self.weights}
        else:
            integers = quantise(self.weights, steps)
        live, _ = find_dead({name: torch.from_numpy(q != 0) for name, q in integers.items()}, self._model.heads)
        kept = {name: np.where(live[name].numpy(), q, 0).astype(q.dtype) for name, q in integers.items()}
        return QuantisedModel(self._model, self._tokenizer, kept, steps)

    def _balanced(self) -> Steps:
        fine = uniform_steps(self.weights, FINE_STEP)
        scales = {name: self._scales[name] for name in self._free}

        def text_nats(steps: Mapping[str, float]) -> float:
            chosen = fine | {name: np.float32(step) for name, step in steps.items()}
            return nats_from_bits(bits_from_bytes(self._data_bytes(self.quantised(chosen))))

        return {name: np.float32(step) for name, step in balanced_steps(scales, text_nats).items()}

    def _steps(self, log2_factor: float) -> Steps:
        return {name: self._limited(name, 2.0**log2_factor * step) for name, step in self._base.items()}

    def _limited(self, name: str, step: float) -> np.float32:
        return np.float32(self._scales[name].limited(step, COARSEST_WITH_FEEDBACK if self.feedback else COARSEST_STEP))

    def _with_feedback(self, name: str, step: np.float32, dead_zone: float) -> np.ndarray:
        """Integers of a tensor, kept since a search moves one tensor at a time."""
        assert self.feedback
        key = float(step), dead_zone
        if name not in self._rounded or self._rounded[name][0] != key:
            integers = self.feedback.rounded(name, self.weights[name], step, dead_zone)
            self._rounded[name] = key, integers.clip(-LARGEST_MAGNITUDE, LARGEST_MAGNITUDE)
        return self._rounded[name][1]

    def _cost(self, factor: float, steps: Steps, dead_zone: float) -> GridPoint:
        on_grid = self.quantised(steps, dead_zone)
        return GridPoint(factor, len(encode_weights(on_grid.integers, steps)), self._data_bytes(on_grid), dead_zone)

    def _data_bytes(self, on_grid: QuantisedModel) -> float:
        return bytes_from_bits(ideal_bits(on_grid, self._sample, self._dtype)) * self._scale


def choose_grid(search: Search) -> tuple[QuantisedModel, GridPoint]:
    """The quantised model with the smallest total, and what it costs."""
    best, dead_zone = _walk(search), 0.0
    while search.feedback and dead_zone < LARGEST_DEAD_ZONE:
        wider = dead_zone + DEAD_ZONE_STEP
        nearby = min((best - 0.5, best, best + 0.5), key=lambda power: search.point(power, wider).total_bytes)
        if search.point(nearby, wider).total_bytes >= search.point(best, dead_zone).total_bytes:
            break
        best, dead_zone = nearby, wider
    for width in (0.5, 0.25):
        best = min((best - width, best, best + width), key=lambda power: search.point(power, dead_zone).total_bytes)
    steps, cost = search.refined(best, dead_zone)
    return search.quantised(steps, dead_zone), cost


def take_sample(text: bytes, chunk_bytes: int) -> list[bytes]:
    """At most SAMPLE_CHUNKS chunks, spread evenly over `text`."""
    chunks = split(text, chunk_bytes)
    chosen = np.unique(np.linspace(0, max(len(chunks) - 1, 0), min(SAMPLE_CHUNKS, len(chunks))).astype(int))
    return [chunks[i] for i in chosen]


def uniform_steps(weights: Weights, relative_step: float) -> Steps:
    """Steps of the same share of the root mean square of each tensor's non-zero weights."""
    return {name: np.float32(relative_step * _scale(tensor).rms) for name, tensor in weights.items()}


def _walk(search: Search) -> float:
    """Power of two with the smallest total, walking downhill from the best of the usual ones."""
    best = min(USUAL_LOG2, key=lambda power: search.point(power).total_bytes)
    for direction in (-1.0, 1.0):
        while (
            SMALLEST_LOG2 <= best + direction <= LARGEST_LOG2
            and search.point(best + direction).total_bytes < search.point(best).total_bytes
        ):
            best += direction
    return best


def _scale(tensor: np.ndarray) -> Scale:
    """Of a tensor; its root mean square is 1 where there is no non-zero weight, or where a step would underflow."""
    nonzeros = tensor[tensor != 0]
    rms = float(np.sqrt(np.mean(np.square(nonzeros, dtype=np.float64)))) if len(nonzeros) else 1.0
    return Scale(rms if rms > SMALLEST_RMS else 1.0, len(nonzeros))
