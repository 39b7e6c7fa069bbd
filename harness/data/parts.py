"""Parts of a text: ranges of its sequences, such as one for each of several sources, and settings that name them."""

import json
import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from harness.data.schedule import MAX_STAGES, TrainConfig
from harness.errors import UsageError

MAX_PARTS = 256
SHARES = ("natural", "uniform", "ado")


@dataclass(frozen=True, slots=True)
class Parts:
    """Where the parts of a text begin; a sequence belongs to the part in which it begins."""

    names: tuple[str, ...]
    starts: np.ndarray
    """First token of each part (parts,), int64."""

    def bounds(self, num_tokens: int, context: int) -> np.ndarray:
        """First sequence of each part and the number of all (parts + 1,), int64, for sequences of `context` tokens."""
        return -(-np.append(self.starts, num_tokens) // context)

    def of_sequences(self, sequences: np.ndarray, context: int) -> np.ndarray:
        """Index of the part of each of `sequences` (n,), int64."""
        return np.searchsorted(self.starts, sequences * context, side="right") - 1

    def to_bytes(self) -> bytes:
        """The first token of each part as u64, little-endian."""
        return self.starts.astype("<u8").tobytes()

    def indices(self, names: list[str]) -> list[int]:
        """Index of each of these parts."""
        return [self.names.index(name) for name in names]


def received_parts(content: bytes, num_tokens: int) -> tuple[Parts, dict[str, object]]:
    """Read what `Parts.to_bytes` has written, named by numbers, with the settings of a corpus that has such parts.

    Raises UsageError where there are no such parts in `num_tokens`.
    """
    starts = np.frombuffer(content[: len(content) // 8 * 8], dtype="<u8")
    is_whole = len(content) == 8 * len(starts) and 2 <= len(starts) <= MAX_PARTS
    if not is_whole or starts[0] != 0 or (starts[1:] <= starts[:-1]).any() or starts[-1] >= num_tokens:
        raise UsageError("malformed parts; fetch the file again")
    names = tuple(map(str, range(len(starts))))
    return Parts(names, starts.astype(np.int64)), {"corpus.kind": "files", "corpus.path": ".", "corpus.parts": [*names]}


def stages(shares: str, natural: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """Shares (parts,) that `train.shares` names, each from a number of tokens on; `natural` are those of the text.

    Raises ValueError with what they must be.
    """
    num_parts = len(natural)
    if shares in ("natural", "ado"):
        return [(0, natural)]
    if shares == "uniform":
        return [(0, np.full(num_parts, 1 / num_parts))]
    try:
        given = json.loads(shares)
        rows = given if isinstance(given[0], list) else [[0, *given]]
        table = np.array(rows, dtype=np.float64)
        starts, weights = table[:, 0], table[:, 1:]
        is_order = starts[0] == 0 and (np.diff(starts) > 0).all() and len(rows) <= MAX_STAGES
        if not is_order or weights.shape[1] != num_parts or not (weights > 0).all() or not np.isfinite(table).all():
            raise ValueError
    except (ValueError, TypeError, IndexError, KeyError, RecursionError):
        raise ValueError(
            f"must be {', '.join(SHARES)}, {num_parts} weights above 0, such as [0.5, 0.3, 0.2], or a list of such, "
            "each with the tokens read before it in front, from 0 on and ascending"
        ) from None
    return [(math.ceil(start), row / row.sum()) for start, row in zip(starts.tolist(), weights, strict=True)]


class CorpusSettings(Protocol):
    """The settings of a corpus that say how large its parts are."""

    kind: str
    subset_bytes: int | None
    heldout_bytes: int


def corpus_problems(corpus: CorpusSettings, names: list[str], domains: tuple[str, ...]) -> list[str]:
    """List what is wrong with the parts of a corpus, a line each; `domains` are those that come from packages."""
    problems = []
    if corpus.kind in ("wiki-mini", "wiki40b"):
        problems.append(f"corpus.parts={names}: only for corpus.kind=files and domains; leave it empty")
    if not 2 <= len(names) <= MAX_PARTS:
        problems.append(f"corpus.parts: names {len(names)}; must be 2 to {MAX_PARTS}, or none")
    if len(set(names)) < len(names):
        problems.append(f"corpus.parts={names}: each can be named once")
    for name in names:
        if corpus.kind == "domains" and name not in domains:
            problems.append(f"corpus.parts={name}: no such part of domains; it has {', '.join(domains)}")
        elif not name or "/" in name or name in (".", ".."):
            problems.append(f"corpus.parts={name}: must name an entry of the folder corpus.path, without a slash")
    for key in ("subset_bytes", "heldout_bytes"):
        size = getattr(corpus, key)
        if size is not None and 0 < size < len(names):
            problems.append(f"corpus.{key}={size}: less than a byte for each of {len(names)} parts; raise it")
    return problems


def part_problems(config: TrainConfig, names: list[str]) -> list[str]:
    """List what is wrong with the settings of `train` that speak of parts, a line each; `names` are the text's."""
    if not names:
        key, value = next(
            (key, value)
            for key, value in (("shares", config.shares), ("last", config.last), ("untrained", config.untrained))
            if value and value != "natural"
        )
        return [f"train.{key}={value}: the text has no parts; name them in corpus.parts, or use corpus.kind=domains"]
    problems = []
    for key in ("last", "untrained"):
        chosen = getattr(config, key)
        problems += [
            f"train.{key}={name}: no such part; use some of {', '.join(names)}" for name in chosen if name not in names
        ]
        if {*names} <= {*chosen}:
            problems.append(f"train.{key}={chosen}: names every part; leave one out")
    try:
        stages(config.shares, np.full(len(names), 1 / len(names)))
    except ValueError as error:
        problems.append(f"train.shares={config.shares}: {error}")
    if config.is_mixed and config.order == "streams":
        problems.append("train.order=streams: reads the text in its own order; use shuffled or sequential with parts")
    if config.shares == "ado" and config.retrain_at:
        problems.append("train.shares=ado: a block code learns nothing between its blocks; use no train.retrain_at")
    return problems
