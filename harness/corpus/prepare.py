"""One preparation: tokenizer and shards of a corpus, part by part, so that one that was ended goes on.

Bytes are tokens already: the shards are written while the source is read. For SentencePiece the text is read once into
pieces, the tokenizer is trained on the first of them, and processes on all cores encode them; a piece that is complete
is kept. The shards come out the same, byte by byte, whatever the number of processes.
"""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from harness.corpus.arrangement import open_corpus
from harness.corpus.config import CorpusConfig
from harness.corpus.encode import MODEL_FILE, encode_pieces, tokens_of_pieces, train_on_pieces
from harness.corpus.pieces import read_text, text_path, write_text_pieces
from harness.data.shards import Encoded, token_type, write_encoded, write_shard
from harness.data.tokenizer import ByteTokenizer, Tokenizer, TokenizerConfig, from_model_bytes
from harness.errors import RunFailure, UsageError
from harness.files import make_directory, read_file, reason, write_file, write_json
from harness.lock import LOCK_FILE
from harness.machine.children import child_environment, num_cores
from harness.machine.progress import SECONDS_BETWEEN_LINES, Pause, Rate, clock

TRAIN_FILE, HELDOUT_FILE, SOURCES_FILE = "train.shard", "heldout.shard", "sources.json"
SHARDS = {"train": TRAIN_FILE, "heldout": HELDOUT_FILE}
# What is done before a process has started.
SMALL_TEXT_BYTES = 1 << 20
_PIECES_FILE = "pieces.json"
_SECONDS_BETWEEN_LOOKS = 0.05

Tell = Callable[[str], object]


def prepare(corpus: CorpusConfig, tokenizer: TokenizerConfig, work: Path, tell: Tell) -> Path:
    """Prepare tokenizer and shards in a folder of `work`; `tell` takes lines about what was read.

    What an earlier preparation left in `work` is used where it is complete. Raises UsageError where the corpus cannot
    be read, and RunFailure where the work fails.
    """
    ready = work / "ready"
    if tokenizer.kind == "labels" and corpus.kind != "labels":
        raise UsageError(f"tokenizer.kind=labels: corpus.kind={corpus.kind} has none; use corpus.kind=labels")
    try:
        with _words_of(work):
            shutil.rmtree(ready, ignore_errors=True)
            make_directory(ready)
            if corpus.kind == "labels":
                sources, model = _write_labels(corpus, ready, tell)
            elif tokenizer.kind == "bytes":
                sources, model = _write_bytes(corpus, ready, tell), b""
            else:
                sources, model = _write_pieces(corpus, tokenizer, work, ready, tell)
            write_file(ready / MODEL_FILE, model)
            write_json(ready / SOURCES_FILE, sources)
    except UsageError:
        # What was wrong has to change, and is another corpus then.
        clear(work)
        raise
    return ready


def clear(work: Path) -> None:
    """Remove all files of preparations but their lock."""
    for path in work.iterdir():
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name != LOCK_FILE and not path.name.startswith("."):
            path.unlink(missing_ok=True)


def _write_bytes(config: CorpusConfig, ready: Path, tell: Tell) -> dict:
    corpus = open_corpus(config)
    write_shard(ready / TRAIN_FILE, corpus.train(), ByteTokenizer())
    write_shard(ready / HELDOUT_FILE, corpus.heldout(), ByteTokenizer())
    return _said(corpus.record(), tell)


def _write_labels(config: CorpusConfig, ready: Path, tell: Tell) -> tuple[dict, bytes]:
    # Texts need none of it.
    from harness.labels.arranged import arranged
    from harness.labels.inputs import INPUTS_FILES, inputs_digest, write_inputs
    from harness.labels.sets import read_set
    from harness.labels.tokenizer import LabelTokenizer

    found = read_set(str(config.path))
    splits = dict(zip(SHARDS, arranged(found, config.subset_bytes, config.heldout_bytes, config.shuffle), strict=True))
    digests = [inputs_digest(split.inputs) for split in splits.values()]
    tokenizer = LabelTokenizer(found.num_classes, found.inputs.shape[1:], digests[0], digests[1])
    for name, split in splits.items():
        assert split.labels is not None
        write_inputs(ready / INPUTS_FILES[name], split.inputs)
        write_shard(ready / SHARDS[name], iter([split.labels.tobytes()]), tokenizer)
    counts = " and ".join(f"{len(split.inputs):,} {name}" for name, split in splits.items())
    shape = "x".join(map(str, tokenizer.input_shape))
    summary = [f"{config.path}: {counts} labels of {found.num_classes} classes, inputs of {shape}"]
    return _said({"summary": summary, "read": [], "left_out": {}}, tell), tokenizer.model_bytes()


