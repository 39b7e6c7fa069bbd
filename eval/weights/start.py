"""The weights of an archive as what an online code starts from: between an online and an offline code."""

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch

from eval.codec.container import read_sections, unpack_json
from eval.weights.codec import decode_weights, rebuild
from harness.config.run import RunConfig
from harness.config.settings import shown
from harness.data.tokenizer import KINDS, Tokenizer, from_model_bytes
from harness.errors import UsageError
from harness.model.start import Start
from harness.model.transformer import ModelConfig, Transformer

_REMEDY = "give an archive made by `codelength eval` or `codelength compress`"


def read_start(config: RunConfig) -> Start | None:
    """Read the weights of the archive that `online.start` names; None where it names none.

    Raises UsageError where that is no archive, or one of a model of another shape. The length of its sequences may be
    another one: no weight depends on it.
    """
    if not config.online.start:
        return None
    path = Path(config.online.start)
    try:
        sections = read_sections(path)
        head = unpack_json(sections["HEAD"], path) if {"HEAD", "TOKN", "MODL"} <= sections.keys() else {}
        stated, kind = head.get("model"), head.get("tokenizer")
        if not isinstance(stated, dict) or kind not in KINDS:
            raise UsageError(f"{path}: holds no weights; {_REMEDY}")
        _check_shape(path, stated, config.model)
        tokenizer = from_model_bytes(kind, sections["TOKN"])
        return decode_start(sections["MODL"], config.model, (kind, sections["TOKN"]), tokenizer.vocab_size)
    except UsageError as error:
        raise UsageError(f"online.start: {error}") from None


def received_start(path: Path, coded: bytes, config: RunConfig, tokenizer: Tokenizer) -> Start:
    """Rebuild the weights that the online code at `path` holds; raises UsageError where they do not fit it."""
    try:
        own = config.tokenizer.kind, tokenizer.model_bytes()
        return decode_start(coded, config.model, own, tokenizer.vocab_size)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None


def decode_start(coded: bytes, model: ModelConfig, tokenizer: tuple[str, bytes], vocab_size: int) -> Start:
    """Rebuild the weights of a model of this shape, float32, from their section.

    Raises UsageError where they are of another shape, or not finite.
    """
    with torch.device("meta"):
        transformer = Transformer(replace(model, context=1, overlap=0), vocab_size)
    weights = rebuild(*decode_weights(coded, {name: tuple(p.shape) for name, p in transformer.named_parameters()}))
    if not all(np.isfinite(tensor).all() for tensor in weights.values()):
        raise UsageError("weights section: numbers that are not finite; fetch the archive again")
    return Start(weights, coded, tokenizer)


def _check_shape(path: Path, stated: dict, model: ModelConfig) -> None:
    # A field that came after the first archives is left out where it has its default.
    own, other = asdict(model), asdict(ModelConfig()) | stated
    differing = [key for key in own if key not in ("context", "overlap") and own[key] != other[key]]
    if differing or other.keys() != own.keys():
        words = ", ".join(f"model.{key}={own[key]} here and {shown(other[key])} there" for key in differing)
        raise UsageError(f"{path}: a model of another shape ({words or 'other fields'}); use its settings")
