"""How a text is put together: parts one after another, documents or bytes as they stand or permuted."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from harness.corpus.config import Corpus, CorpusConfig
from harness.corpus.named import DOMAINS
from harness.errors import UsageError
from harness.files import reason

AS_IS = "as-is"
ORDERS = (AS_IS, "random", "shortest", "longest", "similar")
MAX_DOCUMENTS, MAX_COMPARED_DOCUMENTS = 1_000_000, 8192
_GRAM_BYTES, _NUM_HASHES = 5, 1 << 14

BLOCK_BYTES = 1 << 20
# numpy draws from urns of fewer balls than this.
MAX_BYTES = 10**9 - 1
_NUM_BYTE_VALUES = 256
_ENTRIES_SHOWN = 8


class PartedCorpus:
    """The two splits of a corpus of parts, each read as a `Corpus` of its own, one after another."""

    def __init__(self, config: CorpusConfig):
        """Raises UsageError where a part is missing or the configuration is wrong."""
        if problems := config.problems():
            raise UsageError("; ".join(problems))
        self.names = config.part_names
        texts = [DOMAINS[name]() if config.kind == "domains" else None for name in self.names]
        self._parts = [Corpus(part, text) for part, text in zip(part_configs(config), texts, strict=True)]
        self.num_documents: dict[str, list[int]] = {"train": [], "heldout": []}
        """Documents of each part that have been read, those without text left out."""

    def train(self) -> Iterator[bytes]:
        """Stream the documents of the training split of each part."""
        return self._counted("train", [part.train for part in self._parts])

    def heldout(self) -> Iterator[bytes]:
        """Stream the documents of the held-out split of each part."""
        return self._counted("heldout", [part.heldout for part in self._parts])

    def record(self) -> dict:
        """Record what was read so far, as `Corpus.record` does, and how many documents each part has."""
        records = [part.record() for part in self._parts]
        return {
            "summary": [line for part in self._parts for line in part.what_was_read()],
            "read": [source for record in records for source in record["read"]],
            "left_out": {name: why for record in records for name, why in record["left_out"].items()},
            "parts": {"names": self.names, **self.num_documents},
            **self._order(),
        }

    def _order(self) -> dict[str, list[int]]:
        """The orders of all parts as one of all documents; nothing where they have none."""
        starts = itertools.accumulate((len(part.order) for part in self._parts), initial=0)
        order = [start + number for start, part in zip(starts, self._parts, strict=False) for number in part.order]
        return {"order": order} if order else {}

    def _counted(self, split: str, parts: list[Callable[[], Iterator[bytes]]]) -> Iterator[bytes]:
        counts = self.num_documents[split]
        counts.clear()
        for part in parts:
            counts.append(0)
            for document in filter(None, part()):
                counts[-1] += 1
                yield document


def open_corpus(config: CorpusConfig) -> Corpus | PartedCorpus:
    """Open a corpus, of parts or of one; raises UsageError where it is missing or its configuration is wrong."""
    return PartedCorpus(config) if config.part_names else Corpus(config)


def part_configs(config: CorpusConfig) -> list[CorpusConfig]:
    """Make the configuration of each part as a corpus of its own.

    Raises UsageError where the folder has no such entry.
    """
    names, configs = config.part_names, []
    kind = "wiki-mini" if config.kind == "domains" else config.kind
    for index, name in enumerate(names):
        paths = [_entry(key, getattr(config, key), name) for key in ("path", "heldout_path")]
        subset, heldout = (
            size and size // len(names) + (index < size % len(names))
            for size in (config.subset_bytes, config.heldout_bytes)
        )
        part = replace(config, kind=kind, parts=[], subset_bytes=subset, heldout_bytes=heldout or 1)
        part.path, part.heldout_path = paths
        configs.append(part)
    return configs


def _entry(key: str, folder: str | None, name: str) -> str | None:
    """The path of a part in a folder, if there is one; raises UsageError where the folder has no such entry."""
    if not folder:
        return None
    path = Path(folder) / name
    if not path.exists():
        entries = sorted(entry.name for entry in Path(folder).glob("*"))[:_ENTRIES_SHOWN]
        raise UsageError(
            f"corpus.parts={name}: no such entry of corpus.{key}={folder}; it has {', '.join(entries) or 'nothing'}"
        )
    return str(path)


def shuffled(stream: Iterable[bytes], seed: int) -> Iterator[bytes]:
    """Permute the bytes of `stream`, all orders being equally likely; stream and seed decide the order.

    The bytes are counted, and then drawn from an urn with these counts without putting any back, so memory does not
    grow with the stream. Raises UsageError where it holds more than `MAX_BYTES`.
    """
    left, num_bytes = np.zeros(_NUM_BYTE_VALUES, dtype=np.int64), 0
    for document in stream:
        num_bytes += len(document)
        if num_bytes > MAX_BYTES:
            raise UsageError(f"corpus.shuffle=true: permutes at most {MAX_BYTES} bytes; set corpus.subset_bytes")
        left += np.bincount(np.frombuffer(document, dtype=np.uint8), minlength=_NUM_BYTE_VALUES)
    generator = np.random.default_rng(seed)
    values = np.arange(_NUM_BYTE_VALUES, dtype=np.uint8)
    while num_bytes:
        block_bytes = min(BLOCK_BYTES, num_bytes)
        drawn = generator.multivariate_hypergeometric(left, block_bytes, method="marginals")
        left, num_bytes = left - drawn, num_bytes - block_bytes
        yield generator.permutation(np.repeat(values, drawn)).tobytes()


def document_order(kind: str, documents: list[bytes]) -> np.ndarray:
    """Order documents: which of them is read first, second and so on, int64 of shape (documents,).

    `kind` is one of `ORDERS`, `random` with a seed as in `random:3`, or the path of a file with a permutation. Raises
    UsageError for other words, a file without a permutation of so many documents, and too many documents.
    """
    count, (name, _, seed) = len(documents), kind.partition(":")
    most = MAX_COMPARED_DOCUMENTS if kind == "similar" else MAX_DOCUMENTS
    if count > most:
        raise UsageError(f"corpus.documents={kind}: orders at most {most:,} documents, not {count:,}; use as-is")
    lengths = np.array([len(document) for document in documents])
    if name == "random" and (not seed or seed.isdecimal()):
        words = np.random.Philox(key=int(seed or 0)).random_raw(count)
        return np.argsort(words, kind="stable")
    if kind == "shortest":
        return np.argsort(lengths, kind="stable")
    if kind == "longest":
        return np.argsort(-lengths, kind="stable")
    return _chain(documents) if kind == "similar" else _written(kind, count)


def check_order(kind: str) -> None:
    """Raises UsageError where a word names neither an order nor a file that may hold one."""
    name, _, seed = kind.partition(":")
    if not (kind in ORDERS or (name == "random" and seed.isdecimal()) or Path(kind).is_file()):
        raise UsageError(
            f"corpus.documents={kind}: unknown; use one of {', '.join(ORDERS)}, or the path of a file with an order"
        )


def _written(path: str, count: int) -> np.ndarray:
    """The permutation in a file: a number a line, from 0 on."""
    try:
        order = np.array(Path(path).read_text().split(), dtype=np.int64)
    except OSError as error:
        raise UsageError(f"corpus.documents={path}: cannot be read ({reason(error)})") from None
    except (ValueError, OverflowError):
        order = np.array([-1])
    if not np.array_equal(np.sort(order), np.arange(count)):
        raise UsageError(
            f"corpus.documents={path}: no permutation of the {count:,} documents; write each number from 0 to "
            f"{count - 1} once, a line each"
        )
    return order


def _chain(documents: list[bytes]) -> np.ndarray:
    """Begin with the first document, and go on with the most similar of those that are left."""
    vectors = np.stack([_grams(document) for document in documents])
    order, left = [0], np.ones(len(documents), dtype=bool)
    left[0] = False
    while left.any():
        order.append(int(np.argmax(np.where(left, vectors @ vectors[order[-1]], -1.0))))
        left[order[-1]] = False
    return np.array(order)


def _grams(document: bytes) -> np.ndarray:
    """log(1 + counts) of hashed 5-grams (2^14,), float32, of length 1."""
    symbols = np.frombuffer(document, dtype=np.uint8).astype(np.uint64)
    count = max(0, len(symbols) - _GRAM_BYTES + 1)
    words = np.zeros(count, dtype=np.uint64)
    for place in range(_GRAM_BYTES):
        words |= symbols[place : place + count] << np.uint64(8 * place)
    hashes = (words * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(64 - 14)
    logs = np.log1p(np.bincount(hashes.astype(np.int64), minlength=_NUM_HASHES)).astype(np.float32)
    return logs / max(float(np.sqrt((logs * logs).sum())), 1e-30)
