"""Prepared data: tokenizer and shards of a corpus, made once and kept under `data_dir`."""

import hashlib
import json
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

import numpy as np

from harness.corpus.config import CorpusConfig, list_corpus
from harness.corpus.encode import MODEL_FILE
from harness.corpus.prepare import HELDOUT_FILE, SHARDS, SOURCES_FILE, TRAIN_FILE, clear, prepare
from harness.data.parts import Parts
from harness.data.shards import Shard, open_shard
from harness.data.tokenizer import Tokenizer, TokenizerConfig, from_model_bytes
from harness.errors import RunFailure, UsageError
from harness.files import make_directory, read_file, reason, sync_directory
from harness.lock import DirectoryLock
from harness.machine.stop import keeping

if TYPE_CHECKING:
    from harness.labels.tokenizer import LabelTokenizer
    from harness.policy.weights import Policy

# Keys that have come since there are prepared data, whose names do not change where a key says what was always done.
_LATER_KEYS: dict[str, object] = {"on_null": "fail", "parts": [], "documents": "as-is"}


class TextSettings(Protocol):
    """The settings that decide the prepared data; a run's whole configuration has them."""

    corpus: CorpusConfig
    tokenizer: TokenizerConfig
    data_dir: str


@dataclass(frozen=True, slots=True)
class Data:
    """Tokenizer and both splits of a corpus."""

    directory: Path
    tokenizer: Tokenizer
    train: Shard
    heldout: Shard
    policy: "Policy | None" = None
    """How much each sequence of `train` counts in the updates, where that is not the same."""


def data_directory(config: TextSettings) -> Path:
    """Name the directory of the shards by corpus and tokenizer; local files count with size and time of change."""
    corpus = asdict(config.corpus)
    for key, before in _LATER_KEYS.items():
        if corpus[key] == before:
            del corpus[key]
    stamps, is_plain = _stamps(config.corpus)
    settings: list[object] = [corpus, asdict(config.tokenizer)]
    if Path(config.corpus.documents).is_file():
        settings.append(_stamp(Path(config.corpus.documents)))
    # Earlier versions counted folders too, so that a corpus moved when anything beside it changed.
    earlier = _named(config, [*settings, _stamps_of_all(config.corpus)]) if is_plain else None
    if earlier and (earlier.exists() or not stamps):
        return earlier
    return _named(config, [*settings, stamps, "read by rules"])


def work_directory(directory: Path) -> Path:
    """Name the folder in which the data of a directory are prepared."""
    return directory.with_suffix(".tmp")


def open_data(config: TextSettings, verify: bool = False) -> Data:
    """Open what `prepare_data` made; `verify` reads all of it and recomputes its SHA-256, a second per GB.

    Raises UsageError where it is missing or damaged.
    """
    directory = data_directory(config)
    if not directory.exists():
        if config.corpus.kind == "files":
            # What is wrong with the source is the better message.
            list_corpus(config.corpus)
        raise UsageError(f"{directory}: not prepared; run `codelength data` with the same configuration first")
    missing = [name for name in (MODEL_FILE, TRAIN_FILE, HELDOUT_FILE) if not (directory / name).exists()]
    remedy = "run `codelength data` with the same configuration, which prepares it again"
    if missing:
        raise UsageError(f"{directory}: incomplete, without {', '.join(missing)}; {remedy}")
    model = read_file(directory / MODEL_FILE)
    shards = [open_shard(directory / name) for name in (TRAIN_FILE, HELDOUT_FILE)]
    if config.corpus.part_names or config.corpus.documents != "as-is":
        try:
            _mark(directory, dict(zip(SHARDS, shards, strict=True)), config.corpus)
        except (OSError, ValueError, KeyError, TypeError, IndexError):
            raise UsageError(f"{directory / SOURCES_FILE}: missing or damaged; {remedy}") from None
    for shard in shards:
        if hashlib.sha256(model).digest() != shard.model_digest:
            raise UsageError(f"{directory / MODEL_FILE}: not the one that {shard.path.name} was made with; {remedy}")
        if verify:
            shard.verify()
    try:
        tokenizer = from_model_bytes(config.tokenizer.kind, model)
    except UsageError as error:
        raise UsageError(f"{directory / MODEL_FILE}: {error}; {remedy}") from None
    if tokenizer.kind == "labels":
        # Texts have none.
        from harness.labels.inputs import open_all_inputs

        open_all_inputs(directory, cast("LabelTokenizer", tokenizer), dict(zip(SHARDS, shards, strict=True)))
    train, heldout = shards
    return Data(directory, tokenizer, train, heldout)


