"""The grid of a classifier's weights: the common factor on its steps with which weights and labels are shortest."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from eval.labels.archive import QuantisedClassifier, tables
from eval.weights.codec import quantise
from harness.labels.tokenizer import LabelTokenizer
from harness.model.transformer import ModelConfig
from harness.pruning.structure import find_dead
from harness.units import bits_from_bytes, bits_from_nats

SAMPLE_ROWS = 4096
"""Labels by which steps are compared; their bits are scaled to all of them."""
# The factor is searched from here, in powers of two of a tensor's root mean square, by halves in the end.
_FIRST_LOG2, _LAST_LOG2, _WIDTHS = -4.0, 3.0, (1.0, 0.5, 0.25)
_SMALLEST = np.float32(1e-30)


@dataclass
class LabelSearch:
    """What powers of two on all steps cost, each worked out once."""

    config: ModelConfig
    seed: int
    tokenizer: LabelTokenizer
    weights: Mapping[str, np.ndarray]
    inputs: np.ndarray
    labels: np.ndarray
    fixed_steps: Mapping[str, np.float32] = field(default_factory=dict)
    """Of tensors that fine-tuning put on a grid."""
    bits: dict[float, float] = field(default_factory=dict)
    """Total bits, weights coded and labels projected from a sample, by power of two."""

    def quantised(self, log2: float) -> QuantisedClassifier:
        """The model on the grid of a power of two, without weights that its zeros keep from the output."""
        steps = {name: np.float32(max(_SMALLEST, _rms(w) * 2.0**log2)) for name, w in self.weights.items()}
        steps |= self.fixed_steps
        integers = quantise(self.weights, steps)
        if not self.config.subspace:
            live, _ = find_dead({name: torch.from_numpy(q != 0) for name, q in integers.items()}, 1)
            integers = {name: np.where(live[name].numpy(), q, 0) for name, q in integers.items()}
        return QuantisedClassifier(self.config, self.seed, self.tokenizer, integers, steps)

    def cost(self, log2: float) -> float:
        """Total bits at a power of two."""
        if log2 not in self.bits:
            model = self.quantised(log2)
            rows = np.unique(np.linspace(0, len(self.labels) - 1, min(SAMPLE_ROWS, len(self.labels))).astype(int))
            nats = label_nats(model, self.inputs[rows], self.labels[rows]).sum()
            data_bits = bits_from_nats(float(nats)) * len(self.labels) / len(rows)
            self.bits[log2] = bits_from_bytes(len(model.coded_weights())) + data_bits
        return self.bits[log2]

    def best(self) -> float:
        """The power of two with the fewest bits, walking downhill from all whole ones."""
        best = min(np.arange(_FIRST_LOG2, _LAST_LOG2 + 1), key=lambda log2: self.cost(float(log2)))
        for width in _WIDTHS[1:]:
            best = min((best - width, best, best + width), key=lambda log2: self.cost(float(log2)))
        return float(best)


def label_nats(model: QuantisedClassifier, inputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Code length in nats (n,), float64, of each label by the predictor's probabilities."""
    parts = [
        -np.log(
            np.maximum(table[np.arange(len(table)), labels[start : start + len(table)]], _SMALLEST), dtype=np.float64
        )
        for start, table in tables(model.predictor(), inputs)
    ]
    return np.concatenate(parts)


def accuracy(model: QuantisedClassifier, inputs: np.ndarray, labels: np.ndarray) -> float:
    """Fraction of labels (n,) that are the most likely ones given their inputs."""
    right = sum(
        int((table.argmax(axis=1) == labels[start : start + len(table)]).sum())
        for start, table in tables(model.predictor(), inputs)
    )
    return right / len(labels)


def _rms(weights: np.ndarray) -> float:
    """Root mean square of the weights that are not zero; 1 where all are."""
    nonzeros = weights[weights != 0]
    return float(np.sqrt(np.mean(np.square(nonzeros, dtype=np.float64)))) if len(nonzeros) else 1.0
