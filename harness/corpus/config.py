"""Where text comes from: streams of documents as bytes, cut into a training and a held-out split.

The concatenation of the documents, without separators, is the corpus: every byte of it is coded.
"""

import itertools
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from harness.bounds import bound_problems, bounded
from harness.corpus.named import list_wiki40b, wiki40b_articles, wiki40b_from_hub, wiki_mini
from harness.corpus.readers import ON_NULL, TEXT
from harness.corpus.sources import Listing, describe, list_sources
from harness.errors import UsageError

KINDS = ("wiki-mini", "domains", "wiki40b", "files", "labels")
DOMAIN_NAMES = ("wiki", "bible", "python", "random")
SHUFFLE_SEEDS = {"train": 0, "heldout": 1}


@dataclass(kw_only=True, slots=True)
class CorpusConfig:
    """Which text is trained on, and which is held out."""

    kind: str = bounded("wiki-mini", choices=KINDS, words=f"unknown; use one of {', '.join(KINDS)}")
    """wiki-mini (packaged with gensim), domains (four texts from packages), wiki40b (English), files, or labels.

    The text of `labels` are the labels of a set, a byte each, which a classifier predicts from their inputs.
    """
    subset_bytes: int | None = bounded(None, least=1, words="must be at least 1; null uses the whole split")
    """Leading bytes of the training split that are used, of each part an equal share; None is all of them."""
    heldout_bytes: int = bounded(256_000, least=1)
    """Size of the held-out split: the end of wiki-mini or files, of each part an equal share; wiki40b's validation."""
    path: str | None = None
    """files: a file or folder; wiki40b: a local folder of its parquet files, None is the Hugging Face hub.

    labels: `digits`, `mnist-5k`, `mnist`, `fashion-mnist`, FILE.npz with x and y, or a folder of idx files.
    """
    heldout_path: str | None = None
    """files: a file or folder that is the held-out split, whole; None cuts it off the end of `path`."""
    parts: list[str] = field(default_factory=list)
    """files: entries of the folder `path` that are parts of the text, in this order; domains: some of its parts."""
    text_field: str = "text"
    """Field that holds the text in jsonl, json and parquet."""
    on_null: str = bounded("fail", choices=ON_NULL, words="unknown; use fail or skip")
    """What a record does whose text is null: fail ends the preparation, skip leaves the record out."""
    documents: str = "as-is"
    """Order in which documents are read: `as-is`, `random` (`random:1`), `shortest`, `longest`, `similar`, or a FILE.

    A FILE has the number of each document, a line each. The order is a part of an online code's file, and `receive`
    gives the text back in its own.
    """
    shuffle: bool = False
    """Permute the bytes of each split by itself, always alike: a control that leaves only frequencies to learn."""

    @property
    def part_names(self) -> list[str]:
        """Names of the parts of the text, in their order; none where it is one."""
        return [*DOMAIN_NAMES] if self.kind == "domains" and not self.parts else self.parts

    def problems(self) -> list[str]:
        """Every bad value, one line each that names key, value and remedy."""
        problems = bound_problems(self, "corpus.")
        if self.kind == "files" and not self.path:
            problems.append(f"corpus.path={self.path}: corpus.kind=files needs it; name a file or folder")
        if self.kind in ("wiki-mini", "domains") and self.path:
            problems.append(f"corpus.path={self.path}: {self.kind} is packaged; leave it null or use corpus.kind=files")
        if self.kind in KINDS and self.kind != "files" and self.heldout_path:
            problems.append(f"corpus.heldout_path={self.heldout_path}: only for corpus.kind=files; leave it null")
        if self.kind == "labels":
            problems.extend(self._label_problems())
        if not self.text_field:
            problems.append("corpus.text_field=: empty; name the field that holds the text, such as text")
        if self.part_names:
            # Most texts have none.
            from harness.data.parts import corpus_problems

            problems.extend(corpus_problems(self, self.part_names, DOMAIN_NAMES))
        return problems

    def _label_problems(self) -> list[str]:
        problems = []
        if not self.path:
            problems.append("corpus.path=null: corpus.kind=labels needs it; name a set such as digits, or FILE.npz")
        if self.parts or self.documents != "as-is":
            problems.append("corpus.parts, corpus.documents: labels have no parts and no documents; leave them out")
        return problems


