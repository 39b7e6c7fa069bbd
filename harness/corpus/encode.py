"""A process that prepares a part of a text: `python -m harness.corpus.encode FOLDER train|INDEX COUNT|VOCABULARY`.

Training the tokenizer and encoding with it take nearly all the time of a preparation, inside a library that listens to
no signal: in processes of their own both can be ended at any moment, and encoding uses all cores.
"""

import ctypes
import hashlib
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

from harness.corpus.pieces import Piece, documents_of, read_piece, read_text, text_path, tokens_path, write_piece
from harness.data.shards import token_type
from harness.data.tokenizer import Tokenizer, TokenizerConfig, from_model_bytes, train_tokenizer
from harness.errors import CodelengthError, RunFailure
from harness.files import read_file, reason, write_file

MODEL_FILE = "tokenizer.model"
_DEATH_SIGNAL_OF_PARENT = 1


def train_on_pieces(folder: Path, vocab_size: int) -> None:
    """Train a SentencePiece tokenizer on the pieces of the training split, and leave its model in the folder.

    Raises UsageError for a vocabulary that the text cannot fill, RunFailure where it cannot be written.
    """
    texts = (_text(path) for path in sorted(folder.glob("train-*.text")))
    documents = (document for piece in texts for document in documents_of(piece))
    tokenizer = train_tokenizer(TokenizerConfig(kind="sentencepiece", vocab_size=vocab_size), documents)
    write_file(folder / MODEL_FILE, tokenizer.model_bytes())


def encode_pieces(folder: Path, texts: list[Path]) -> None:
    """Write the tokens of pieces of text, of those whose tokens are not there yet.

    Raises RunFailure where that fails.
    """
    tokenizer = from_model_bytes("sentencepiece", read_file(folder / MODEL_FILE))
    for path in texts:
        text, tokens = _text(path), path.with_suffix(".tokens")
        identity = tokens_identity(tokenizer, text)
        if read_piece(tokens, identity) is None:
            encoded = [tokenizer.encode(document) for document in documents_of(text)]
            content = b"".join(ids.astype(token_type(tokenizer), copy=False).tobytes() for ids in encoded)
            try:
                write_piece(tokens, identity, list(map(len, encoded)), content, text.raw_bytes)
            except OSError as error:
                raise RunFailure(f"{tokens}: cannot be written ({reason(error)})") from None


def tokens_of_pieces(folder: Path, split: str, count: int, tokenizer: Tokenizer) -> Iterator[Piece]:
    """Read the tokens of the pieces of a split, in their order.

    Raises RunFailure where one is missing or damaged.
    """
    for number in range(count):
        path = tokens_path(folder, split, number)
        piece = read_piece(path, tokens_identity(tokenizer, _text(text_path(folder, split, number))))
        if piece is None:
            raise RunFailure(f"{path}: missing or damaged; the same command makes it again")
        yield piece


def tokens_identity(tokenizer: Tokenizer, text: Piece) -> bytes:
    """Digest what decides the tokens of a piece."""
    return hashlib.sha256(hashlib.sha256(tokenizer.model_bytes()).digest() + text.digest).digest()


def _text(path: Path) -> Piece:
    piece = read_text(path)
    if piece is None:
        raise RunFailure(f"{path}: missing or damaged; remove {path.parent} and start the same command again")
    return piece


def main(arguments: list[str]) -> int:
    """Prepare one part of a text; returns the exit status."""
    # Ctrl-C is for the process that has started this one, which then ends it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_DEATH_SIGNAL_OF_PARENT, signal.SIGKILL)
    folder, what, number = Path(arguments[0]), arguments[1], int(arguments[2])
    try:
        if what == "train":
            train_on_pieces(folder, number)
        else:
            encode_pieces(folder, sorted(folder.glob("*.text"))[int(what) :: number])
    except CodelengthError as error:
        print(error, file=sys.stderr)
        return error.exit_status
    except (OSError, MemoryError) as error:
        print(f"{folder}: {error or 'out of memory'}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stderr.flush()
    os._exit(status)
