"""Small archives and the models in them, for tests of whoever writes or reads one."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from eval.codec.container import pack_json, pack_sections, read_sections, unpack_json
from eval.offline.archive import QuantisedModel, cache_bytes_per_lane, read_archive, write_archive
from eval.weights.codec import quantise
from harness.config.codes import EvalConfig
from harness.data.tokenizer import ByteTokenizer
from harness.errors import UsageError
from harness.model.transformer import ModelConfig, Transformer

CHUNK_BYTES, LANES = 16, 2
TEXT = (b"The chunks of this text are coded side by side, each from its own begin symbol. " * 2)[:150]


def silent(done: int, total: int) -> None:
    """No progress."""


def make_model(tokenizer=None, architecture="modern", context=CHUNK_BYTES, seed=0) -> QuantisedModel:
    """A tiny model whose probabilities are far from flat."""
    tokenizer = tokenizer or ByteTokenizer()
    config = ModelConfig(architecture=architecture, width=16, layers=1, heads=2, context=context)
    rng = np.random.default_rng(seed)
    weights = {}
    for name, parameter in Transformer(config, tokenizer.vocab_size).named_parameters():
        values = rng.laplace(size=tuple(parameter.shape)).astype(np.float32) * 0.4
        weights[name] = np.where(rng.random(values.shape) < 0.5, values, np.float32(0))
    steps = {name: np.float32(0.05) for name in weights}
    return fitting(QuantisedModel(config, tokenizer, quantise(weights, steps), steps))


def fitting(model: QuantisedModel, text: bytes = TEXT) -> QuantisedModel:
    """The model with symbols of `text` made likely: chunks that a model lengthens would be stored."""
    integers = {name: q.copy() for name, q in model.integers.items()}
    for name, q in integers.items():
        if name.endswith(("qkv.weight", "up.weight")):
            q[:, 0] = 0
        elif name in ("norm.weight", "norm.bias"):
            q //= 4
            q[0] = 20 if name == "norm.weight" else 0
    integers["embed.weight"][:, 0] = 240
    integers["head.weight"][np.unique(model.tokenizer.encode(text)), 0] += 40
    return replace(model, integers=integers)


def settings(blocks=100, chunk_bytes=CHUNK_BYTES, lanes=LANES) -> EvalConfig:
    """Settings with memory for at most so many blocks of a model made by `make_model`."""
    per_lane = cache_bytes_per_lane(make_model().config, chunk_bytes, "float")
    return EvalConfig(chunk_bytes=chunk_bytes, lanes=lanes, max_cache_bytes=blocks * lanes * per_lane)


def write(path: Path, text: bytes, model=None, config=None, threads=1):
    return write_archive(path, text, model or make_model(), config or settings(), threads, silent)


def repacked(archive: bytes, path: Path, change) -> Path:
    """`archive` of any kind at `path`, rightly signed, after `change(head, sections)`."""
    path.write_bytes(archive)
    sections = read_sections(path)
    head = unpack_json(sections["HEAD"], path)
    change(head, sections)
    sections["HEAD"] = pack_json(head)
    path.write_bytes(pack_sections(sections))
    return path


def refusal(path: Path) -> str:
    """The one line, naming the file, with which reading it is refused."""
    with pytest.raises(UsageError) as caught:
        read_archive(path, 1, silent)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert message.isprintable()
    return message


def flag_bits(num_chunks: int) -> float:
    """What it takes to say that none of so many chunks is stored."""
    return float(np.log2((np.arange(num_chunks) + 1) / (np.arange(num_chunks) + 0.5)).sum())


RANDOM = np.random.default_rng(9).bytes(100)
