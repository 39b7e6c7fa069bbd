"""The file of an online code: what a receiver must know, then one stream per rank and segment.

Sections: HEAD (settings that differ from the defaults, sizes, digests, environment), TOKN (tokenizer), SEGM, PART where
settings speak of parts of the text (the first token of each), ORDR where its documents are coded in an order that is
not their own, STRT where both ends start from the weights of an archive: its section of weights, and PLCY where not all
sequences count alike in the updates: the file of the policy. A segment is a number of optimizer steps. It holds 4 bytes
of digest of the weights after it and, for each rank, 4 bytes of checksum of the rank's tokens, the length of the rank's
stream as a varint, and the stream.
"""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from eval.codec.container import (
    CHECKSUM_BYTES,
    EARLY_DIGITS,
    framing_bytes,
    pack_json,
    pack_sections,
    read_sections,
    unpack_json,
)
from eval.codec.range_coder import WORD_BYTES
from eval.codec.varint import read_varint, varint
from harness.config.run import RunConfig, config_from, decides_training, settings_of
from harness.data.tokenizer import Tokenizer, from_model_bytes
from harness.errors import UsageError
from harness.files import write_file

if TYPE_CHECKING:
    from eval.codec.permutation import DocumentOrder
    from harness.data.parts import Parts

_WORLD_SIZE_DIGITS = 5
MAX_TOKENS = 1 << 40
# Settings of the corpus and of what follows the first epoch decide nothing of what is sent.
_UNSENT = ("corpus.", "prune.", "train.policy")
# Weights and policies are sent, and not where they come from.
_START = "online.start"
_OF_PARTS = ("train.last", "train.untrained")
_SECTIONS = {"HEAD", "TOKN", "SEGM"}
_DIGEST_BYTES = EARLY_DIGITS // 2
# A rank's checksum and the length of its stream, at least.
_LEAST_PART_BYTES = _DIGEST_BYTES + 1
# Of the head, as bytes.
_AS_THEY_ARE = {"STRT": "start", "PLCY": "policy"}


@dataclass(frozen=True, kw_only=True, slots=True)
class OnlineHead:
    """The head of an online code: what a receiver must know before the first symbol."""

    settings: dict[str, object]
    """Dotted keys of the configuration that differ from the defaults."""
    num_tokens: int
    raw_bytes: int
    sha256: str
    """Leading digits of the digest of the text."""
    fingerprint: str
    """What the order of the sequences depends on: a digest of tokens and tokenizer, empty for labels."""
    environment: dict[str, str]
    """What decides the last bits, and what else is known of the sender."""
    arithmetic: str
    """Leading digits of a digest of a training step and of probabilities on made-up tokens, of each kind of rank:
    differs where a machine computes otherwise."""
    parts: "Parts | None" = None
    """Where the parts of the text begin, in a section of its own; named by their numbers."""
    order: "DocumentOrder | None" = None
    """The order of its documents, where it is not coded in its own; in a section too."""
    start: bytes = b""
    """Coded weights that both ends start from, in a section too; empty where these are random."""
    policy: bytes = b""
    """How much each sequence counts in the updates, in a section too; empty where all count alike."""

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return int(self.environment["world_size"])


@dataclass(frozen=True, slots=True)
class Part:
    """What one rank contributes to a segment."""

    checksum: bytes
    """Of the rank's tokens, 4 bytes."""
    stream: bytes


@dataclass(frozen=True, slots=True)
class Segment:
    """The coded tokens of some optimizer steps."""

    weights: bytes
    """Digest of the weights after it, 4 bytes."""
    parts: list[Part]
    """By rank."""


@dataclass(frozen=True, slots=True)
class FileSizes:
    """The sizes of a file's sections in bytes; they add up to the file."""

    header_bytes: int
    tokenizer_bytes: int
    segment_bytes: int
    """Digests, checksums and lengths of the segments."""
    stream_bytes: int
    order_bytes: int
    """Order and lengths of the documents."""
    start_bytes: int
    """Weights that both ends start from."""
    policy_bytes: int
    """How much each sequence counts in the updates."""
    checksum_bytes: int
    file_bytes: int


def sent_settings(config: RunConfig) -> dict[str, object]:
    """Select the settings that a receiver needs; parts are named by their numbers."""
    numbers = {name: str(number) for number, name in enumerate(config.corpus.part_names)}
    return {
        key: [numbers[name] for name in value] if key in _OF_PARTS and isinstance(value, list) else value
        for key, value in settings_of(config).items()
        if _is_sent(key)
    }


def _is_sent(key: str) -> bool:
    return (decides_training(key) or key.startswith("online.")) and not key.startswith(_UNSENT) and key != _START


