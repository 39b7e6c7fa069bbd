"""Data are prepared once, by one process, from one reading; what was ended goes on, what is damaged is not used."""

import errno
import gzip
import hashlib
import json
import os
import re
import signal
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import yaml

from harness.config.run import RunConfig, load_config
from harness.corpus import prepare as preparation
from harness.corpus.config import CorpusConfig, read_documents
from harness.corpus.pieces import read_piece, write_piece
from harness.corpus.prepared import data_directory, open_data, prepare_data, work_directory
from harness.data.shards import write_shard
from harness.data.tokenizer import from_model_bytes
from harness.errors import RunFailure, UsageError
from launch.main import main
from tests.support.processes import Process, python, result_of
from tests.support.ranks import Ranks

CONFIG = """
corpus: {kind: files, heldout_bytes: 20000}
tokenizer: {kind: sentencepiece, vocab_size: 600}
model: {width: 16, layers: 1, heads: 1, context: 64}
train: {batch_sequences: 4, precision: fp32, finetune_epochs: 0}
eval: {chunk_bytes: 64}
backend: {device: cpu}
"""


def make_text(num_bytes: int) -> bytes:
    words = [bytes(letters) for letters in np.random.default_rng(0).integers(97, 123, (500, 6), dtype=np.uint8)]
    chosen = np.random.default_rng(1).integers(0, len(words), num_bytes // 7 + 1)
    return b" ".join(words[index] for index in chosen)[:num_bytes]


def write_config(folder: Path, text: bytes, **corpus: object) -> Path:
    path = folder / "config.yaml"
    lines = [text[start : start + 3000].decode() for start in range(0, len(text), 3000)]
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    content = yaml.safe_load(CONFIG) | {"data_dir": f"{folder}/data", "runs_dir": f"{folder}/runs"}
    content["corpus"] |= {"path": f"{folder}/text.jsonl"} | corpus
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture
def small_pieces(monkeypatch):
    monkeypatch.setattr("harness.corpus.pieces.PIECE_BYTES", 50_000)
    monkeypatch.setattr(preparation, "SMALL_TEXT_BYTES", 0)


def shards_of(config: RunConfig) -> list[bytes]:
    directory = data_directory(config)
    return [(directory / name).read_bytes() for name in ("train.shard", "heldout.shard", "tokenizer.model")]


def test_the_shards_are_the_same_whatever_the_number_of_processes(tmp_path, small_pieces, monkeypatch):
    config = load_config(write_config(tmp_path, make_text(400_000)))
    prepared = {}
    for cores in (1, 3):
        monkeypatch.setattr(preparation, "num_cores", lambda cores=cores: cores)
        config.data_dir = f"{tmp_path}/{cores}"
        prepare_data(config)
        prepared[cores] = shards_of(config)
    assert prepared[1] == prepared[3]
    # And they are those of one process that encodes document after document.
    tokenizer = from_model_bytes("sentencepiece", prepared[1][2])
    for split, content in zip(("train", "heldout"), prepared[1], strict=False):
        write_shard(tmp_path / split, read_documents(config.corpus, split), tokenizer)
        assert (tmp_path / split).read_bytes() == content


def test_a_preparation_goes_on_from_the_pieces_that_are_complete(tmp_path, small_pieces, capfd):
    config = load_config(write_config(tmp_path, make_text(300_000)))
    directory, work = data_directory(config), work_directory(data_directory(config))
    prepare_data(config)
    whole = shards_of(config)
    # What a preparation leaves that is killed while it encodes, with one piece damaged and one cut.
    config.data_dir, made = f"{tmp_path}/again", work.parent
    work = Path(config.data_dir) / work.name
    preparation.prepare(config.corpus, config.tokenizer, make(work), print)
    tokens = sorted((work / "pieces").glob("*.tokens"))
    assert len(tokens) == 7
    kept = {path: path.stat().st_mtime_ns for path in tokens[2:]}
    content = bytearray(tokens[0].read_bytes())
    content[-1] ^= 1
    tokens[0].write_bytes(content)
    tokens[1].write_bytes(tokens[1].read_bytes()[:-1])
    tokens[2].unlink()
    del kept[tokens[2]]
    source = Path(config.corpus.path)
    stamp = source.stat()
    source.write_bytes(b"x" * stamp.st_size)
    os.utime(source, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    preparation.prepare(config.corpus, config.tokenizer, work, print)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert "goes on from what is complete there" in capfd.readouterr().out
    prepare_data(config)
    assert shards_of(config) == whole and not work.exists() and directory.parent == made


def make(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def test_a_piece_is_whole_and_of_its_identity_or_nothing(tmp_path):
    path, identity = tmp_path / "p", bytes(range(32))
    write_piece(path, identity, [1, 2], b"abc", 9)
    piece = read_piece(path, identity)
    assert (piece.lengths.tolist(), piece.content, piece.raw_bytes) == ([1, 2], b"abc", 9)
    assert read_piece(path, bytes(32)) is None and read_piece(tmp_path / "none", identity) is None
    good = path.read_bytes()
    for position in range(len(good)):
        path.write_bytes(good[:position] + bytes([good[position] ^ 1]) + good[position + 1 :])
        damaged = read_piece(path, identity)
        # Only the size of the text stands outside of the digest.
        assert damaged is None or damaged.content == b"abc"
        path.write_bytes(good[:position])
        assert read_piece(path, identity) is None


def test_preparations_that_start_together_wait_for_one_and_find_its_work(tmp_path):
    path = write_config(tmp_path, make_text(3_000_000))
    processes = []
    for _ in range(3):
        processes.append(python("-m", "launch", "data", path, cwd=tmp_path))
        time.sleep(0.1)
    results = [result_of(process) for process in processes]
    assert [result.returncode for result in results] == [0, 0, 0], [result.stderr for result in results]
    assert len({result.stdout for result in results}) == 1
    said = [result.stderr for result in results]
    assert sum("1 jsonl; 3,000,000 bytes of text" in text for text in said) == 1
    assert sum(bool(re.search(r"in use by process \d+ on .*; waiting\n", text)) for text in said) == 2
    assert [entry.name for entry in (tmp_path / "data").iterdir()] == [data_directory(load_config(path)).name]


def start_slowly(tmp_path: Path, *command: object) -> tuple[Process, Path]:
    """A preparation that has begun with its pieces, and the folder of its work."""
    path = write_config(tmp_path, make_text(6_000_000))
    work = work_directory(data_directory(load_config(path)))
    process = python(*command, path, cwd=tmp_path)
    wait_for(lambda: (work / "pieces" / "pieces.json").exists() or process.poll() is not None)
    return process, work


def wait_for(condition, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP])
def test_a_signal_ends_a_preparation_at_once_with_one_line(tmp_path, number):
    process, work = start_slowly(tmp_path, "-m", "launch", "data")
    start = time.monotonic()
    process.send_signal(number)
    result = result_of(process)
    assert time.monotonic() - start < 5 and result.returncode == (75 if number == signal.SIGUSR1 else 130)
    *_, line = result.stderr.splitlines()
    assert line.startswith("codelength: ") and "what is prepared is kept, and the same command goes on" in line
    assert "Traceback" not in result.stderr
    assert [entry.name for entry in work.iterdir() if entry.name != "ready"] == ["pieces"]


def test_a_wrong_text_leaves_nothing_and_one_line(tmp_path, capfd):
    path = write_config(tmp_path, b"x" * 30_000)
    with Path(tmp_path / "text.jsonl").open("a") as file:
        file.write('{"text": null}\n')
    assert main(["data", str(path)]) == 2
    assert "text.jsonl, line 11: the text is null" in capfd.readouterr().err
    assert list((tmp_path / "data").iterdir()) == []


OPENED: list[str] = []


def test_each_source_is_read_once_with_either_tokenizer(tmp_path):
    path = write_config(tmp_path, make_text(100_000))
    sys.addaudithook(lambda event, args: OPENED.append(str(args[0])) if event == "open" else None)
    for kind in ("bytes", "sentencepiece"):
        OPENED.clear()
        prepare_data(load_config(path, [f"tokenizer.kind={kind}"]))
        assert OPENED.count(f"{tmp_path}/text.jsonl") == 1


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


@pytest.fixture
def prepared(tmp_path) -> tuple[Path, RunConfig]:
    path = write_config(tmp_path, make_text(60_000))
    config = load_config(path)
    prepare_data(config)
    return path, config


@pytest.mark.parametrize("name", ["train.shard", "heldout.shard", "tokenizer.model"])
def test_a_flipped_bit_ends_training_and_sending_until_the_data_are_prepared_again(prepared, name, tmp_path, capfd):
    path, config = prepared
    good = shards_of(config)
    file = data_directory(config) / name
    flip(file, file.stat().st_size // 2)
    for command in (["train", str(path)], ["send", str(path), "-o", str(tmp_path / "out.clo")]):
        assert main(command) == 2
        (line,) = capfd.readouterr().err.splitlines()
        assert name in line and "run `codelength data`" in line
    assert not (tmp_path / "runs").exists() and not (tmp_path / "out.clo").exists()
    assert main(["data", str(path)]) == 0
    assert shards_of(config) == good
    open_data(config, verify=True)


def test_evaluating_and_going_on_look_at_the_data_again(prepared, capfd):
    path, config = prepared
    assert main(["train", str(path), "tokenizer.kind=bytes"]) == 0
    directory = data_directory(load_config(path, ["tokenizer.kind=bytes"]))
    flip(directory / "train.shard", 5000)
    for command in (["eval", str(config.run_dir)], ["train", str(path), "tokenizer.kind=bytes"]):
        capfd.readouterr()
        assert main(command) == 2
        assert "train.shard: damaged: its SHA-256 differs" in capfd.readouterr().err
        (config.run_dir / "DONE").unlink(missing_ok=True)


def test_what_is_half_deleted_is_named_and_prepared_again(prepared, capfd):
    path, config = prepared
    good = shards_of(config)
    for names in (("tokenizer.model",), ("train.shard", "heldout.shard")):
        for name in names:
            (data_directory(config) / name).unlink()
        capfd.readouterr()
        assert main(["train", str(path), "dry_run=true"]) == 2
        (line,) = capfd.readouterr().err.splitlines()
        assert f"incomplete, without {', '.join(names)}; run `codelength data`" in line
        assert main(["data", str(path)]) == 0
        assert shards_of(config) == good


def test_data_that_an_earlier_version_prepared_still_open(prepared):
    _, config = prepared
    # As it named them: everything below the folder counted, and some settings were not there.
    corpus = {
        key: value for key, value in asdict(config.corpus).items() if key not in ("on_null", "parts", "documents")
    }
    source = Path(config.corpus.path)
    stamps = [(str(source), source.stat().st_size, source.stat().st_mtime_ns)]
    digest = hashlib.sha256(json.dumps([corpus, asdict(config.tokenizer), stamps]).encode()).hexdigest()[:12]
    now = data_directory(config)
    (now / "sources.json").unlink()
    earlier = now.with_name(f"files-{digest}")
    now.rename(earlier)
    assert data_directory(config) == earlier
    assert prepare_data(config).directory == earlier and earlier != now
    # What they would have read otherwise is another corpus.
    packed = source.with_suffix(".jsonl.gz")
    packed.write_bytes(gzip.compress(source.read_bytes()))
    config.corpus.path = str(packed)
    assert not data_directory(config).exists()


def test_what_was_read_is_listed_beside_the_shards(prepared, capfd):
    _, config = prepared
    (listed,) = json.loads((data_directory(config) / "sources.json").read_text())["read"]
    assert listed == {
        "path": config.corpus.path,
        "reader": "jsonl",
        "packing": "",
        "raw_bytes": 60_000,
        "nulls": 0,
    }


def test_a_folder_that_holds_its_own_prepared_data_stays_the_same_corpus(tmp_path):
    (tmp_path / "a.txt").write_bytes(make_text(50_000))
    corpus = CorpusConfig(kind="files", path=str(tmp_path), heldout_bytes=1000)
    config = RunConfig(corpus=corpus, data_dir=str(tmp_path / "data"))
    data = prepare_data(config)
    assert data.directory == data_directory(config) and data.train.raw_bytes == 49_000


def test_a_source_that_has_gone_is_named(prepared):
    _, config = prepared
    Path(config.corpus.path).unlink()
    with pytest.raises(UsageError, match=r"corpus\.path=.*: no such file or folder"):
        open_data(config)


# A rank that prepares longer than any collective waits, as a text of hours does.
SLOW = """
import sys, time
from harness.corpus.config import Corpus
real = Corpus.train
def train(self):
    time.sleep(4)
    yield from real(self)
Corpus.train = train
from harness.run import waiting
from harness.train import main
sys.exit(main(sys.argv[1:]))
"""


def test_ranks_wait_for_a_preparation_that_is_longer_than_their_timeout(tmp_path):
    path = write_config(tmp_path, make_text(60_000))
    arguments = [str(path), "backend.timeout_seconds=2", "train.epochs=1"]
    with Ranks(2, path, program=["-c", SLOW, *arguments]) as job:
        results = job.wait()
    assert [status for status, *_ in results] == [0, 0], results
    assert (tmp_path / "runs" / "run" / "DONE").exists()


def test_a_preparation_that_fails_ends_all_ranks_with_its_one_line(tmp_path):
    path = write_config(tmp_path, b"x" * 60_000)
    with (tmp_path / "text.jsonl").open("a") as file:
        file.write("{\n")
    start = time.monotonic()
    with Ranks(4, path, program=["-c", SLOW, str(path)]) as job:
        results = job.wait()
    assert time.monotonic() - start < 30
    assert [status for status, *_ in results] == [2] * 4
    (line,) = "".join(errors for *_, errors in results).splitlines()
    assert "text.jsonl, line 21: not JSON" in line


def test_ranks_that_are_told_to_end_while_they_wait_say_so_once(tmp_path):
    path = write_config(tmp_path, make_text(60_000))
    with Ranks(2, path, program=["-c", SLOW, str(path)]) as job:
        work = work_directory(data_directory(load_config(path)))
        job.wait_until(lambda: (work / "LOCK").exists())
        time.sleep(1)
        for process in job.processes:
            process.send_signal(signal.SIGTERM)
        results = job.wait()
    assert [status for status, *_ in results] == [130, 130]
    (line,) = "".join(errors for *_, errors in results).splitlines()
    assert "interrupted; " in line and "what is prepared is kept" in line


def test_ranks_whose_preparation_was_killed_give_up(tmp_path, monkeypatch):
    monkeypatch.setattr("harness.run.waiting.SECONDS_OF_SILENCE", 0.5)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    from harness.run.waiting import prepare_for_job

    config = load_config(write_config(tmp_path, b"x" * 60_000), ["backend.timeout_seconds=1"])
    with pytest.raises(RunFailure, match="nobody has given a sign of preparing it for 1 s"):
        prepare_for_job(config)


def test_a_failure_of_an_earlier_job_at_the_same_port_does_not_count(tmp_path, monkeypatch):
    from harness.run import waiting

    config = load_config(write_config(tmp_path, b"x" * 60_000))
    work = make(work_directory(data_directory(config)))
    path = waiting._failure_path(work)
    path.write_text(json.dumps({"kind": "UsageError", "message": "now"}))
    with pytest.raises(UsageError, match="now"):
        waiting._raise_failure_of_others(work)
    before = time.time() - 100_000
    os.utime(path, (before, before))
    waiting._raise_failure_of_others(work)


def test_a_device_that_fails_while_data_are_opened_is_named(prepared, monkeypatch):
    def fail(path):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    _, config = prepared
    monkeypatch.setattr("harness.files.SECONDS_BETWEEN_TRIES", ())
    monkeypatch.setattr(Path, "read_bytes", fail)
    with pytest.raises(OSError) as caught:
        open_data(config)
    assert caught.value.filename == str(data_directory(config) / "tokenizer.model")
