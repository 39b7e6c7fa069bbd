"""The offline (two-part) code as a file: sparse weights, tokenizer and the text coded with the rebuilt weights.

Sections: HEAD (what a decoder must know), TOKN (tokenizer), MODL (weights), and one range-coder stream. DATA are chunks
of `chunk_bytes` that share no context; each starts from the begin symbol, so its first byte is coded like any other.
FLOW is the text in its order, read in windows of `chunk_bytes`, with an adaptive mixture (`eval.adaptive`).
"""

import hashlib
import time
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path

import numpy as np
import torch

from eval.adaptive.in_order import LANES, decode_in_order, encode_in_order, mixture_sha256
from eval.codec.container import (
    CHECKSUM_BYTES,
    EARLY_DIGITS,
    RESULT_DIGITS,
    framing_bytes,
    pack_json,
    pack_sections,
    read_sections,
    unpack_json,
)
from eval.codec.range_coder import RangeDecoder, RangeEncoder
from eval.length import Length
from eval.offline.archive_head import CHUNKS, IN_ORDER, cache_bytes_per_lane, check_head, model_fields
from eval.offline.chunks import Progress, decode_chunks, encode_chunks
from eval.predict.devices import choose_devices, device_name
from eval.predict.float_model import FloatModel
from eval.predict.float_torch import TorchFloatModel
from eval.predict.portable import PortableModel
from eval.predict.portable_steps import CompiledPortableModel
from eval.predict.predictor import Predictor, block_count
from eval.predict.stepping import SteppingModel
from eval.weights.codec import decode_weights, encode_weights, rebuild
from harness.config.codes import EvalConfig
from harness.data.tokenizer import Tokenizer
from harness.errors import UsageError
from harness.files import write_file
from harness.machine.hardware import c_library, isa_limits
from harness.model.transformer import ModelConfig, Transformer


@dataclass(frozen=True, slots=True)
class ArchiveReport:
    """What an archive consists of; the parts add up to the file, to the byte."""

    header_bytes: int
    model_bytes: int
    tokenizer_bytes: int
    data_bytes: int
    checksum_bytes: int
    total_bytes: int
    ideal_data_bits: float
    """-log2 of the float probabilities of the text."""
    quantised_data_bits: float
    """-log2 of the coder's integer frequencies of the text."""
    sha256: str
    """Digest of the text."""
    encode_seconds: float
    kind: str = "coded"
    """What it is worth, see `eval.length.Length`."""

    @property
    def length(self) -> Length:
        """The same as one length."""
        rest = self.total_bytes - self.model_bytes - self.data_bytes
        return Length(self.model_bytes, self.data_bytes, self.kind, rest)


@dataclass(frozen=True, slots=True)
class QuantisedModel:
    """A model as its file holds it: integers on a grid per tensor."""

    config: ModelConfig
    tokenizer: Tokenizer
    integers: dict[str, np.ndarray]
    steps: dict[str, np.float32]

    def transformer(self) -> Transformer:
        """The model with the rebuilt weights."""
        return _load(Transformer(self.config, self.tokenizer.vocab_size), rebuild(self.integers, self.steps))

    def stepping(self, predictor: str, length: int, device: str = "cpu") -> SteppingModel:
        """The model that steps sequences of at most `length` tokens; `predictor` is one of PREDICTORS.

        Raises UsageError where `portable` cannot sum the integers exactly.
        """
        # Tables of positions beyond the longest sequence would never be read.
        vocab_size, config = self.tokenizer.vocab_size, replace(self.config, context=length)
        if predictor == "portable":
            model = PortableModel(config, vocab_size, self.integers, self.steps, length)
            return CompiledPortableModel(model) if device == "cpu" else model.to(device)
        weights = ((n, torch.from_numpy(w)) for n, w in rebuild(self.integers, self.steps).items())
        if device == "cpu":
            return FloatModel(config, vocab_size, weights)
        return TorchFloatModel(config, vocab_size, weights, device)

    def predictor(self, kind: str, shape: tuple[int, int, int], threads: int, devices: list[str]) -> Predictor:
        """A predictor of so many lanes, blocks and tokens of `length`, on `devices`."""
        first, *others = (self.stepping(kind, shape[2], device) for device in devices[: shape[1]])
        return Predictor(first, *shape, threads, others)

    @property
    def num_parameters(self) -> int:
        """Number of weights."""
        return sum(q.size for q in self.integers.values())


