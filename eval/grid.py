"""The grid of each tensor: the step size at which model bytes plus data bytes of the coded text are smallest."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from eval.archive import QuantisedModel
from eval.weights import encode_weights, quantise
from harness.model import ModelConfig
from harness.tokenizer import ByteTokenizer, SentencePieceTokenizer
from harness.train import token_nats
from harness.units import bits_from_nats, bytes_from_bits

SAMPLE_CHUNKS = 128
# Steps tried, relative to the root mean square of a tensor's non-zero weights, as powers of two.
COARSEST, FINEST = 1.0, -6.0


@dataclass(frozen=True, slots=True)
class GridPoint:
    """One step size and what it costs."""

    relative_step: float
    model_bytes: int
    data_bytes: float
    """Ideal length of the text, projected from a sample of its chunks."""

    @property
    def total_bytes(self) -> float:
        """Model and data together."""
        return self.model_bytes + self.data_bytes


def choose_grid(
    weights: dict[str, np.ndarray],
    model: ModelConfig,
    tokenizer: ByteTokenizer | SentencePieceTokenizer,
    text: bytes,
    chunk_bytes: int,
    dtype: torch.dtype,
) -> tuple[QuantisedModel, list[GridPoint]]:
    """The quantised model with the smallest total, and all points tried, finest last.

    The total is unimodal in the step: octaves are walked from fine to coarse until it rises, then halved twice.
    """
    sample = _sample_chunks(text, chunk_bytes, tokenizer)
    points: dict[float, GridPoint] = {}
    models: dict[float, QuantisedModel] = {}

    def total_at(log2_step: float) -> float:
        if log2_step not in points:
            models[log2_step] = quantised_model(weights, model, tokenizer, 2.0**log2_step)
            points[log2_step] = _measure(models[log2_step], 2.0**log2_step, sample, len(text), dtype)
        return points[log2_step].total_bytes

    best = _walk(total_at)
    for width in (0.5, 0.25):
        best = min((best - width, best, best + width), key=total_at)
    return models[best], [points[key] for key in sorted(points, reverse=True)]


def quantised_model(
    weights: dict[str, np.ndarray],
    model: ModelConfig,
    tokenizer: ByteTokenizer | SentencePieceTokenizer,
    relative_step: float,
) -> QuantisedModel:
    """Weights on grids whose step is `relative_step` times the root mean square of each tensor's non-zeros."""
    steps = {name: np.float32(relative_step * _scale(tensor)) for name, tensor in weights.items()}
    return QuantisedModel(model, tokenizer, quantise(weights, steps), steps)


def _walk(total_at: Callable[[float], float]) -> float:
    """Octave with the smallest total between FINEST and COARSEST, from a start in the usual range."""
    best = -2.0
    for direction in (-1.0, 1.0):
        while FINEST <= best + direction <= COARSEST and total_at(best + direction) < total_at(best):
            best += direction
    return best


def _measure(
    quantised: QuantisedModel, relative_step: float, sample: tuple[np.ndarray, np.ndarray, int], raw_bytes: int, dtype
) -> GridPoint:
    tokens, mask, sample_bytes = sample
    transformer = quantised.transformer().eval()
    nats_sum = 0.0
    with torch.inference_mode():
        for start in range(0, len(tokens), 16):
            nats = token_nats(transformer, torch.from_numpy(tokens[start : start + 16]), dtype).double().numpy()
            nats_sum += float((nats * mask[start : start + 16]).sum())
    data_bytes = bytes_from_bits(bits_from_nats(nats_sum)) * (raw_bytes / sample_bytes if sample_bytes else 0.0)
    return GridPoint(relative_step, len(encode_weights(quantised.integers, quantised.steps)), data_bytes)


def _sample_chunks(
    text: bytes, chunk_bytes: int, tokenizer: ByteTokenizer | SentencePieceTokenizer
) -> tuple[np.ndarray, np.ndarray, int]:
    """Tokens (n, longest), mask and number of bytes of chunks spread evenly over the text."""
    starts = range(0, len(text), chunk_bytes)
    chosen = np.unique(np.linspace(0, max(len(starts) - 1, 0), min(SAMPLE_CHUNKS, len(starts))).astype(int))
    chunks = [text[starts[i] : starts[i] + chunk_bytes] for i in chosen]
    coded = [tokenizer.encode(chunk) for chunk in chunks]
    longest = max((len(row) for row in coded), default=0)
    tokens = np.zeros((len(coded), longest), dtype=np.int64)
    mask = np.zeros((len(coded), longest), dtype=bool)
    for row, values in enumerate(coded):
        tokens[row, : len(values)], mask[row, : len(values)] = values, True
    return tokens, mask, sum(map(len, chunks))


def _scale(tensor: np.ndarray) -> float:
    nonzeros = tensor[tensor != 0]
    return float(np.sqrt(np.mean(np.square(nonzeros, dtype=np.float64)))) if len(nonzeros) else 1.0