class Corpus:
    """The two splits of a corpus; each source is read once, the training split first."""

    def __init__(self, config: CorpusConfig, text: Iterable[bytes] | None = None):
        """`text` is read in place of what `config` names.

        Raises UsageError where the corpus is missing or its configuration is wrong.
        """
        if problems := config.problems():
            raise UsageError("; ".join(problems))
        if config.documents != "as-is":
            from harness.corpus.arrangement import check_order

            check_order(config.documents)
        self._config = config
        self.listings: list[Listing] = []
        """What `path` and `heldout_path` hold, or the splits of a local Wiki-40B that have been read."""
        self._front: Iterator[bytes] | None = None
        """All but the end of a corpus whose end is held out."""
        self._tail: list[bytes] = []
        self.order: list[int] = []
        """Numbers of the documents of the training split in the order in which they were read, if they were ordered."""
        if config.kind == "files":
            self.listings = list_corpus(config)
        if text is not None:
            self._front = self._cut_off_tail(iter(text))
        elif config.kind == "wiki-mini":
            self._front = self._cut_off_tail(iter(wiki_mini()))
        elif config.kind == "files" and config.heldout_path is None:
            self._front = self._cut_off_tail(self._documents(self.listings[0]))

    def train(self) -> Iterator[bytes]:
        """Stream the documents of the training split, cut to `subset_bytes`, as UTF-8 bytes, in file order.

        The last may be a piece of a document where a cut falls inside it; a plain file or shuffled split comes in
        blocks. Raises UsageError, while iterating, where the corpus is empty, too small or damaged.
        """
        return self._finished(self._train(), "train") if self._config.documents == "as-is" else self._ordered()

    def heldout(self) -> Iterator[bytes]:
        """Stream the documents of the held-out split; where it is the end of the text, `train` is read first."""
        return self._finished(self._heldout(), "heldout")

    def record(self) -> dict:
        """Record what was read so far: each source with its reader and bytes, and what was left out and why."""
        sources = [source for listing in self.listings for source in listing.taken]
        return {
            "summary": self.what_was_read(),
            "read": [source.record() for source in sources],
            "left_out": dict(pair for listing in self.listings for pair in listing.left_out),
            **({"order": self.order} if self.order else {}),
        }

    def what_was_read(self) -> list[str]:
        """Describe the files that were read and those that were left out, in lines for people."""
        return [line for listing in self.listings for line in describe(listing)]

    def _train(self) -> Iterator[bytes]:
        config, key = self._config, "corpus.subset_bytes"
        if self._front is not None:
            yield from _window(self._front, config.subset_bytes, key)
            deque(self._front, maxlen=0)
        elif config.kind == "wiki40b":
            yield from _window(self._articles("train"), config.subset_bytes, key)
        else:
            yield from _window(self._documents(self.listings[0]), config.subset_bytes, key)

    def _heldout(self) -> Iterator[bytes]:
        config = self._config
        if self._front is not None:
            deque(self._front, maxlen=0)
            yield from self._tail
        elif config.kind == "wiki40b":
            yield from _window(self._articles("heldout"), config.heldout_bytes, "corpus.heldout_bytes")
        else:
            yield from _window(self._documents(self.listings[1]), None, "corpus.heldout_path")

    def _documents(self, listing: Listing) -> Iterator[bytes]:
        for source in listing.taken:
            documents = source.documents(self._config.text_field, self._config.on_null)
            is_one = source.reader == TEXT and self._config.documents != "as-is"
            yield from [b"".join(documents)] if is_one else documents

    def _articles(self, split: str) -> Iterator[bytes]:
        config = self._config
        if config.path is None:
            return wiki40b_from_hub(split, config.text_field, config.on_null)
        listing = list_wiki40b(Path(config.path), split)
        self.listings.append(listing)
        return wiki40b_articles(listing, config.text_field, config.on_null)

    def _cut_off_tail(self, stream: Iterator[bytes]) -> Iterator[bytes]:
        """All but the last `heldout_bytes`, which wait in memory and are left in `_tail` in the end."""
        heldout_bytes = self._config.heldout_bytes
        waiting: deque[bytes] = deque()
        waiting_bytes = front_bytes = 0
        for document in stream:
            waiting.append(document)
            waiting_bytes += len(document)
            while waiting_bytes - len(waiting[0]) >= heldout_bytes:
                first = waiting.popleft()
                waiting_bytes -= len(first)
                front_bytes += len(first)
                yield first
        cut = waiting_bytes - heldout_bytes
        if waiting_bytes == 0:
            raise UsageError(f"corpus.path={self._config.path}: the corpus is empty; name a file or folder with text")
        if front_bytes + cut <= 0:
            raise UsageError(
                f"corpus.heldout_bytes={heldout_bytes}: the corpus has only {waiting_bytes} bytes; "
                "lower it, or give corpus.heldout_path"
            )
        first = waiting.popleft()
        self._tail = [first[cut:], *waiting]
        if cut:
            yield first[:cut]

    def _ordered(self) -> Iterator[bytes]:
        """The documents of the training split in the order of `corpus.documents`; all of them wait in memory."""
        from harness.corpus.arrangement import document_order

        documents = [document for document in self._train() if document]
        if self._config.shuffle:
            # Of the same lengths, so that an order has as much to choose from.
            text = b"".join(self._finished(iter(documents), "train"))
            ends = list(itertools.accumulate(map(len, documents)))
            documents = [text[start:end] for start, end in zip([0, *ends], ends, strict=False)]
        self.order = document_order(self._config.documents, documents).tolist()
        for number in self.order:
            yield documents[number]

    def _finished(self, stream: Iterator[bytes], split: str) -> Iterator[bytes]:
        if not self._config.shuffle:
            return stream
        # It needs numpy, which reading does not.
        from harness.corpus.arrangement import shuffled

        return shuffled(stream, SHUFFLE_SEEDS[split])