def _write_pieces(
    config: CorpusConfig, tokenizer_config: TokenizerConfig, work: Path, ready: Path, tell: Tell
) -> tuple[dict, bytes]:
    folder = work / "pieces"
    known = _known_pieces(folder)
    if known is None:
        shutil.rmtree(folder, ignore_errors=True)
        make_directory(folder)
        corpus = open_corpus(config)
        counts = {"train": write_text_pieces(folder, "train", corpus.train())}
        counts["heldout"] = write_text_pieces(folder, "heldout", corpus.heldout())
        known = {"counts": counts, "sources": corpus.record()}
        write_json(folder / _PIECES_FILE, known)
    else:
        tell(f"{folder}: goes on from what is complete there")
    counts = known["counts"]
    texts = sorted(folder.glob("*.text"))
    is_small = sum(path.stat().st_size for path in texts) <= SMALL_TEXT_BYTES
    sources = _said(known["sources"], tell)
    model = _trained(folder, tokenizer_config.vocab_size, is_small)
    tokenizer = from_model_bytes("sentencepiece", model)
    if is_small:
        encode_pieces(folder, texts)
    else:
        _encode_on_all_cores(folder, len(texts), tell)
    for split, name in SHARDS.items():
        write_encoded(ready / name, _encoded(folder, split, counts[split], tokenizer), tokenizer)
    return sources, model


def _known_pieces(folder: Path) -> dict | None:
    """What an earlier preparation noted about its pieces of text, where they are all complete."""
    try:
        known = json.loads((folder / _PIECES_FILE).read_bytes())
        is_whole = all(
            read_text(text_path(folder, split, number)) is not None
            for split, count in known["counts"].items()
            for number in range(count)
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return known if is_whole else None


def _trained(folder: Path, vocab_size: int, is_small: bool) -> bytes:
    """The model of the tokenizer, which is trained unless that was done."""
    path = folder / MODEL_FILE
    if not path.exists():
        if is_small:
            train_on_pieces(folder, vocab_size)
        else:
            with _started(folder, [("train", vocab_size)]) as processes:
                _wait_for(processes)
    return read_file(path)


def _encode_on_all_cores(folder: Path, num_pieces: int, tell: Tell) -> None:
    count = min(num_cores(), num_pieces)
    rate = Rate(_num_encoded(folder))
    pause = Pause(SECONDS_BETWEEN_LINES, first=SECONDS_BETWEEN_LINES)

    def show() -> None:
        if pause.is_over():
            done = _num_encoded(folder)
            left = clock(rate.seconds_left(done, num_pieces))
            tell(f"encoded  {done:,} of {num_pieces:,} pieces in {count} processes, {left} left")

    with _started(folder, [(str(index), count) for index in range(count)]) as processes:
        _wait_for(processes, show)


def _num_encoded(folder: Path) -> int:
    return len(list(folder.glob("*.tokens")))


@contextmanager
def _started(folder: Path, tasks: list[tuple[str, int]]) -> Iterator[list[subprocess.Popen[str]]]:
    """Processes for tasks; none is left after the context."""
    environment = child_environment(OMP_NUM_THREADS="1")
    processes = []
    try:
        for what, number in tasks:
            command = [sys.executable, "-m", "harness.corpus.encode", str(folder), what, str(number)]
            process = subprocess.Popen(
                command,
                env=environment,
                text=True,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )
            processes.append(process)
        yield processes
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.communicate()


def _wait_for(processes: list[subprocess.Popen[str]], show: Callable[[], None] = lambda: None) -> None:
    """Raises what the first process to fail says."""
    while any(process.poll() is None for process in processes):
        _check(processes)
        show()
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    _check(processes)


def _check(processes: list[subprocess.Popen[str]]) -> None:
    for process in processes:
        if process.poll():
            assert process.stderr is not None
            said = (process.stderr.read().splitlines() or [""])[-1]
            if process.returncode == UsageError.exit_status:
                raise UsageError(said)
            killed = (
                "most likely by the kernel, out of memory" if process.returncode == -signal.SIGKILL else "no reason"
            )
            raise RunFailure(said or f"a process that prepares data has ended ({killed}); the same command goes on")


def _encoded(folder: Path, split: str, count: int, tokenizer: Tokenizer) -> Iterator[Encoded]:
    for piece in tokens_of_pieces(folder, split, count, tokenizer):
        yield Encoded(piece.lengths.tolist(), np.frombuffer(piece.content, token_type(tokenizer)), piece.raw_bytes)


def _said(sources: dict, tell: Tell) -> dict:
    for line in sources["summary"]:
        tell(line)
    return sources


@contextmanager
def _words_of(work: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunFailure(f"{error.filename or work}: {reason(error)}; the same command goes on") from None
