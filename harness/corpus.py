"""Where text comes from: streams of documents as bytes, cut into a training and a held-out split.

The concatenation of the documents, without separators, is the corpus: every byte of it is coded.
"""

import ast
import bz2
import functools
import importlib.util
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from harness.errors import UsageError

KINDS = ("wiki-mini", "wiki40b", "files")
WIKI_MINI_FILE = "test/test_data/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
WIKI40B_HUB_NAME = "google/wiki40b"
WIKI40B_LANGUAGE = "en"
WIKI40B_SPLITS = {"train": "train", "heldout": "validation"}
HUB_TIMEOUT_SECONDS = 10
RAW_BLOCK_BYTES = 1 << 20
PARQUET_BATCH_ROWS = 100
SHUFFLE_SEEDS = {"train": 0, "heldout": 1}


@dataclass(kw_only=True, slots=True)
class CorpusConfig:
    """Which text is trained on, and which is held out."""

    kind: str = "wiki-mini"
    """Source of the text: wiki-mini (packaged with gensim), wiki40b (English) or files (text, jsonl, parquet)."""
    subset_bytes: int | None = None
    """Leading bytes of the training split that are used; None is all of them."""
    heldout_bytes: int = 256_000
    """Size of the held-out split in bytes: the end of wiki-mini or files, the beginning of wiki40b's validation."""
    path: str | None = None
    """files: a file or folder; wiki40b: a local folder of its parquet files, None is the Hugging Face hub."""
    heldout_path: str | None = None
    """files: a file or folder that is the held-out split, whole; None cuts it off the end of `path`."""
    text_field: str = "text"
    """Field that holds the text in jsonl and parquet."""
    shuffle: bool = False
    """Permute the bytes of each split by itself, always alike: a control that leaves only frequencies to learn."""

    def problems(self) -> list[str]:
        """Every bad value, one line each that names key, value and remedy."""
        found = []
        if self.kind not in KINDS:
            found.append(f"corpus.kind={self.kind}: unknown; use wiki-mini, wiki40b or files")
        if self.subset_bytes is not None and self.subset_bytes < 1:
            found.append(f"corpus.subset_bytes={self.subset_bytes}: must be at least 1; null uses the whole split")
        if self.heldout_bytes < 1:
            found.append(f"corpus.heldout_bytes={self.heldout_bytes}: must be at least 1")
        if self.kind == "files" and not self.path:
            found.append(f"corpus.path={self.path}: corpus.kind=files needs it; name a file or folder")
        if self.kind == "wiki-mini" and self.path:
            found.append(f"corpus.path={self.path}: wiki-mini is packaged; leave it null or use corpus.kind=files")
        if self.kind in KINDS and self.kind != "files" and self.heldout_path:
            found.append(f"corpus.heldout_path={self.heldout_path}: only for corpus.kind=files; leave it null")
        if not self.text_field:
            found.append("corpus.text_field=: empty; name the field that holds the text, such as text")
        return found


def documents(config: CorpusConfig, split: str) -> Iterator[bytes]:
    """Documents of `split` ("train", cut to `subset_bytes`, or "heldout") as UTF-8 bytes, in file order, streamed.

    The first and last may be pieces of a document where a cut falls inside it; a plain file or shuffled split comes in
    blocks. Raises UsageError, also while iterating, if the corpus is missing, empty, too small or damaged.
    """
    if split not in WIKI40B_SPLITS:
        raise ValueError(f"split={split}: use train or heldout")
    if problems := config.problems():
        raise UsageError("; ".join(problems))
    if config.shuffle:
        # It needs numpy, which reading does not.
        from harness.shuffle import shuffled

        return shuffled(_in_order(config, split), SHUFFLE_SEEDS[split])
    return _in_order(config, split)


def _in_order(config: CorpusConfig, split: str) -> Iterator[bytes]:
    """The documents of a split as they lie in its source."""
    if config.kind == "wiki40b":
        limit, key = _limit_bytes(config, split)
        return _window(_wiki40b(config, split), 0, limit, key)
    if config.kind == "wiki-mini":
        pages = _wiki_mini()
        return _cut_at_end(config, split, lambda: iter(pages), sum(map(len, pages)))
    files = _list_files("corpus.path", config.path)
    if config.heldout_path is None:
        total_bytes = sum(_file_bytes(file, config.text_field) for file in files)
        return _cut_at_end(config, split, lambda: _read_files(files, config.text_field), total_bytes)
    if split == "train":
        return _window(_read_files(files, config.text_field), 0, *_limit_bytes(config, split))
    files = _list_files("corpus.heldout_path", config.heldout_path)
    return _window(_read_files(files, config.text_field), 0, None, "corpus.heldout_path")


