"""The code of a text by a transformer in a random subspace: coordinates really coded, the text by its ideal length."""

from pathlib import Path

import numpy as np
import torch

from eval.labels.forward import install, predicted
from eval.length import Length
from eval.weights.codec import encode_weights, quantise, rebuild
from eval.weights.trained import load_weights
from harness.config.run import RunConfig
from harness.corpus.prepared import Data
from harness.model.transformer import Transformer, make_model
from harness.units import bits_from_nats, bytes_from_bits

_FLOAT_BYTES = 4
# Steps of the grid that are tried, in powers of two of the root mean square of the coordinates.
_LOG2_STEPS = np.arange(-4.0, 2.5, 0.5)


def subspace_lengths(run_dir: Path, config: RunConfig, data: Data) -> tuple[Length, Length]:
    """Lengths with float32 coordinates and with coded ones, on the grid with the fewest bits; both ideal.

    Raises UsageError where the run is not finished.
    """
    weights, _ = load_weights(run_dir, config, data.tokenizer.vocab_size)
    model = make_model(config.model, data.tokenizer.vocab_size, config.seed).eval()
    plain = Length(_FLOAT_BYTES * config.model.subspace, _text_bytes(model, weights, data), "ideal")
    size = float(np.sqrt(np.mean(np.square(weights["coordinates"], dtype=np.float64)))) or 1.0
    lengths = []
    for log2 in _LOG2_STEPS:
        steps = {"coordinates": np.float32(size * 2.0**log2)}
        integers = quantise(weights, steps)
        model_bytes = len(encode_weights(integers, steps))
        lengths.append(Length(model_bytes, _text_bytes(model, rebuild(integers, steps), data), "ideal"))
    return plain, min(lengths, key=lambda length: length.total_bits)


def _text_bytes(model: Transformer, weights: dict[str, np.ndarray], data: Data) -> float:
    install(model, {name: torch.from_numpy(each) for name, each in weights.items()})
    nats = sum(float(own.sum(dtype=torch.float64)) for own, _ in predicted(model, data.train))
    return bytes_from_bits(bits_from_nats(nats))
