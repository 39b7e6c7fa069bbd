"""Documents are exactly the bytes of the corpus, cut to the byte, and every mistake is one line."""

import hashlib
import importlib.util
import json
import os
import re
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from omegaconf import OmegaConf

from harness.corpus.config import CorpusConfig, read_documents
from harness.corpus.named import random_bytes, wiki_mini
from harness.corpus.readers import RAW_BLOCK_BYTES
from harness.errors import UsageError
from tests.support.commands import ROOT


def read(split: str = "train", **settings: object) -> bytes:
    return b"".join(read_documents(CorpusConfig(**settings), split))


def refusal(split: str = "train", **settings: object) -> str:
    with pytest.raises(UsageError) as caught:
        read(split, **settings)
    message = str(caught.value)
    assert "\n" not in message
    return message


def write_wiki40b(folder: Path, **splits: list[object]) -> Path:
    for name, texts in splits.items():
        # Two files per split, as on the hub, so that the order over files is seen.
        for part, chosen in enumerate((texts[:2], texts[2:])):
            table = pa.table({"wikidata_id": ["Q1"] * len(chosen), "text": chosen, "version_id": ["1"] * len(chosen)})
            folder.mkdir(parents=True, exist_ok=True)
            pq.write_table(table, folder / f"{name}-{part:05d}-of-00002.parquet")
    return folder


def test_wiki_mini_is_the_206_pages_and_its_last_256000_bytes_are_held_out():
    train, heldout = read("train"), read("heldout")
    assert len(train + heldout) == 5_963_324
    assert len(heldout) == 256_000
    assert hashlib.sha256(train + heldout).hexdigest().startswith("505042b3a0b6d538")
    config = CorpusConfig(heldout_bytes=1)
    pages = list(read_documents(config, "train"))
    assert len(pages) == 206
    assert sum(page[:9].upper() == b"#REDIRECT" for page in pages) == 100


def test_a_subset_is_the_leading_bytes_cut_to_the_byte():
    assert read(subset_bytes=300_001) == read()[:300_001]


def test_a_missing_package_says_what_to_install(tmp_path):
    attempt = "try: read_documents(CorpusConfig(), 'train')\nexcept UsageError as e: print(e)"
    program = f"from harness.corpus.config import *\n{attempt}"
    # Without site-packages gensim cannot be found; the module itself needs none of them to be imported.
    done = subprocess.run([sys.executable, "-S", "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "pip install 'codelength[wiki-mini]'" in done.stdout


def test_texts_of_packages_are_parts_of_one(tmp_path):
    config = CorpusConfig(kind="domains", parts=["wiki", "python", "random"], subset_bytes=3000, heldout_bytes=300)
    documents = b"".join(read_documents(config, "train"))
    assert documents[:1000] == b"".join(wiki_mini())[:1000]
    assert documents[1000:2000] == (Path(sysconfig.get_path("stdlib")) / "__future__.py").read_bytes()[:1000]
    assert documents[2000:] == random_bytes()[0][:1000]
    if importlib.util.find_spec("bible") is None:
        assert "pip install 'codelength[domains]'" in refusal(kind="domains", subset_bytes=400, heldout_bytes=40)


def test_the_config_lists_every_problem_and_is_an_omegaconf_schema():
    config = CorpusConfig(kind="foo", subset_bytes=0, heldout_bytes=0, text_field="")
    assert config.problems()[0] == "corpus.kind=foo: unknown; use one of wiki-mini, domains, wiki40b, files, labels"
    assert len(config.problems()) == 4
    assert "corpus.path" in CorpusConfig(kind="files").problems()[0]
    assert "corpus.path" in CorpusConfig(path="x").problems()[0]
    assert "corpus.heldout_path" in CorpusConfig(heldout_path="x").problems()[0]
    merged = OmegaConf.merge(OmegaConf.structured(CorpusConfig), {"kind": "files", "subset_bytes": 5})
    assert OmegaConf.to_object(merged) == CorpusConfig(kind="files", subset_bytes=5)
    assert CorpusConfig().problems() == []
    assert "subset_bytes" in refusal(subset_bytes=0)


def test_files_of_a_folder_are_read_in_order_as_raw_bytes(tmp_path):
    binary = os.urandom(RAW_BLOCK_BYTES + 5)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "x.txt").write_bytes(b"second\r\n\xff")
    (tmp_path / "a.txt").write_bytes(binary)
    (tmp_path / "c.txt").write_bytes(b"0123456789")
    (tmp_path / ".hidden").write_bytes(b"not read")
    settings = {"kind": "files", "path": str(tmp_path), "heldout_bytes": 12}
    assert read("train", **settings) == binary + b"second\r"
    assert read("heldout", **settings) == b"\n\xff0123456789"
    assert read("train", subset_bytes=len(binary) + 1, **settings) == binary + b"s"


def test_jsonl_and_parquet_give_the_same_documents(tmp_path):
    texts = ["one\n", "zwei é", "", "drei\u2581"]
    lines = tmp_path / "corpus.jsonl"
    lines.write_text("\n\n".join(json.dumps({"body": text, "n": 1}) for text in texts))
    pq.write_table(pa.table({"body": texts, "n": [1] * 4}), tmp_path / "corpus.parquet")
    for file in (lines, tmp_path / "corpus.parquet"):
        settings = {"kind": "files", "path": str(file), "text_field": "body"}
        whole = "".join(texts).encode()
        assert read("train", heldout_bytes=5, **settings) == whole[:-5]
        assert read("heldout", heldout_bytes=5, **settings) == whole[-5:]
        assert read("heldout", heldout_path=str(lines), **settings) == whole
        assert next(read_documents(CorpusConfig(heldout_path=str(lines), **settings), "train")) == b"one\n"


def test_lone_surrogates_of_json_are_kept(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"text": "a\\ud800b"}')
    assert read(kind="files", path=str(tmp_path), heldout_bytes=1) == b"a\xed\xa0\x80"


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (b"{", "not JSON"),
        (b"\xff", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[1]", "not a JSON object"),
        (b'{"body": "x", "id": 3}', "no field corpus.text_field=text; set it to one of: body, id"),
        (b'{"text": null}', "the text is null; corpus.on_null=skip leaves such records out"),
        (b'{"text": 3}', "the text is int, not a string"),
    ],
)
def test_a_bad_line_is_named_with_file_and_number(tmp_path, line, complaint):
    (tmp_path / "bad.jsonl").write_bytes(b'{"text": "fine"}\n' + line + b"\n")
    message = refusal(kind="files", path=str(tmp_path), heldout_bytes=1)
    assert "bad.jsonl, line 2" in message
    assert complaint in message


