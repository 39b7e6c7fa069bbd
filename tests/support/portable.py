"""Models of integers, small and extreme ones, for tests of the stepping models."""

from dataclasses import replace

import numpy as np

from eval.offline.archive import QuantisedModel
from eval.predict.portable import PortableModel
from eval.weights.codec import LARGEST_MAGNITUDE
from harness.config.codes import EvalConfig
from harness.data.tokenizer import ByteTokenizer
from harness.model.transformer import ModelConfig, Transformer

CHUNK_BYTES = 16
SETTINGS = EvalConfig(chunk_bytes=CHUNK_BYTES, lanes=3, predictor="portable")
ARCHITECTURES = ["modern", "published", "smeared"]
# Integers alone, so every machine draws the same; gains and biases are about 1.
MAGNITUDES = {"modern": 7, "published": 20, "smeared": 7}


def make_model(
    architecture="modern", tokenizer=None, largest=None, width=32, context=64, aligned=False
) -> QuantisedModel:
    """Two layers of random integers up to `largest` (a number, or one by tensor).

    Those of an `aligned` model are all as large, with signs such that activations point along the rows of the weights:
    there sums are largest.
    """
    tokenizer = tokenizer or ByteTokenizer()
    config = ModelConfig(width=width, layers=2, heads=2, context=context)
    config = replace(config, smear=2) if architecture == "smeared" else replace(config, architecture=architecture)
    rng = np.random.default_rng(5)
    integers = {}
    for name, parameter in Transformer(config, tokenizer.vocab_size).named_parameters():
        limit = MAGNITUDES[architecture] if largest is None else largest(name) if callable(largest) else largest
        integers[name] = rng.integers(-limit, limit, tuple(parameter.shape), endpoint=True)
        if aligned:
            signs = 1 if name.endswith("norm.weight") else 1 - 2 * (np.indices(parameter.shape).sum(axis=0) % 2)
            integers[name] = np.full(tuple(parameter.shape), limit) * signs
    steps = dict.fromkeys(integers, np.float32(0.06))
    return QuantisedModel(config, tokenizer, integers, steps)


def plain_model(model: QuantisedModel, length: int) -> PortableModel:
    """The model in torch's operations, of which all sums can be watched."""
    return PortableModel(model.config, model.tokenizer.vocab_size, model.integers, model.steps, length)


EXTREMES = {
    "usual": None,
    "all zero": 0,
    "all large": lambda name: 1 << 12 if "down" in name else LARGEST_MAGNITUDE,
    "large outputs": lambda name: 1 << 12 if name.split(".")[-2] in ("down", "out", "embed") else 7,
    "aligned": 3,
    # With these, finer units than float32 sums allow would show.
    "aligned and middling": lambda name: 50 if "out" in name else 180,
    "aligned and large": lambda name: 1 << 12 if "down" in name else 1 << 16,
}


def extreme_model(architecture: str, kind: str, **shape) -> QuantisedModel:
    """A model of which sums are as large as they get."""
    model = make_model(architecture, largest=EXTREMES[kind], aligned="aligned" in kind, **shape)
    if (architecture, kind) == ("published", "all large"):
        # Else gains stretch rows beyond float64.
        model = replace(model, steps=model.steps | dict.fromkeys(model.steps, np.float32(2.0**-20)))
    return model