def write_online_file(path: Path, head: OnlineHead, tokenizer: Tokenizer, segments: list[Segment]) -> FileSizes:
    """Write the file in one rename.

    Raises RunFailure where it cannot be written; nothing is left of it then.
    """
    packed = pack_segments(segments)
    plain = asdict(replace(head, parts=None, order=None))
    for own_section in ("parts", "order", *_AS_THEY_ARE.values()):
        del plain[own_section]
    if head.raw_bytes == head.num_tokens:
        del plain["raw_bytes"]
    sections = {"HEAD": pack_json(plain), "TOKN": tokenizer.model_bytes(), "SEGM": packed}
    sections |= {tag: own.to_bytes() for tag, own in (("PART", head.parts), ("ORDR", head.order)) if own}
    sections |= {tag: own for tag, name in _AS_THEY_ARE.items() if (own := getattr(head, name))}
    content = pack_sections(sections)
    write_file(path, content)
    stream_bytes = sum(len(part.stream) for segment in segments for part in segment.parts)
    return FileSizes(
        header_bytes=framing_bytes(sections) + len(sections["HEAD"]) + len(sections.get("PART", b"")),
        tokenizer_bytes=len(sections["TOKN"]),
        segment_bytes=len(packed) - stream_bytes,
        stream_bytes=stream_bytes,
        order_bytes=len(sections.get("ORDR", b"")),
        start_bytes=len(head.start),
        policy_bytes=len(head.policy),
        checksum_bytes=CHECKSUM_BYTES,
        file_bytes=len(content),
    )


def read_online_file(path: Path) -> tuple[OnlineHead, RunConfig, Tokenizer, list[Segment]]:
    """Read what `write_online_file` has written.

    Raises UsageError for files that are missing, foreign, damaged, or made to mislead.
    """
    sections = read_sections(path)
    if sections.keys() - {"PART", "ORDR", *_AS_THEY_ARE} != _SECTIONS:
        raise UsageError(f"{path}: not an online code; give a file made by `codelength send`")
    try:
        head = _parse_head(unpack_json(sections["HEAD"], path))
        head = replace(head, start=sections.get("STRT", b""), policy=sections.get("PLCY", b""))
        settings: dict[str, object] = {}
        if "PART" in sections:
            # Most codes are of texts without parts.
            from harness.data.parts import received_parts

            parts, settings = received_parts(sections["PART"], head.num_tokens)
            head = replace(head, parts=parts)
        if "ORDR" in sections:
            from eval.codec.permutation import read_order

            try:
                head = replace(head, order=read_order(sections["ORDR"], head.num_tokens))
            except ValueError as error:
                raise UsageError(f"malformed order of documents ({error}); fetch the file again") from None
        # Nothing is evaluated; the default would not fit into a short context.
        config = config_from(head.settings | settings | {"eval.chunk_bytes": 1})
        tokenizer = from_model_bytes(config.tokenizer.kind, sections["TOKN"])
        return head, config, tokenizer, read_segments(sections["SEGM"], head.world_size)
    except UsageError as error:
        raise UsageError(f"{path}: {' '.join(str(error).splitlines())}") from None


def _parse_head(content: dict) -> OnlineHead:
    kinds = {"settings": dict, "num_tokens": int, "raw_bytes": int, "sha256": str, "fingerprint": str}
    kinds |= {"environment": dict, "arithmetic": str}
    content.setdefault("raw_bytes", content.get("num_tokens"))
    environment, settings = content.get("environment", {}), content.get("settings", {})
    in_order = content.keys() == kinds.keys() and all(type(content[key]) is kind for key, kind in kinds.items())
    in_order = in_order and all(isinstance(value, str) and value.isprintable() for value in environment.values())
    # A dollar sign would have the value read from somewhere else; paths and names are not sent at all.
    in_order = in_order and not any("$" in str(value) for value in settings.values())
    in_order = in_order and all(map(_is_sent, settings))
    world_size = environment.get("world_size", "") if in_order else ""
    in_order = in_order and world_size.isdecimal() and len(world_size) <= _WORLD_SIZE_DIGITS and int(world_size) >= 1
    if not in_order or not (0 <= content["num_tokens"] <= MAX_TOKENS and 0 <= content["raw_bytes"] <= MAX_TOKENS):
        raise UsageError("malformed header; fetch the file again")
    return OnlineHead(**content)


def pack_segments(segments: list[Segment]) -> bytes:
    """Pack segments into their section."""
    return b"".join(
        segment.weights + b"".join(part.checksum + varint(len(part.stream)) + part.stream for part in segment.parts)
        for segment in segments
    )


def read_segments(packed: bytes, world_size: int) -> list[Segment]:
    """Inverse of `pack_segments`; raises UsageError where there are no segments of so many ranks."""
    segments, at = [], 0
    # So that a small file cannot make a receiver count to many ranks.
    if packed and len(packed) < _DIGEST_BYTES + world_size * _LEAST_PART_BYTES:
        raise UsageError(f"world_size={world_size}: more ranks than its segments have streams; fetch the file again")
    while at < len(packed):
        weights, parts = packed[at : at + _DIGEST_BYTES], []
        at += _DIGEST_BYTES
        for _ in range(world_size):
            checksum = packed[at : at + _DIGEST_BYTES]
            try:
                length, at = read_varint(packed, at + _DIGEST_BYTES)
            except ValueError:
                raise UsageError("malformed segments; fetch the file again") from None
            if length % WORD_BYTES:
                raise UsageError("malformed segments (a stream that is no words); fetch the file again")
            at += length
            parts.append(Part(checksum, packed[at - length : at]))
        segments.append(Segment(weights, parts))
    if at != len(packed):
        raise UsageError("malformed segments; fetch the file again")
    return segments