def test_files_that_cannot_serve_are_refused_with_a_remedy(tmp_path):
    assert "no such file or folder" in refusal(kind="files", path=str(tmp_path / "missing"))
    assert "has no files of text" in refusal(kind="files", path=str(tmp_path))
    (tmp_path / "a.txt").write_bytes(b"")
    assert "empty" in refusal(kind="files", path=str(tmp_path))
    (tmp_path / "a.txt").write_bytes(b"x" * 10)
    message = refusal(kind="files", path=str(tmp_path), heldout_bytes=10)
    assert "corpus.heldout_bytes=10" in message and "only 10 bytes" in message
    message = refusal(kind="files", path=str(tmp_path), heldout_bytes=3, subset_bytes=8)
    assert "corpus.subset_bytes=8" in message and "at most 7" in message
    message = refusal("heldout", kind="files", path=str(tmp_path), heldout_path=str(tmp_path / "missing"))
    assert "corpus.heldout_path" in message
    (tmp_path / "a.parquet").write_bytes(b"PAR1 not really")
    assert "a.parquet: cannot be read" in refusal(kind="files", path=str(tmp_path))
    pq.write_table(pa.table({"body": ["x"]}), tmp_path / "a.parquet")
    assert "one of: body" in refusal(kind="files", path=str(tmp_path))


def test_wiki40b_reads_the_splits_of_a_local_folder(tmp_path):
    train = [f"\n_START_ARTICLE_\nArticle {number}\n_START_PARAGRAPH_\né" for number in range(5)]
    folder = write_wiki40b(tmp_path / "en", train=train, validation=["abc", "def", "ghi"], test=["not read"] * 3)
    settings = {"kind": "wiki40b", "path": str(folder), "heldout_bytes": 7}
    assert list(read_documents(CorpusConfig(**settings), "train")) == [text.encode() for text in train]
    assert read("train", subset_bytes=60, **settings) == "".join(train).encode()[:60]
    assert read("heldout", **settings) == b"abcdefg"


def test_wiki40b_articles_stored_as_printed_bytes_are_turned_back(tmp_path):
    articles = ['\n_START_ARTICLE_\nÉ\'s "quote"\\', "\n_START_ARTICLE_\nIt's", "b'plain'"]
    stored = [str(article.encode()) for article in articles[:2]] + articles[2:]
    folder = write_wiki40b(tmp_path, train=stored, validation=["abc"] * 3)
    assert read(kind="wiki40b", path=str(folder)) == "".join(articles).encode()


def test_wiki40b_folders_that_cannot_serve_are_refused_with_a_remedy(tmp_path):
    remedy = "wikidata_id, text, version_id"
    message = refusal(kind="wiki40b", path=str(tmp_path / "missing"))
    assert "no such folder" in message and remedy in message
    assert remedy in refusal(kind="wiki40b", path=str(tmp_path))
    folder = write_wiki40b(tmp_path / "en", train=["abc"] * 3)
    assert "validation" in refusal("heldout", kind="wiki40b", path=str(folder))
    assert "corpus.text_field=body" in refusal(kind="wiki40b", path=str(folder), text_field="body")
    message = refusal(kind="wiki40b", path=str(folder), subset_bytes=10)
    assert "corpus.subset_bytes=10" in message and "only 9 bytes" in message
    (folder / "train-00000-of-00002.parquet").write_bytes(b"broken")
    assert remedy in refusal(kind="wiki40b", path=str(folder))


def test_without_the_hub_wiki40b_fails_at_once_and_says_what_to_do():
    # A port where nothing listens stands for a machine without network, on any machine.
    program = (
        "from harness.corpus.config import *\n"
        "try: next(iter(read_documents(CorpusConfig(kind='wiki40b'), 'train')))\n"
        "except UsageError as error: print(error)"
    )
    environment = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9"}
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert time.monotonic() - start < 15
    assert re.fullmatch("corpus.kind=wiki40b: cannot read google/wiki40b .*; check the network.*\n", done.stdout)