def _limit_bytes(config: CorpusConfig, split: str) -> tuple[int | None, str]:
    """Bytes to take from the beginning of a split that is stored on its own, and the key that says so."""
    if split == "train":
        return config.subset_bytes, "corpus.subset_bytes"
    return config.heldout_bytes, "corpus.heldout_bytes"


def _cut_at_end(
    config: CorpusConfig, split: str, read: Callable[[], Iterator[bytes]], total_bytes: int
) -> Iterator[bytes]:
    """One split of a corpus whose last `heldout_bytes` are held out."""
    train_bytes = total_bytes - config.heldout_bytes
    if total_bytes == 0:
        raise UsageError(f"corpus.path={config.path}: the corpus is empty; name a file or folder with text")
    if train_bytes <= 0:
        raise UsageError(
            f"corpus.heldout_bytes={config.heldout_bytes}: the corpus has only {total_bytes} bytes; "
            "lower it, or give corpus.heldout_path"
        )
    if split == "heldout":
        return _window(read(), train_bytes, config.heldout_bytes, "corpus.heldout_bytes")
    subset_bytes = config.subset_bytes
    if subset_bytes is not None and subset_bytes > train_bytes:
        raise UsageError(_too_few("corpus.subset_bytes", subset_bytes, train_bytes))
    return _window(read(), 0, subset_bytes or train_bytes, "corpus.subset_bytes")


def _window(stream: Iterator[bytes], start: int, num_bytes: int | None, key: str) -> Iterator[bytes]:
    """Bytes `start` to `start + num_bytes` (None: the end) of `stream`; UsageError naming `key` if it ends before."""
    position = 0
    stop = None if num_bytes is None else start + num_bytes
    for document in stream:
        piece = document[max(start - position, 0) : None if stop is None else stop - position]
        position += len(document)
        if piece:
            yield piece
        if stop is not None and position >= stop:
            return
    if position <= start:
        raise UsageError(f"{key}: the corpus is empty; check corpus.path and corpus.text_field")
    if stop is not None:
        raise UsageError(_too_few(key, num_bytes, position - start))


def _too_few(key: str, wanted_bytes: int, found_bytes: int) -> str:
    return f"{key}={wanted_bytes}: the split has only {found_bytes} bytes; use at most {found_bytes}"


@functools.cache
def _wiki_mini() -> list[bytes]:
    """Bodies of the 206 `<text>` elements of the dump that gensim ships, XML entities left as they are."""
    # Finding the package without importing it saves seconds.
    package = importlib.util.find_spec("gensim")
    if package is None:
        raise UsageError("corpus.kind=wiki-mini: gensim is not installed; run pip install 'codelength[wiki-mini]'")
    file = Path(package.submodule_search_locations[0]) / WIKI_MINI_FILE
    with _readable(file):
        dump = bz2.decompress(file.read_bytes())
    return re.findall(rb"<text[^>]*?(?:/>|>(.*?)</text>)", dump, re.DOTALL)


def _wiki40b(config: CorpusConfig, split: str) -> Iterator[bytes]:
    """Articles of one split of Wiki-40B (en), from the hub or from a local folder."""
    # Heavy import (2 s) that the other corpora do not need.
    import datasets
    import huggingface_hub

    name, field = WIKI40B_SPLITS[split], config.text_field
    if config.path is None:
        key = f"corpus.kind=wiki40b: cannot read {WIKI40B_HUB_NAME} from the Hugging Face hub"
        remedy = "check the network, or set corpus.path to a local folder of its parquet files"
    else:
        key = f"corpus.path={config.path}"
        remedy = "use a folder of train*.parquet and validation*.parquet with fields wikidata_id, text, version_id"
        if not Path(config.path).is_dir():
            raise UsageError(f"{key}: no such folder; {remedy}")
    try:
        if config.path is None:
            # One request without retries, so that a machine without network says so at once.
            huggingface_hub.HfApi().dataset_info(WIKI40B_HUB_NAME, timeout=HUB_TIMEOUT_SECONDS)
            stream = datasets.load_dataset(WIKI40B_HUB_NAME, WIKI40B_LANGUAGE, split=name, streaming=True)
        else:
            stream = datasets.load_dataset("parquet", data_dir=config.path, split=name, streaming=True)
        if stream.column_names and field not in stream.column_names:
            raise UsageError(_no_field(key, field, stream.column_names))
        batches = stream.select_columns([field]).with_format("arrow").iter(batch_size=PARQUET_BATCH_ROWS)
        for batch in batches:
            for text in batch[field].to_pylist():
                yield _article_bytes(key, text)
    except UsageError:
        raise
    except Exception as error:
        # The two libraries raise errors of many kinds here (httpx, fsspec, arrow, their own): all mean "cannot read".
        raise UsageError(f"{key}: {_first_line(error)}; {remedy}") from error


