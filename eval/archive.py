"""The offline (two-part) code as a file: sparse weights, tokenizer and the text coded with the rebuilt weights.

Sections: HEAD (what a decoder must know), TOKN (tokenizer), MODL (weights), DATA (one range-coder stream). Chunks of
`chunk_bytes` share no context; each starts from the begin symbol, so its first byte is coded like any other.
"""

import hashlib
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import torch

from eval.chunks import Progress, decode_chunks, encode_chunks
from eval.coder import Decoder, Encoder
from eval.config import PREDICTORS, EvalConfig
from eval.container import (
    CHECKSUM_BYTES,
    framing_bytes,
    pack_json,
    pack_sections,
    read_sections,
    unpack_json,
)
from eval.devices import choose_devices, device_name
from eval.float_model import FloatModel
from eval.float_torch import TorchFloatModel
from eval.portable import PortableModel, cache_dtype
from eval.portable_steps import CompiledPortableModel
from eval.predictor import Predictor, block_count
from eval.stepping import SteppingModel
from eval.vectors import WIDTH
from eval.weights import decode_weights, encode_weights, rebuild
from harness.errors import UsageError
from harness.files import write_file
from harness.hardware import check_memory, isa_limits
from harness.model import ModelConfig, Transformer
from harness.tokenizer import KINDS, ByteTokenizer, SentencePieceTokenizer, from_model_bytes

MAX_LAYERS = 4096
MAX_SIZE = 1 << 40
_HEAD_TYPES = {
    "model": dict,
    "tokenizer": str,
    "raw_bytes": int,
    "sha256": str,
    "chunk_bytes": int,
    "lanes": int,
    "blocks": int,
    "predictor": str,
    "predictor_sha256": str,
    "environment": dict,
}


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


@dataclass(frozen=True, slots=True)
class QuantisedModel:
    """A model as its file holds it: integers on a grid per tensor."""

    config: ModelConfig
    tokenizer: ByteTokenizer | SentencePieceTokenizer
    integers: dict[str, np.ndarray]
    steps: dict[str, np.float32]

    def transformer(self) -> Transformer:
        """The model with the rebuilt weights."""
        return _load(Transformer(self.config, self.tokenizer.vocab_size), rebuild(self.integers, self.steps))

    def stepping(self, predictor: str, length: int, device: str = "cpu") -> SteppingModel:
        """The model that steps sequences of at most `length` tokens; `predictor` is one of PREDICTORS.

        Raises UsageError where `portable` cannot sum the integers exactly.
        """
        vocab_size = self.tokenizer.vocab_size
        if predictor == "portable":
            model = PortableModel(self.config, vocab_size, self.integers, self.steps, length)
            return CompiledPortableModel(model) if device == "cpu" else model.to(device)
        weights = ((n, torch.from_numpy(w)) for n, w in rebuild(self.integers, self.steps).items())
        if device == "cpu":
            return FloatModel(self.config, vocab_size, weights)
        return TorchFloatModel(self.config, vocab_size, weights, device)

    def predictor(self, kind: str, shape: tuple[int, int, int], threads: int, devices: list[str]) -> Predictor:
        """A predictor of so many lanes, blocks and tokens of `length`, on `devices`."""
        first, *others = (self.stepping(kind, shape[2], device) for device in devices[: shape[1]])
        return Predictor(first, *shape, threads, others)

    @property
    def num_parameters(self) -> int:
        """Number of weights."""
        return sum(q.size for q in self.integers.values())


