"""Prepared data: tokenizer and shards of a corpus, made once and kept under `data_dir`."""

import hashlib
import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from harness.config import RunConfig
from harness.corpus import documents
from harness.errors import UsageError
from harness.shards import Shard, open_shard, write_shard
from harness.tokenizer import ByteTokenizer, SentencePieceTokenizer, from_model_bytes, train_tokenizer


@dataclass(frozen=True, slots=True)
class Data:
    """Tokenizer and both splits of a corpus."""

    directory: Path
    tokenizer: ByteTokenizer | SentencePieceTokenizer
    train: Shard
    heldout: Shard


def data_directory(config: RunConfig) -> Path:
    """Where the shards of this corpus and tokenizer lie; local source files count with size and time of change."""
    stamps = [
        (str(path), path.stat().st_size, path.stat().st_mtime_ns)
        for source in (config.corpus.path, config.corpus.heldout_path)
        if source and Path(source).exists()
        for path in sorted([Path(source), *Path(source).rglob("*")])
    ]
    corpus = asdict(config.corpus)
    if corpus["on_null"] == "fail":
        # As it was before there was a choice.
        del corpus["on_null"]
    key = json.dumps([corpus, asdict(config.tokenizer), stamps])
    return Path(config.data_dir) / f"{config.corpus.kind}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"


def open_data(config: RunConfig) -> Data:
    """Open what `prepare_data` made.

    Raises UsageError where it is missing or damaged.
    """
    directory = data_directory(config)
    model_path = directory / "tokenizer.model"
    if not model_path.exists():
        raise UsageError(f"{directory}: not prepared; run `codelength data` with the same configuration first")
    tokenizer = from_model_bytes(config.tokenizer.kind, model_path.read_bytes())
    return Data(directory, tokenizer, open_shard(directory / "train.shard"), open_shard(directory / "heldout.shard"))


def prepare_data(config: RunConfig) -> Data:
    """Train the tokenizer and write the shards, unless they are there already.

    The whole directory appears at once: a killed preparation leaves only a `.tmp` that the next one removes.
    Raises UsageError where the corpus cannot be read.
    """
    directory = data_directory(config)
    if not directory.exists():
        temporary = directory.with_suffix(".tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        try:
            tokenizer = train_tokenizer(config.tokenizer, documents(config.corpus, "train"))
            write_shard(temporary / "train.shard", documents(config.corpus, "train"), tokenizer)
            write_shard(temporary / "heldout.shard", documents(config.corpus, "heldout"), tokenizer)
            (temporary / "tokenizer.model").write_bytes(tokenizer.model_bytes())
            temporary.rename(directory)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return open_data(config)
