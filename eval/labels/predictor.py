"""Probabilities of labels that encoder and decoder compute alike: batches of one shape, in one thread.

As with the float predictor of texts, the same kernels run with the same shapes at both ends; other processors may have
other kernels, which the digests of a file find.
"""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from harness.model.transformer import ModelConfig, make_model


class LabelPredictor:
    """A classifier that predicts the labels of a batch of inputs; the counterpart of `eval.predict.Predictor`."""

    def __init__(
        self, config: ModelConfig, num_classes: int, seed: int, weights: Iterable[tuple[str, Tensor]], lanes: int
    ):
        """`weights` are names and tensors of the model, all of them; `seed` is that of the run."""
        self.model, self.begin, self._lanes = make_model(config, num_classes, seed).eval(), num_classes, lanes
        self._parameters = dict(self.model.named_parameters())
        self._inputs = torch.zeros(0)
        self.load(weights)

    @torch.no_grad()
    def load(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Replace all weights."""
        for name, tensor in weights:
            self._parameters[name].copy_(tensor)

    def start(self, inputs: np.ndarray | None) -> None:
        """Begin with the inputs (n, channels, rows, columns) of a batch, n <= lanes."""
        assert inputs is not None, "labels have inputs"
        padded = np.zeros((self._lanes, *inputs.shape[1:]), dtype=inputs.dtype)
        padded[: len(inputs)] = inputs
        self._inputs = torch.from_numpy(padded)

    def step(self, tokens: np.ndarray) -> np.ndarray:
        """Probabilities (n, classes), float32, of the labels of the batch; of `tokens` (n,) only the number counts."""
        with torch.inference_mode():
            logits = self.model(self._inputs)[:, 0]
            return torch.softmax(logits.float(), dim=-1).numpy()[: len(tokens)]


Given = Iterable[tuple[ModelConfig, Iterable[tuple[str, Tensor]]]]


def label_predictors(given: Given, num_classes: int, seed: int, lanes: int) -> list[LabelPredictor]:
    """Predictors of shapes with their weights, in the order of `given`."""
    return [LabelPredictor(config, num_classes, seed, weights, lanes) for config, weights in given]
