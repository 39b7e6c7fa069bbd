"""Changes of archives and online codes that know the format: fields, sections and segments, with right checksums."""

import hashlib
import random
from pathlib import Path

from eval.codec.container import CHECKSUM_BYTES, TAGS, pack_json, pack_sections, read_sections, unpack_json
from eval.online.file import Part, Segment, pack_segments, read_segments
from harness.errors import UsageError

NUMBERS = (0, 1, 2, 3, 7, 8, 15, 16, 31, 32, 255, 4096, 65536, 2**20, 2**31, 2**32, 2**40, 2**63, 2**64, 2**70)
FLOATS = (0.0, 0.5, 1.0, 2.0, 1e-300, 1e12, 1e300, float("inf"), float("-inf"), float("nan"))
OTHERS = (None, True, False, "", "0", "modern", "published", "portable", "9" * 30, "${oc.env:HOME}", "\n", [], {}, [1])
# Settings that an online code may name, beside those that it does.
SETTINGS = {
    "seed": NUMBERS,
    "train.order": ("sequential", "streams", "x"),
    "train.replays": NUMBERS,
    "train.retrain_at": ([0.5], [2.0], ["nan"]),
    "train.shares": ("uniform", "ado", "[1,2]", "[[0,1,1],[90,1,9]]", "[0,1]", "x"),
    "train.last": (["0"], ["1"], ["0", "1"], ["2"], "x"),
    "train.untrained": (["0"], ["1"], ["0", "1"], ["2"]),
    "train.batch_schedule": ([[0, 4], [20, 16]], [[0, 0]], [[0, 2**40]], [[5, 8]]),
    "train.micro_batch_sequences": NUMBERS,
    "online.experts": (["ngram"], ["uniform", "frequencies"], ["network"], ["x"]),
    "online.models": (["8x1x1"], ["8x1x1"] * 20, ["999999x9999x1"]),
    "online.checkpoints": NUMBERS,
    "online.ema": FLOATS,
    "online.calibrate": (True, 2),
    "optimizer.kind": ("adamw", "x"),
    "optimizer.learning_rate": FLOATS,
    "rule.kind": ("rl1", "l1", "x"),
    "rule.alpha": FLOATS,
    "backend.name": ("deepspeed", "x"),
    "backend.device": ("cuda", "x"),
    "model.architecture": ("published", "x"),
    "tokenizer.kind": ("sentencepiece", "x"),
}


def mutated(content: bytes, others: list[bytes], path: Path, rng: random.Random) -> bytes:
    """`content` with one to three changes; sections may come from `others`. `path` is a place for work."""
    if rng.random() < 0.1:
        return damaged(content, rng)
    sections = _sections(content, path)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        rng.choice((_change_head, _change_head, _change_section, _change_segments))(sections, others, path, rng)
    packed = pack_sections(sections or {"HEAD": b""})
    if rng.random() < 0.05:
        body = damaged(packed[:-CHECKSUM_BYTES], rng)
        packed = body + hashlib.sha256(body).digest()[:CHECKSUM_BYTES]
    return packed


def _sections(content: bytes, path: Path) -> dict[str, bytes]:
    path.write_bytes(content)
    return read_sections(path)


def damaged(content: bytes, rng: random.Random) -> bytes:
    """Flipped bits, a cut, an insertion or a repetition."""
    at, kind = rng.randrange(len(content) + 1), rng.randrange(6)
    if kind < 2 and content:
        at = min(at, len(content) - 1)
        return content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :]
    if kind == 2:
        return content[:at]
    if kind == 3:
        return content + (bytes(4 * rng.randrange(1, 300)) if rng.random() < 0.5 else rng.randbytes(rng.randrange(9)))
    if kind == 4:
        return content[:at] + rng.randbytes(rng.randrange(1, 40)) + content[at:]
    return rng.choice((b"", content * 2, bytes(len(content)), b"\xff" * len(content), rng.randbytes(len(content))))


def value(old: object, rng: random.Random) -> object:
    """Something else in the place of a number, a text or anything."""
    if type(old) is int and rng.random() < 0.5:
        return old + rng.choice((-1, 1, 2, -old - 1, old, 15 * old))
    if type(old) is str and old and rng.random() < 0.3:
        return old[:-1] + rng.choice("0f\n")
    return rng.choice(rng.choice((NUMBERS, FLOATS, OTHERS)))


def _change_head(sections: dict[str, bytes], others: list[bytes], path: Path, rng: random.Random) -> None:
    try:
        head = unpack_json(sections.get("HEAD", b""), path)
    except UsageError:
        # It is no JSON, or no longer.
        sections["HEAD"] = damaged(sections.get("HEAD", b""), rng)
        return
    place = head
    inner = [key for key, value in head.items() if isinstance(value, dict)]
    if inner and rng.random() < 0.5:
        place = head[rng.choice(inner)]
    if place is head.get("settings") and rng.random() < 0.6:
        key = rng.choice([*SETTINGS])
        place[key] = rng.choice(SETTINGS[key])
    elif place and rng.random() < 0.9:
        key = rng.choice([*place])
        place[key] = value(place[key], rng)
    elif place and rng.random() < 0.5:
        del place[rng.choice([*place])]
    else:
        place[rng.choice(("more", "world_size", "model", "seed"))] = value(1, rng)
    sections["HEAD"] = pack_json(head)


def _change_section(sections: dict[str, bytes], others: list[bytes], path: Path, rng: random.Random) -> None:
    if not sections:
        return
    tag, kind = rng.choice([*sections]), rng.random()
    if kind < 0.7:
        sections[tag] = damaged(sections[tag], rng)
    elif kind < 0.9:
        sections[tag] = _sections(rng.choice(others), path).get(tag, b"")
    elif kind < 0.95:
        sections[rng.choice(TAGS)] = sections.pop(tag)
    else:
        sections.pop(tag)


def _change_segments(sections: dict[str, bytes], others: list[bytes], path: Path, rng: random.Random) -> None:
    """A stream of an online code with its length; other files have one stream, their last section."""
    try:
        segments = read_segments(sections.get("SEGM", b""), 1)
    except UsageError:
        segments = []
    if not segments:
        for tag in sections.keys() & {"DATA", "FLOW", "LABL", "SEGM"}:
            sections[tag] = damaged(sections[tag], rng)
        return
    index = min(len(segments) - 1, int(rng.expovariate(1.5)))
    (part,) = segments[index].parts
    segments[index] = Segment(segments[index].weights, [Part(part.checksum, damaged(part.stream, rng))])
    sections["SEGM"] = pack_segments(segments)
