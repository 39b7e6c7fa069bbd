"""Lossless symbols: any byte string becomes token ids and comes back unchanged."""

import io
import re
import struct
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Union

import brotli
import numpy as np
import sentencepiece

from harness.errors import UsageError

if TYPE_CHECKING:
    from harness.labels.tokenizer import LabelTokenizer

KINDS = ("bytes", "sentencepiece", "labels")
NUM_BYTE_VALUES = 256
MIN_SENTENCEPIECE_VOCAB = NUM_BYTE_VALUES + 2
MAX_VOCAB = 1 << 16
# A damaged or hostile model must not fill the memory when it is decompressed; 65,536 pieces take far less.
MAX_MODEL_BYTES = 1 << 23
# Merges found in the first 64 MB hardly change with more text, while sentencepiece holds all of it in memory.
TRAINING_TEXT_BYTES = 64_000_000
SPAN_CHARACTERS = 4096
MAX_UTF8_BYTES = 4
BLOCK_BYTES = 1 << 20
UNKNOWN_ID = 0
FIRST_BYTE_ID = 1
FIRST_PIECE_ID = FIRST_BYTE_ID + NUM_BYTE_VALUES
SPACE_MARK = "\u2581"
# Invalid bytes (decoded to lone surrogates), the mark that stands for a space inside sentencepiece, and NUL.
UNREPRESENTABLE = re.compile("[\udc80-\udcff\u2581\0]+")


@dataclass(kw_only=True, slots=True)
class TokenizerConfig:
    """How bytes become tokens."""

    kind: str = "bytes"
    """bytes (256 symbols), sentencepiece (BPE trained on the training split), or labels (for corpus.kind=labels)."""
    vocab_size: int = 4096
    """Number of symbols of sentencepiece, 258 to 65536; 257 of them stand for single bytes and the unknown."""

    def problems(self) -> list[str]:
        """Every bad value, one line each that names key, value and remedy."""
        problems = []
        if self.kind not in KINDS:
            problems.append(f"tokenizer.kind={self.kind}: unknown; use bytes, sentencepiece or labels")
        if self.kind == "sentencepiece" and not MIN_SENTENCEPIECE_VOCAB <= self.vocab_size <= MAX_VOCAB:
            problems.append(
                f"tokenizer.vocab_size={self.vocab_size}: must be from {MIN_SENTENCEPIECE_VOCAB} to {MAX_VOCAB}"
            )
        return problems


class ByteTokenizer:
    """Each byte is its own token id."""

    kind = "bytes"
    vocab_size = NUM_BYTE_VALUES

    def __init__(self) -> None:
        self.token_bytes = np.ones(NUM_BYTE_VALUES, dtype=np.int64)

    def encode(self, data: bytes) -> np.ndarray:
        """Token ids of `data`, uint8 of shape (bytes,), a read-only view of it."""
        return np.frombuffer(data, dtype=np.uint8)

    def decode(self, tokens: np.ndarray) -> bytes:
        """Inverse of `encode`; `tokens` may be of any integer type."""
        return np.asarray(tokens).astype(np.uint8).tobytes()

    def model_bytes(self) -> bytes:
        """Nothing is needed to rebuild this tokenizer."""
        return b""


class SentencePieceTokenizer:
    """Byte-pair merges with byte fallback; `pieces` are the texts of ids 257 and up, spaces as themselves."""

    kind = "sentencepiece"

    def __init__(self, pieces: list[str]) -> None:
        self._pieces = pieces
        self.vocab_size = FIRST_PIECE_ID + len(pieces)
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=_model_proto(pieces))
        byte_values = [bytes([value]) for value in range(NUM_BYTE_VALUES)]
        self._token_table = [b"", *byte_values, *(piece.encode() for piece in pieces)]
        self.token_bytes = np.array([len(entry) for entry in self._token_table], dtype=np.int64)

    def encode(self, data: bytes) -> np.ndarray:
        """Token ids of `data`, uint16 of shape (tokens,)."""
        ids = array("H")
        for raw, text in _spans(data):
            span_ids = [] if text is None else self._processor.encode(text)
            if b"".join(map(self._token_table.__getitem__, span_ids)) != raw:
                # Lossless whatever sentencepiece does with a text: what it alters is spelt byte by byte.
                span_ids = [FIRST_BYTE_ID + value for value in raw]
            ids.extend(span_ids)
        return np.frombuffer(ids, dtype=np.uint16)

    def decode(self, tokens: np.ndarray) -> bytes:
        """Inverse of `encode`; `tokens` may be of any integer type."""
        return b"".join(map(self._token_table.__getitem__, np.asarray(tokens).tolist()))

    def model_bytes(self) -> bytes:
        """The pieces in the order of their ids, compressed: all that another process needs."""
        return brotli.compress("\0".join(self._pieces).encode())


Tokenizer = Union[ByteTokenizer, SentencePieceTokenizer, "LabelTokenizer"]


def from_model_bytes(kind: str, data: bytes) -> "Tokenizer":
    """The tokenizer of which `data` is the `model_bytes()`; UsageError if they do not fit."""
    if kind == "bytes" and not data:
        return ByteTokenizer()
    if kind == "labels":
        # Texts need none.
        from harness.labels.tokenizer import read_label_tokenizer

        return read_label_tokenizer(data)
    if kind == "sentencepiece":
        try:
            decompressor = brotli.Decompressor()
            pieces = decompressor.process(data, output_buffer_limit=MAX_MODEL_BYTES).decode().split("\0")
            is_whole = decompressor.is_finished()
            if (
                is_whole
                and all(pieces)
                and FIRST_PIECE_ID + len(pieces) <= MAX_VOCAB
                and len(set(pieces)) == len(pieces)
            ):
                return SentencePieceTokenizer(pieces)
        except (brotli.error, UnicodeDecodeError, RuntimeError) as error:
            raise UsageError("tokenizer.kind=sentencepiece: its model is damaged; make it again") from error
    raise UsageError(f"tokenizer.kind={kind}: its model of {len(data)} bytes is not one; make it again")