def list_corpus(config: CorpusConfig) -> list[Listing]:
    """List the files of text that `corpus.kind=files` names.

    Raises UsageError where one is missing or has no text.
    """
    if config.parts:
        from harness.corpus.arrangement import part_configs

        return [listing for part in part_configs(config) for listing in list_corpus(part)]
    places = (("corpus.path", config.path), ("corpus.heldout_path", config.heldout_path))
    return [list_sources(key, path, config.text_field) for key, path in places if path]


def read_documents(config: CorpusConfig, split: str) -> Iterator[bytes]:
    """Read the documents of one split of `Corpus`, "train" or "heldout".

    Raises UsageError, also while iterating, if the corpus is missing, empty, too small or damaged.
    """
    if split not in SHUFFLE_SEEDS:
        raise ValueError(f"split={split}: use train or heldout")
    if config.part_names:
        from harness.corpus.arrangement import PartedCorpus

        parts = PartedCorpus(config)
        return parts.train() if split == "train" else parts.heldout()
    corpus = Corpus(config)
    return corpus.train() if split == "train" else corpus.heldout()


def _window(stream: Iterator[bytes], num_bytes: int | None, key: str) -> Iterator[bytes]:
    """The leading `num_bytes` (None: all) of `stream`; UsageError naming `key` if it ends before."""
    position = 0
    for document in stream:
        piece = document if num_bytes is None else document[: num_bytes - position]
        position += len(piece)
        if piece:
            yield piece
        if position == num_bytes:
            return
    if position == 0:
        raise UsageError(f"{key}: the corpus is empty; check corpus.path and corpus.text_field")
    if num_bytes is not None:
        raise UsageError(f"{key}={num_bytes}: the split has only {position} bytes; use at most {position}")
