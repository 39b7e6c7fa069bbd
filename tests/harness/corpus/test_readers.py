"""Text is read whatever it is packed in, and what is no text is refused or left out by name, never coded in silence."""

import bz2
import gzip
import json
import lzma
import os
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from harness.corpus.config import Corpus, CorpusConfig, read_documents
from harness.corpus.readers import MAX_JSON_BYTES, RAW_BLOCK_BYTES
from harness.errors import UsageError

PACK = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "lzma": lambda text: lzma.compress(text, lzma.FORMAT_ALONE),
    "zst": zstandard.compress,
}
LINES = b'{"text": "one, "}\n{"text": "two, "}\n{"text": "three and a tail"}\n'
TEXT = b"one, two, three and a tail"


def corpus_of(path: Path, **settings: object) -> Corpus:
    return Corpus(CorpusConfig(kind="files", path=str(path), heldout_bytes=4, **settings))


def read(path: Path, **settings: object) -> bytes:
    corpus = corpus_of(path, **settings)
    return b"".join(corpus.train()) + b"".join(corpus.heldout())


def refusal(path: Path, **settings: object) -> str:
    with pytest.raises(UsageError) as caught:
        read(path, **settings)
    message = str(caught.value)
    assert "\n" not in message and str(path) in message
    return message


@pytest.mark.parametrize("ending", PACK)
@pytest.mark.parametrize(("name", "content"), [("x.jsonl", LINES), ("X.TXT", TEXT), ("y.ndjson", LINES), ("z", TEXT)])
def test_what_is_compressed_is_decoded(tmp_path, ending, name, content):
    for written in (f"{name}.{ending}", f"{name}.{ending.upper()}"):
        path = tmp_path / written
        path.write_bytes(PACK[ending](content))
        assert read(path) == TEXT


def test_blocks_of_a_compressed_text_are_those_of_the_text(tmp_path):
    text = os.urandom(2 * RAW_BLOCK_BYTES + 77)
    (tmp_path / "a.txt").write_bytes(text)
    whole = list(corpus_of(tmp_path / "a.txt").train())
    for ending, pack in PACK.items():
        (tmp_path / f"b.txt.{ending}").write_bytes(pack(text[:1000]) + pack(text[1000:]))
        if ending != "lzma":  # which holds one stream
            assert list(corpus_of(tmp_path / f"b.txt.{ending}").train()) == whole


