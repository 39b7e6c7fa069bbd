"""The header of an archive: what a decoder must know, checked before anything is allocated."""

from dataclasses import asdict, fields

import torch

from eval.adaptive.in_order import mixture_bytes, most_bytes
from eval.codec.range_coder import most_symbols
from eval.kernels.vectors import WIDTH
from eval.predict.portable import cache_dtype
from harness.config.codes import MAX_LANES, MAX_PORTABLE_CHUNK, PREDICTORS
from harness.data.tokenizer import KINDS, Tokenizer, from_model_bytes
from harness.errors import UsageError
from harness.machine.memory import check_memory
from harness.model.transformer import TRANSFORMERS, ModelConfig

CHUNKS, IN_ORDER = "DATA", "FLOW"
"""The section of the text: in chunks that share no context, or in its order, by an adaptive mixture too."""
MAX_SIZE = 1 << 40
# Each layer has four matrices at least, and each tensor a step of four bytes in the file.
_STEP_BYTES_PER_LAYER = 16
# Compiled code, and what a layer takes however narrow it is: modules, and arrays by block of lanes.
_BASE_BYTES, _LAYER_BYTES, _LAYER_BLOCK_BYTES = 700_000_000, 100_000, 1_000
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


# Fields of a model that came after the first archives; a header without them means these.
ADDED_FIELDS: dict[str, object] = {"smear": 0, "overlap": 0, "inputs": "1x28x28", "hidden": "300x100", "subspace": 0}


def model_fields(config: ModelConfig) -> dict[str, object]:
    """What a header says of a model; fields that came later only where they differ, so that old versions read it."""
    return {name: value for name, value in asdict(config).items() if ADDED_FIELDS.get(name) != value}


def check_head(head: dict, sections: dict[str, bytes], max_memory_bytes: int | None) -> tuple[ModelConfig, Tokenizer]:
    """Configuration and tokenizer of a header whose every value is of its type and in range.

    Raises UsageError for others, for sizes that do not follow from each other and from the lengths of the `sections`,
    and for an archive too large for this machine.
    """
    model = head.get("model", {})
    model = ADDED_FIELDS | model if isinstance(model, dict) else {}
    wrong = [key for key, kind in _HEAD_TYPES.items() if type(head.get(key)) is not kind]
    if not wrong:
        wrong = [f"model.{f.name}" for f in fields(ModelConfig) if type(model.get(f.name)) is not type(f.default)]
    if wrong or len(model) != len(fields(ModelConfig)):
        raise UsageError(f"malformed header ({', '.join(wrong) or 'model'}); fetch the archive again")
    config = ModelConfig(**model)
    sizes = [config.width, config.layers, config.heads, config.context, head["chunk_bytes"], head["lanes"]]
    in_range = all(1 <= size <= MAX_SIZE for size in [*sizes, head["blocks"], head["raw_bytes"] + 1])
    in_range = in_range and head["chunk_bytes"] <= config.context and head["lanes"] <= MAX_LANES
    in_range = in_range and head["tokenizer"] in KINDS and head["predictor"] in PREDICTORS
    in_range = in_range and (head["predictor"] != "portable" or head["chunk_bytes"] <= MAX_PORTABLE_CHUNK)
    if not in_range or config.problems() or config.architecture not in TRANSFORMERS:
        raise UsageError("malformed header (values out of range); fetch the archive again")
    if _STEP_BYTES_PER_LAYER * config.layers > len(sections["MODL"]):
        raise UsageError(f"malformed header (model.layers={config.layers}: more than it has weights for)")
    tokenizer = from_model_bytes(head["tokenizer"], sections["TOKN"])
    _check_sizes(head, sections, tokenizer)
    needed = memory_bytes(head, config, tokenizer.vocab_size)
    if IN_ORDER in sections:
        needed += mixture_bytes(head["raw_bytes"], head["lanes"])
    check_memory(needed, max_memory_bytes)
    return config, tokenizer


def _check_sizes(head: dict, sections: dict[str, bytes], tokenizer: Tokenizer) -> None:
    """Raises UsageError for a text that the data cannot hold, or that does not fill what is to be coded at once."""
    if IN_ORDER in sections:
        most, is_fitting = most_bytes(len(sections[IN_ORDER])), head["blocks"] == 1 and tokenizer.kind == "bytes"
        if not is_fitting or head["predictor"] != "float":
            raise UsageError("malformed header (not one of a text in order); fetch the archive again")
    else:
        most = most_symbols(len(sections[CHUNKS]), tokenizer.vocab_size) * int(tokenizer.token_bytes.max())
    if head["raw_bytes"] > most:
        raise UsageError(f"malformed header (raw_bytes={head['raw_bytes']}: more than its data can hold)")
    num_chunks = -(-head["raw_bytes"] // head["chunk_bytes"])
    if head["blocks"] > max(1, -(-num_chunks // head["lanes"])):
        raise UsageError(f"malformed header (blocks={head['blocks']}: more than its {num_chunks} chunks fill)")


def memory_bytes(head: dict, config: ModelConfig, vocab_size: int) -> int:
    """What decoding takes at most, beside what this process has already: an upper bound, tested as one."""
    width, layers, portable = config.width, config.layers, head["predictor"] == "portable"
    num_weights = layers * (12 * width**2 + 13 * width) + (2 * vocab_size + 3) * width
    largest_tensor = width * max(4 * width, vocab_size + 1)
    length = min(head["chunk_bytes"], head["raw_bytes"]) or 1
    # Keys and values; tokens; what is handed from layer to layer; and tables of symbols as the coder takes them.
    per_lane = cache_bytes_per_lane(config, length, head["predictor"]) + 32 * length
    per_lane += 8 * 14 * width + 96 * vocab_size + 512
    # The predictor computes whole vectors of lanes.
    lanes = head["lanes"] * head["blocks"] + 2 * WIDTH
    total = (64 if portable else 32) * num_weights + 64 * largest_tensor + 48 * length * width
    total += lanes * per_lane + 3 * head["raw_bytes"]
    return total + _BASE_BYTES + layers * (_LAYER_BYTES + _LAYER_BLOCK_BYTES * (-(-lanes // head["lanes"]) + 1))


def cache_bytes_per_lane(config: ModelConfig, length: int, predictor: str) -> int:
    """Bytes of keys and values of one sequence of `length` tokens, at most.

    The number of blocks in a header, and so the bytes of an archive, follow from it.
    """
    dtype = cache_dtype(config, length) if predictor == "portable" else torch.float32
    return 2 * dtype.itemsize * config.layers * length * config.width