def prepare_data(
    config: TextSettings, repair: bool = False, check: Callable[[Path], object] = lambda work: None
) -> Data:
    """Train the tokenizer and write the shards, unless they are there already; with `repair`, unless they are whole.

    One process prepares and the others wait for it. The directory appears at once; what an earlier preparation has
    completed is used. `check` is called with the folder of the work before it begins. Raises UsageError where the
    corpus cannot be read, RunFailure where the work fails, and Interrupted where a signal ended it.
    """
    directory = data_directory(config)
    work = work_directory(directory)
    with keeping(f"{directory}: what is prepared is kept, and the same command goes on"):
        while not directory.exists() or (repair and _damage(config)):
            try:
                make_directory(work)
                lock = DirectoryLock(work, _task())
                message = lock.wait(tell)
            except FileNotFoundError:
                # Who had the lock has finished and removed the folder.
                continue
            except OSError as error:
                raise RunFailure(f"{error.filename or work}: {reason(error)}") from None
            try:
                if message:
                    tell(message)
                check(work)
                if _prepare(config, directory, lock, repair):
                    break
            finally:
                lock.release()
                # It stays where there is something in it to go on from, or somebody has the lock.
                with suppress(OSError):
                    work.rmdir()
    return open_data(config)


def _prepare(config: TextSettings, directory: Path, lock: DirectoryLock, repair: bool) -> bool:
    """Prepare, unless somebody has done so meanwhile; whether that was necessary."""
    if directory.exists():
        damage = _damage(config) if repair else ""
        if not damage:
            return False
        tell(damage)
    work = work_directory(directory)
    _replace(directory, prepare(config.corpus, config.tokenizer, work, tell), lock)
    clear(work)
    return True


def _replace(directory: Path, ready: Path, lock: DirectoryLock) -> None:
    """Give prepared data their place; what is there and damaged goes."""
    lock.check()
    try:
        if directory.exists():
            directory.rename(ready.with_name("damaged"))
        ready.rename(directory)
        sync_directory(directory.parent)
    except OSError as error:
        raise RunFailure(f"{directory}: {reason(error)}; the same command goes on") from None


def _damage(config: TextSettings) -> str:
    """What is wrong with the prepared data; nothing where they are whole."""
    try:
        open_data(config, verify=True)
    except UsageError as error:
        return str(error)
    return ""


def _mark(directory: Path, shards: dict[str, Shard], corpus: CorpusConfig) -> None:
    """Tell the shards their parts and the order of their documents; raises ValueError and its like where it is lost."""
    record = json.loads(read_file(directory / SOURCES_FILE))
    if corpus.documents != "as-is":
        shards["train"].order = np.array(record["order"], dtype=np.int64)
        if not np.array_equal(np.sort(record["order"]), np.arange(len(shards["train"].document_offsets))):
            raise ValueError("order")
    if not corpus.part_names:
        return
    parts = record["parts"]
    for split, shard in shards.items():
        before = np.cumsum([0, *parts[split][:-1]])
        if sum(parts[split]) != len(shard.document_offsets) or len(before) != len(parts["names"]):
            raise ValueError(split)
        shard.parts = Parts(tuple(parts["names"]), shard.document_offsets[before].astype(np.int64))


def _task() -> str:
    """This task of a SLURM job, of whose nodes each may ask for the lock; empty outside one."""
    names = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_PROCID", "RANK")
    return ".".join(os.environ.get(name, "") for name in names) if "SLURM_JOB_ID" in os.environ else ""


def tell(message: str) -> None:
    """Print a line about the preparation to stderr; stdout is for results."""
    print(message, file=sys.stderr, flush=True)


def _named(config: TextSettings, key: list) -> Path:
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()
    return Path(config.data_dir) / f"{config.corpus.kind}-{digest[:12]}"


def _stamps(config: CorpusConfig) -> tuple[list, bool]:
    """Path, size and time of each file that text is read from; whether earlier versions read the same."""
    if config.kind == "labels" and Path(str(config.path)).exists():
        place = Path(str(config.path))
        return [_stamp(path) for path in (sorted(place.iterdir()) if place.is_dir() else [place])], False
    if config.kind != "files":
        return [], True
    try:
        listings = list_corpus(config)
    except UsageError:
        # Whoever opens or prepares says so.
        return [], True
    files = [source.path for listing in listings for source in listing.taken]
    return [_stamp(path) for path in files], all(listing.is_plain for listing in listings)


def _stamps_of_all(config: CorpusConfig) -> list:
    """The same of everything below the folders, as earlier versions had it."""
    return [
        _stamp(path)
        for source in (config.path, config.heldout_path)
        if source and Path(source).exists()
        for path in sorted([Path(source), *Path(source).rglob("*")])
    ]


def _stamp(path: Path) -> tuple[str, int, int]:
    try:
        status = path.stat()
    except OSError:
        # A link that leads nowhere.
        status = path.lstat()
    return str(path), status.st_size, status.st_mtime_ns