def _article_bytes(source: str, text: object) -> bytes:
    """UTF-8 bytes of a Wiki-40B article.

    Copies made from the original records hold the printed form of the bytes (b'\\n_START_ARTICLE_...') as a string:
    it is turned back. No article begins like this itself, since each begins with its marker.
    """
    if isinstance(text, str) and text.startswith((r"b'\n_START_ARTICLE_", r'b"\n_START_ARTICLE_')):
        try:
            return ast.literal_eval(text)
        except (ValueError, SyntaxError) as error:
            raise UsageError(f"{source}: damaged article {text[:40]!r}; fetch the parquet files again") from error
    return _text_bytes(source, text)


def _list_files(key: str, path: str) -> list[Path]:
    """The file itself, or all files below a folder, sorted by their path in it; hidden ones are left out."""
    root = Path(path)
    if root.is_file():
        return [root]
    if not root.is_dir():
        raise UsageError(f"{key}={path}: no such file or folder; name an existing one")
    found = {file.relative_to(root).as_posix(): file for file in root.rglob("*") if file.is_file()}
    files = [file for name, file in sorted(found.items()) if not re.search(r"(^|/)\.", name)]
    if not files:
        raise UsageError(f"{key}={path}: the folder has no files; put .txt, .jsonl or .parquet files into it")
    return files


def _file_bytes(file: Path, field: str) -> int:
    """Bytes of text in one file."""
    if file.suffix in (".jsonl", ".parquet"):
        return sum(map(len, _read_files([file], field)))
    return file.stat().st_size


def _read_files(files: list[Path], field: str) -> Iterator[bytes]:
    for file in files:
        with _readable(file):
            if file.suffix == ".jsonl":
                yield from _read_jsonl(file, field)
            elif file.suffix == ".parquet":
                yield from _read_parquet(file, field)
            else:
                with file.open("rb") as handle:
                    while block := handle.read(RAW_BLOCK_BYTES):
                        yield block


def _read_jsonl(file: Path, field: str) -> Iterator[bytes]:
    with file.open("rb") as handle:
        for number, line in enumerate(handle, start=1):
            if line.isspace():
                continue
            source = f"{file}, line {number}"
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UsageError(f"{source}: not JSON ({_first_line(error)}); correct or remove the line") from error
            if not isinstance(record, dict):
                raise UsageError(f"{source}: not a JSON object; each line must be one with corpus.text_field={field}")
            if field not in record:
                raise UsageError(_no_field(source, field, list(record)))
            yield _text_bytes(source, record[field])


def _read_parquet(file: Path, field: str) -> Iterator[bytes]:
    # Imported here because the other kinds of file do not need it.
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(file) as parquet:
        if field not in parquet.schema_arrow.names:
            raise UsageError(_no_field(str(file), field, parquet.schema_arrow.names))
        for batch in parquet.iter_batches(batch_size=PARQUET_BATCH_ROWS, columns=[field]):
            for text in batch[field].to_pylist():
                yield _text_bytes(str(file), text)


def _text_bytes(source: str, text: object) -> bytes:
    """`text` as UTF-8 bytes; lone surrogates, which JSON can hold, are kept as their three bytes."""
    if isinstance(text, bytes):
        return text
    if isinstance(text, str):
        return text.encode("utf-8", "surrogatepass")
    raise UsageError(f"{source}: the text is {type(text).__name__}, not a string; check corpus.text_field")


def _no_field(source: str, field: str, names: list[str]) -> str:
    return f"{source}: no field corpus.text_field={field}; set it to one of: {', '.join(names)}"


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


@contextmanager
def _readable(file: Path) -> Iterator[None]:
    """Turns what the system or a decoder says about a file into one line."""
    try:
        yield
    # pyarrow's errors are ValueError or OSError; bz2 raises OSError, or ValueError at an early end.
    except (OSError, ValueError, EOFError) as error:
        raise UsageError(f"{file}: cannot be read ({_first_line(error)}); replace the file") from error