def write_archive(
    path: Path,
    text: bytes,
    model: QuantisedModel,
    config: EvalConfig,
    threads: int,
    progress: Progress,
    section: str = CHUNKS,
) -> ArchiveReport:
    """Code `text` with the weights that a decoder will rebuild, and write the file in one rename.

    `section` says how: in chunks, or in its order by an adaptive mixture too.

    Raises RunFailure where the file cannot be written (nothing is left of it then), and UsageError where
    `eval.predictor=portable` cannot sum the integers of the model exactly.
    """
    start = time.perf_counter()
    devices = choose_devices(config.device, model.num_parameters)
    chunk_bytes, lanes = (model.config.context, LANES) if section == IN_ORDER else (config.chunk_bytes, config.lanes)
    length = min(chunk_bytes, len(text)) or 1
    per_lane = cache_bytes_per_lane(model.config, length, config.predictor)
    num_chunks = 1 if section == IN_ORDER else -(-len(text) // chunk_bytes)
    blocks = block_count(num_chunks, lanes, per_lane, config.max_cache_bytes)
    predictor = model.predictor(config.predictor, (lanes, blocks, length), threads, devices)
    encoder = RangeEncoder()
    if section == IN_ORDER:
        encode_in_order(text, predictor, encoder, progress)
    else:
        encode_chunks(text, chunk_bytes, model.tokenizer, predictor, encoder, progress)
    text_sha256 = hashlib.sha256(text).hexdigest()
    head = {
        "model": model_fields(model.config),
        "tokenizer": model.tokenizer.kind,
        "raw_bytes": len(text),
        "sha256": text_sha256[:RESULT_DIGITS],
        "chunk_bytes": chunk_bytes,
        "lanes": lanes,
        "blocks": blocks,
        "predictor": config.predictor,
        "predictor_sha256": _fingerprint(predictor, section),
        "environment": {} if config.predictor == "portable" else _relevant_environment(devices[0], section),
    }
    sections = {
        "HEAD": pack_json(head),
        "TOKN": model.tokenizer.model_bytes(),
        "MODL": encode_weights(model.integers, model.steps),
        section: encoder.stream(),
    }
    write_file(path, pack_sections(sections))
    return _report(sections, encoder, text_sha256, time.perf_counter() - start)


def _report(sections: dict[str, bytes], encoder: RangeEncoder, sha256: str, seconds: float) -> ArchiveReport:
    framing, sizes = framing_bytes(sections), list(map(len, sections.values()))
    return ArchiveReport(
        header_bytes=framing + sizes[0],
        tokenizer_bytes=sizes[1],
        model_bytes=sizes[2],
        data_bytes=sizes[3],
        checksum_bytes=CHECKSUM_BYTES,
        total_bytes=framing + sum(sizes) + CHECKSUM_BYTES,
        ideal_data_bits=encoder.ideal_bits,
        quantised_data_bits=encoder.quantised_bits,
        sha256=sha256,
        encode_seconds=seconds,
    )


def read_archive(path: Path, threads: int, progress: Progress, max_memory_bytes: int | None = None) -> bytes:
    """The text of an archive, checked against its SHA-256; needs nothing but the file.

    Raises UsageError where the file is foreign or damaged, needs more memory than is free or allowed, or this machine
    computes other probabilities than the one that wrote it.
    """
    sections = read_sections(path)
    section = IN_ORDER if IN_ORDER in sections else CHUNKS
    if "LABL" in sections:
        raise UsageError(f"{path}: holds labels, which are given inputs; name the set by --inputs")
    if set(sections) != {"HEAD", "TOKN", "MODL", section}:
        raise UsageError(f"{path}: holds no text; give an archive made by `codelength eval` or `codelength compress`")
    head = unpack_json(sections["HEAD"], path)
    try:
        config, tokenizer = check_head(head, sections, max_memory_bytes)
        with torch.device("meta"):
            transformer = Transformer(replace(config, context=1), tokenizer.vocab_size)
        shapes = {name: tuple(p.shape) for name, p in transformer.named_parameters()}
        model = QuantisedModel(config, tokenizer, *decode_weights(sections["MODL"], shapes))
        decoder = RangeDecoder(sections[section])
        length = min(head["chunk_bytes"], head["raw_bytes"]) or 1
        devices = _devices(head, model.num_parameters)
        shape = head["lanes"], head["blocks"], length
        predictor = model.predictor(head["predictor"], shape, threads, devices)
        if _fingerprint(predictor, section) != head["predictor_sha256"]:
            here = _describe(_relevant_environment(devices[0], section))
            raise UsageError(
                "this machine computes other probabilities than the one that wrote it "
                f"({_describe(head['environment'])}; here {here}); decode with the same versions and processor"
            )
        try:
            if section == IN_ORDER:
                text = decode_in_order(head["raw_bytes"], predictor, decoder, progress)
            else:
                text = decode_chunks(head["raw_bytes"], head["chunk_bytes"], tokenizer, predictor, decoder, progress)
        except UsageError as error:
            place = f", or decode it where it was made ({_describe(head['environment'])})"
            raise UsageError(f"{error}{place if head['environment'] else ''}") from None
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None
    if hashlib.sha256(text).hexdigest()[:RESULT_DIGITS] != head["sha256"]:
        raise UsageError(
            f"{path}: the decoded text differs from what was coded (SHA-256), so this machine computes otherwise "
            f"than the one that wrote it ({_describe(head['environment'])}); decode it there"
        )
    return text


def _load(transformer: Transformer, weights: dict[str, np.ndarray]) -> Transformer:
    parameters = dict(transformer.named_parameters())
    with torch.no_grad():
        for name, value in weights.items():
            parameters[name].copy_(torch.from_numpy(np.ascontiguousarray(value)))
    return transformer


def _devices(head: dict, num_parameters: int) -> list[str]:
    """Where an archive can be decoded: floats on what they were coded with, integers anywhere."""
    if head["predictor"] == "portable":
        return choose_devices("auto", num_parameters)
    name = head["environment"].get("device", "cpu")
    if name != "cpu" and not torch.cuda.is_available():
        raise UsageError(f"coded with {_describe(head['environment'])}; here is no GPU; decode it there")
    return choose_devices("cpu" if name == "cpu" else "cuda", num_parameters)


def _fingerprint(predictor: Predictor, section: str) -> str:
    """Digest of all probabilities that a decoder must reproduce."""
    own = predictor.fingerprint()
    whole = hashlib.sha256((own + mixture_sha256()).encode()).hexdigest() if section == IN_ORDER else own
    return whole[:EARLY_DIGITS]


def _relevant_environment(device: str, section: str) -> dict[str, str]:
    """What the last bits of a float product, and how they are coded, depend on."""
    versions = {"torch": str(torch.__version__), "numpy": np.__version__}
    if section == IN_ORDER:
        versions |= {name: metadata.version(name) for name in ("numba", "llvmlite")}
    versions |= {"constriction": metadata.version("constriction"), "libc": c_library()}
    if device != "cpu":
        return versions | {"device": device_name(device)}
    return {**versions, "cpu": torch.backends.cpu.get_cpu_capability(), **isa_limits()}


def _describe(relevant: dict) -> str:
    text = ", ".join(f"{key} {value}" for key, value in relevant.items())
    return "".join(character for character in text if character.isprintable())[:300] or "a portable archive"