def write_archive(
    path: Path, text: bytes, model: QuantisedModel, config: EvalConfig, threads: int, progress: Progress
) -> ArchiveReport:
    """Code `text` with the weights that a decoder will rebuild, and write the file in one rename.

    Raises RunFailure where the file cannot be written (nothing is left of it then), and UsageError where
    `eval.predictor=portable` cannot sum the integers of the model exactly.
    """
    start = time.perf_counter()
    num_chunks = -(-len(text) // config.chunk_bytes)
    length = min(config.chunk_bytes, len(text)) or 1
    per_lane = cache_bytes_per_lane(model.config, length, config.predictor)
    blocks = block_count(num_chunks, config.lanes, per_lane, config.max_cache_bytes)
    devices = choose_devices(config.device, model.num_parameters)
    predictor = model.predictor(config.predictor, (config.lanes, blocks, length), threads, devices)
    head = {
        "model": asdict(model.config),
        "tokenizer": model.tokenizer.kind,
        "raw_bytes": len(text),
        "sha256": hashlib.sha256(text).hexdigest(),
        "chunk_bytes": config.chunk_bytes,
        "lanes": config.lanes,
        "blocks": blocks,
        "predictor": config.predictor,
        "predictor_sha256": predictor.fingerprint(),
        "environment": {} if config.predictor == "portable" else _relevant_environment(devices[0]),
    }
    encoder = Encoder()
    encode_chunks(text, config.chunk_bytes, model.tokenizer, predictor, encoder, progress)
    sections = {
        "HEAD": pack_json(head),
        "TOKN": model.tokenizer.model_bytes(),
        "MODL": encode_weights(model.integers, model.steps),
        "DATA": encoder.stream(),
    }
    content = pack_sections(sections)
    write_file(path, content)
    return ArchiveReport(
        header_bytes=framing_bytes(len(sections)) + len(sections["HEAD"]),
        model_bytes=len(sections["MODL"]),
        tokenizer_bytes=len(sections["TOKN"]),
        data_bytes=len(sections["DATA"]),
        checksum_bytes=CHECKSUM_BYTES,
        total_bytes=len(content),
        ideal_data_bits=encoder.ideal_bits,
        quantised_data_bits=encoder.quantised_bits,
        sha256=head["sha256"],
        encode_seconds=time.perf_counter() - start,
    )


def read_archive(path: Path, threads: int, progress: Progress) -> bytes:
    """The text of an archive, checked against its SHA-256; needs nothing but the file.

    Raises UsageError where the file is foreign or damaged, or this machine computes other probabilities than the one
    that wrote it.
    """
    sections = read_sections(path)
    if set(sections) != {"HEAD", "TOKN", "MODL", "DATA"}:
        raise UsageError(f"{path}: holds no text; give an archive made by `codelength eval` or `codelength compress`")
    head = unpack_json(sections["HEAD"], path)
    try:
        config, tokenizer = _check_head(head, sections["TOKN"])
        shapes = {name: tuple(p.shape) for name, p in Transformer(config, tokenizer.vocab_size).named_parameters()}
        model = QuantisedModel(config, tokenizer, *decode_weights(sections["MODL"], shapes))
        decoder = Decoder(sections["DATA"])
        length = min(head["chunk_bytes"], head["raw_bytes"]) or 1
        devices = _devices(head, model.num_parameters)
        shape = head["lanes"], head["blocks"], length
        predictor = model.predictor(head["predictor"], shape, threads, devices)
        if predictor.fingerprint() != head["predictor_sha256"]:
            here = _describe(_relevant_environment(devices[0]))
            raise UsageError(
                "this machine computes other probabilities than the one that wrote it "
                f"({_describe(head['environment'])}; here {here}); decode with the same versions and processor"
            )
        try:
            text = decode_chunks(head["raw_bytes"], head["chunk_bytes"], tokenizer, predictor, decoder, progress)
        except UsageError as error:
            place = f", or decode it where it was made ({_describe(head['environment'])})"
            raise UsageError(f"{error}{place if head['environment'] else ''}") from None
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None
    if hashlib.sha256(text).hexdigest() != head["sha256"]:
        raise UsageError(
            f"{path}: the decoded text differs from what was coded (SHA-256), so this machine computes otherwise "
            f"than the one that wrote it ({_describe(head['environment'])}); decode it there"
        )
    return text


def _check_head(head: dict, tokenizer_model: bytes) -> tuple[ModelConfig, ByteTokenizer | SentencePieceTokenizer]:
    """Configuration and tokenizer of a header whose every value is of its type and in range.

    Raises UsageError for others, and for an archive too large for this machine, before anything is allocated.
    """
    model = head.get("model")
    wrong = [key for key, kind in _HEAD_TYPES.items() if type(head.get(key)) is not kind]
    if not wrong:
        wrong = [f"model.{f.name}" for f in fields(ModelConfig) if type(model.get(f.name)) is not type(f.default)]
    if wrong or len(model) != len(fields(ModelConfig)):
        raise UsageError(f"malformed header ({', '.join(wrong) or 'model'}); fetch the archive again")
    config = ModelConfig(**model)
    sizes = [config.width, config.layers, config.heads, config.context, head["chunk_bytes"], head["lanes"]]
    in_range = all(1 <= size <= MAX_SIZE for size in [*sizes, head["blocks"], head["raw_bytes"] + 1])
    in_range = in_range and config.layers <= MAX_LAYERS and head["chunk_bytes"] <= config.context
    in_range = in_range and head["tokenizer"] in KINDS and head["predictor"] in PREDICTORS
    if not in_range or config.problems():
        raise UsageError("malformed header (values out of range); fetch the archive again")
    tokenizer = from_model_bytes(head["tokenizer"], tokenizer_model)
    check_memory(_memory_bytes(head, config, tokenizer.vocab_size))
    return config, tokenizer


def _memory_bytes(head: dict, config: ModelConfig, vocab_size: int) -> int:
    """Memory for weights (integers and floats), position tables, lanes (cache, coding tables) and text, roughly."""
    num_weights = 12 * config.layers * config.width**2 + (2 * vocab_size + 1) * config.width
    length = min(head["chunk_bytes"], head["raw_bytes"]) or 1
    per_lane = cache_bytes_per_lane(config, length, head["predictor"]) + 64 * vocab_size
    # The predictor computes whole vectors of lanes.
    lanes = head["lanes"] * head["blocks"] + WIDTH
    return 16 * num_weights + 24 * config.context * config.width + lanes * per_lane + 2 * head["raw_bytes"]


def cache_bytes_per_lane(config: ModelConfig, length: int, predictor: str) -> int:
    """Bytes of keys and values of one sequence of `length` tokens, at most.

    The number of blocks in a header, and so the bytes of an archive, follow from it.
    """
    dtype = cache_dtype(config, length) if predictor == "portable" else torch.float32
    return 2 * dtype.itemsize * config.layers * length * config.width


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


def _relevant_environment(device: str) -> dict[str, str]:
    """What the last bits of a float product depend on."""
    versions = {"torch": str(torch.__version__), "numpy": np.__version__}
    if device != "cpu":
        return versions | {"device": device_name(device)}
    return {**versions, "cpu": torch.backends.cpu.get_cpu_capability(), **isa_limits()}


def _describe(relevant: dict) -> str:
    text = ", ".join(f"{key} {value}" for key, value in relevant.items())
    return "".join(character for character in text if character.isprintable())[:200] or "a portable archive"