def train_tokenizer(config: TokenizerConfig, documents: Iterator[bytes]) -> Tokenizer:
    """The tokenizer of `config`; sentencepiece reads at most the first 64 MB of `documents`, bytes reads nothing.

    The same documents give the same tokenizer. Raises UsageError for a vocabulary that the text cannot fill.
    """
    if problems := config.problems():
        raise UsageError("; ".join(problems))
    if config.kind == "bytes":
        return ByteTokenizer()
    if config.kind == "labels":
        raise UsageError("tokenizer.kind=labels: a file has no inputs to give labels; send the corpus instead")
    sentences = _training_sentences(documents)
    if not sentences:
        raise UsageError("tokenizer.kind=sentencepiece: the corpus has no text to train on; use tokenizer.kind=bytes")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=model,
            model_type="bpe",
            vocab_size=config.vocab_size,
            max_sentence_length=SPAN_CHARACTERS * MAX_UTF8_BYTES,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            byte_fallback=True,
            unk_id=UNKNOWN_ID,
            bos_id=-1,
            eos_id=-1,
            pad_id=-1,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise UsageError(_vocabulary_message(config.vocab_size, str(error))) from error
    trained = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    pieces = [trained.id_to_piece(index) for index in range(FIRST_PIECE_ID, trained.vocab_size())]
    return SentencePieceTokenizer([piece.replace(SPACE_MARK, " ") for piece in pieces])


def _training_sentences(documents: Iterator[bytes]) -> list[str]:
    """Spans of valid text from the first `TRAINING_TEXT_BYTES` bytes."""
    sentences, remaining_bytes = [], TRAINING_TEXT_BYTES
    for document in documents:
        sentences += [text for _, text in _spans(document[:remaining_bytes]) if text is not None]
        remaining_bytes -= len(document)
        if remaining_bytes <= 0:
            break
    return sentences


def _spans(data: bytes) -> Iterator[tuple[bytes, str | None]]:
    """`data` cut into (its bytes, the same as text, or None where sentencepiece cannot represent them)."""
    # Blocks bound the memory: the decoded text takes up to four bytes a character.
    for start in range(0, len(data), BLOCK_BYTES):
        text = data[start : start + BLOCK_BYTES].decode("utf-8", "surrogateescape")
        position = 0
        for match in UNREPRESENTABLE.finditer(text):
            yield from _text_spans(text[position : match.start()])
            yield match.group().encode("utf-8", "surrogateescape"), None
            position = match.end()
        yield from _text_spans(text[position:])


def _text_spans(text: str) -> Iterator[tuple[bytes, str]]:
    for start in range(0, len(text), SPAN_CHARACTERS):
        span = text[start : start + SPAN_CHARACTERS]
        yield span.encode(), span


def _vocabulary_message(vocab_size: int, message: str) -> str:
    """What sentencepiece says about a vocabulary, as one line."""
    key = f"tokenizer.vocab_size={vocab_size}"
    if too_large := re.search(r"set it to a value <= (\d+)", message):
        return f"{key}: too large for this corpus; use at most {too_large[1]}"
    if too_small := re.search(r"required_chars\. \d+ vs (\d+)", message):
        return f"{key}: too small for the characters of this corpus; use at least {too_small[1]}"
    return f"{key}: sentencepiece cannot train on this corpus ({message.splitlines()[0].strip()}); use another value"


def _model_proto(pieces: list[str]) -> bytes:
    """The sentencepiece model file (a protocol buffer) that follows from the pieces alone.

    In BPE the score of a piece is minus its rank, and everything else is constant, so nothing but the texts need be
    stored. Field numbers are those of sentencepiece_model.proto.
    """
    unknown_type, byte_type = 2, 6
    entries = [_piece_proto("<unk>", 0.0, unknown_type)]
    entries += [_piece_proto(f"<0x{value:02X}>", 0.0, byte_type) for value in range(NUM_BYTE_VALUES)]
    entries += [_piece_proto(text.replace(" ", SPACE_MARK), -float(rank)) for rank, text in enumerate(pieces)]
    # model_type (3) = BPE, byte_fallback (35) = true, unk_id (40) = 0, bos_id, eos_id, pad_id (41, 42, 43) = -1.
    minus_one = b"\xff" * 9 + b"\x01"
    trainer = b"\x18\x02" + b"\x98\x02\x01" + b"\xc0\x02\x00"
    trainer += b"".join(tag + minus_one for tag in (b"\xc8\x02", b"\xd0\x02", b"\xd8\x02"))
    # name (1) = identity, add_dummy_prefix (3) and remove_extra_whitespaces (4) = false.
    normalizer = _length_delimited(1, b"identity") + b"\x18\x00" + b"\x20\x00"
    return b"".join(entries) + _length_delimited(2, trainer) + _length_delimited(3, normalizer)


def _piece_proto(text: str, score: float, piece_type: int | None = None) -> bytes:
    body = _length_delimited(1, text.encode()) + b"\x15" + struct.pack("<f", score)
    return _length_delimited(1, body if piece_type is None else body + bytes([0x18, piece_type]))


def _length_delimited(field: int, payload: bytes) -> bytes:
    """A protocol buffer field that holds bytes: tag, length as a base-128 number, payload."""
    length, size = len(payload), bytearray()
    while length >= 0x80:
        size.append(length & 0x7F | 0x80)
        length >>= 7
    return bytes([field << 3 | 2, *size, length]) + payload