@pytest.mark.parametrize("ending", ["gz", "bz2", "xz", "zst"])
def test_a_compressed_file_that_is_damaged_or_cut_is_one_line(tmp_path, ending):
    good = PACK[ending](os.urandom(50_000) + TEXT)
    path = tmp_path / f"a.txt.{ending}"
    flipped = bytes([good[len(good) // 2] ^ 255])
    damaged = good[: len(good) // 2] + flipped + good[len(good) // 2 + 1 :]
    for content in (
        good[:-3],
        good[: len(good) // 2],
        good[:5],
        b"no such format",
        good + b"junk",
        good * 2 + good[:9],
        damaged,
    ):
        path.write_bytes(content)
        # The layer below random data has no redundancy; zstd without a checksum cannot see what was flipped there.
        if (ending, content) in (("zst", damaged), ("bz2", good + b"junk")):
            continue
        assert "cannot be read" in refusal(path)


def test_zeros_between_and_after_the_streams_of_xz_are_padding(tmp_path):
    path = tmp_path / "a.txt.xz"
    path.write_bytes(lzma.compress(TEXT[:9]) + bytes(8192) + lzma.compress(TEXT[9:]) + bytes(4))
    assert read(path) == TEXT
    path.write_bytes(bytes(4096))
    assert "end early" in refusal(path)


def test_json_arrays_and_lines_called_json_are_read(tmp_path):
    records = [json.loads(line) for line in LINES.splitlines()]
    path = tmp_path / "a.json"
    for content in (json.dumps(records), json.dumps(records, indent=2), "\ufeff" + json.dumps(records), LINES.decode()):
        path.write_text(content)
        assert read(path) == TEXT
    path.write_text(json.dumps([record["text"] for record in records]))
    assert read(path) == TEXT
    (tmp_path / "b.json.gz").write_bytes(gzip.compress(LINES))
    assert read(tmp_path / "b.json.gz") == TEXT


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ('{"text": ["a"],\n "b": 1}', "neither an array nor lines"),
        ('{"rows": 3}', "neither an array nor lines"),
        ("[1]", "item 1: the text is int"),
        ('["a", null]', "item 2: the text is null"),
        ('[{"body": "x"}]', "item 1: no field corpus.text_field=text; set it to one of: body"),
        ('["a"', "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("3", "not a JSON array; make it JSON lines: jq"),
    ],
)
def test_other_json_is_refused_with_a_remedy(tmp_path, content, complaint):
    (tmp_path / "a.json").write_text(content)
    assert complaint in refusal(tmp_path / "a.json")


def test_an_array_that_memory_might_not_hold_is_refused(tmp_path):
    with (tmp_path / "a.json").open("wb") as file:
        file.write(b"[")
        file.truncate(MAX_JSON_BYTES + 1)
    assert "jq -c '.[]' a.json > a.jsonl" in refusal(tmp_path / "a.json")


HEADS = {
    "zip": b"PK\x03\x04",
    "png": b"\x89PNG\r\n\x1a\n",
    "jpeg": b"\xff\xd8\xff\xe0",
    "pdf": b"%PDF-1.7",
    "gzip": gzip.compress(TEXT),
    "zstd": zstandard.compress(TEXT),
    "xz": lzma.compress(TEXT),
    "parquet": b"PAR1\x15\x04\x15",
    "sqlite": b"SQLite format 3\0",
    "elf": b"\x7fELF\x02\x01\x01",
    "tar": bytes(257) + b"ustar\0",
    "codelength": b"CLSHARD\n",
    "git lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 7\n",
}


@pytest.mark.parametrize("what", HEADS)
def test_binary_files_are_refused_by_name_whatever_they_are_called(tmp_path, what):
    # As a text, as lines, without an ending where it is named itself, and inside another packing.
    for name in ("a.txt", "b.jsonl", "c"):
        (tmp_path / name).write_bytes(HEADS[what] + bytes(600))
        assert what in refusal(tmp_path / name).lower()
    (tmp_path / "d.txt.gz").write_bytes(gzip.compress(HEADS[what] + bytes(600)))
    assert what in refusal(tmp_path / "d.txt.gz").lower() and "inside gzip" in refusal(tmp_path / "d.txt.gz")


def test_random_bytes_that_are_named_are_a_control(tmp_path):
    text = b"\0" + os.urandom(5000)
    for name in ("random", "random.bin"):
        (tmp_path / name).write_bytes(text)
        assert read(tmp_path / name) == text


def test_only_text_of_a_folder_is_taken_and_the_rest_is_listed(tmp_path):
    (tmp_path / "sub").mkdir()
    taken = {"a.jsonl": LINES, "sub/b.TXT": TEXT, "c.txt.zst": zstandard.compress(TEXT), "d.md": TEXT}
    beside = ["README.md", "LICENSE.txt", "dataset_info.json", "_SUCCESS", "cat.png", ".DS_Store", "a.csv", "noending"]
    for name, content in taken.items():
        (tmp_path / name).write_bytes(content)
    for name in beside:
        (tmp_path / name).write_bytes(b'{"citation": "about it"}')
    for folder in (".git", "_temporary"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.txt").write_bytes(b"not read")
    corpus = corpus_of(tmp_path)
    assert b"".join(corpus.train()) + b"".join(corpus.heldout()) == TEXT * 4
    (listing,) = corpus.listings
    assert [(s.name, s.reader, s.raw_bytes) for s in listing.taken] == [
        ("a.jsonl", "jsonl", 26),
        ("c.txt.zst", "text", 26),
        ("d.md", "text", 26),
        ("sub/b.TXT", "text", 26),
    ]
    assert {name.rstrip("/") for name, _ in listing.left_out} == {*beside, ".git", "_temporary"}
    lines = corpus.what_was_read()
    assert lines[0] == "read     4 file(s): 1 jsonl, 2 text, 1 text in zstd; 104 bytes of text"
    assert lines[1].startswith(
        "left out 10 file(s) or folder(s): .DS_Store (hidden), .git (hidden), LICENSE.txt (about"
    )
    for name in taken:
        (tmp_path / name).unlink()
    assert "no files of text (left out: .DS_Store (hidden)" in refusal(tmp_path)


def test_links_are_followed_once_and_never_in_circles(tmp_path):
    outside, folder = tmp_path / "outside", tmp_path / "corpus"
    outside.mkdir(), folder.mkdir()
    (outside / "b.txt").write_bytes(b"second ")
    (folder / "a.txt").write_bytes(b"first ")
    (folder / "linked").symlink_to(outside)
    (folder / "again").symlink_to(outside)
    (folder / "file.txt").symlink_to(folder / "a.txt")
    (folder / "up").symlink_to(folder)
    (outside / "back").symlink_to(folder)
    assert read(folder) == b"first second "
    (listing,) = corpus_of(folder).listings
    assert [name for name, _ in listing.left_out] == ["again/back/", "file.txt", "linked/", "up/"]
    (folder / "z.txt").symlink_to(folder / "z.txt")
    assert "a link that leads nowhere" in refusal_at(folder, "z.txt")
    (folder / "z.txt").unlink()
    (folder / "z.jsonl").symlink_to("missing")
    assert "a link that leads nowhere" in refusal_at(folder, "z.jsonl")
    (folder / "z.jsonl").rename(folder / "z.lock")
    assert read(folder) == b"first second "


def refusal_at(folder: Path, name: str) -> str:
    message = refusal(folder)
    assert str(folder / name) in message
    return message


def test_a_null_is_named_with_its_row_or_left_out_and_counted(tmp_path):
    texts = ["x"] * 150 + [None] + ["tail of it"]
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet")
    (tmp_path / "b.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    (tmp_path / "c.json").write_text(json.dumps(texts))
    for name, place in (("a.parquet", "row 151"), ("b.jsonl", "line 151"), ("c.json", "item 151")):
        message = refusal(tmp_path / name)
        assert f"{name}, {place}: the text is null; corpus.on_null=skip" in message
        assert read(tmp_path / name, on_null="skip") == b"x" * 150 + b"tail of it"
    corpus = corpus_of(tmp_path, on_null="skip")
    list(corpus.train())
    assert "left out 3 record(s) whose text is null" in corpus.what_was_read()
    assert CorpusConfig(on_null="drop").problems() == ["corpus.on_null=drop: unknown; use fail or skip"]


def test_a_null_of_wiki40b_is_named_with_file_and_row_or_left_out(tmp_path):
    for split in ("train", "validation"):
        pq.write_table(pa.table({"text": ["abc", None, "def"]}), tmp_path / f"{split}-00000-of-00001.parquet")
    settings = {"kind": "wiki40b", "path": str(tmp_path), "heldout_bytes": 6}
    with pytest.raises(UsageError, match=r"train-00000-of-00001\.parquet, row 2: the text is null; corpus\.on_null"):
        list(read_documents(CorpusConfig(**settings), "train"))
    assert list(read_documents(CorpusConfig(on_null="skip", **settings), "heldout")) == [b"abc", b"def"]


def test_shards_of_another_schema_are_one_line(tmp_path, capfd):
    pq.write_table(pa.table({"text": ["abc"]}), tmp_path / "train-00000.parquet")
    pq.write_table(pa.table({"body": [[1, 2]]}), tmp_path / "train-00001.parquet")
    with pytest.raises(UsageError) as caught:
        list(read_documents(CorpusConfig(kind="wiki40b", path=str(tmp_path)), "train"))
    assert "train-00001.parquet: no field corpus.text_field=text; set it to one of: body" in str(caught.value)
    assert "\n" not in str(caught.value) and capfd.readouterr() == ("", "")
    pq.write_table(pa.table({"text": [[1, 2]]}), tmp_path / "train-00001.parquet")
    with pytest.raises(UsageError, match=r"train-00001\.parquet, row 1: the text is list, not a string"):
        list(read_documents(CorpusConfig(kind="wiki40b", path=str(tmp_path)), "train"))


def test_utf_16_is_coded_as_it_is_and_said(tmp_path):
    text = "Grüße".encode("utf-16")
    (tmp_path / "a.txt").write_bytes(text)
    corpus = corpus_of(tmp_path)
    assert b"".join(corpus.train()) + b"".join(corpus.heldout()) == text
    assert corpus.what_was_read()[-1] == "note     1 file(s) are UTF-16, coded as the bytes that they are: a.txt"


OPENED: list[str] = []


def test_every_file_is_opened_once_for_both_splits(tmp_path):
    (tmp_path / "a.txt").write_bytes(TEXT)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(LINES))
    (tmp_path / "c.txt.zst").write_bytes(zstandard.compress(TEXT))
    folder = f"{tmp_path}{os.sep}"
    sys.addaudithook(lambda event, args: OPENED.append(str(args[0])) if event == "open" else None)
    corpus = corpus_of(tmp_path, subset_bytes=30)
    assert len(b"".join(corpus.train()) + b"".join(corpus.heldout())) == 34
    assert sorted(path for path in OPENED if path.startswith(folder)) == [
        f"{folder}{name}" for name in ("a.txt", "b.jsonl.gz", "c.txt.zst")
    ]
