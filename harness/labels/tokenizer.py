"""Labels as tokens: a text of one byte a label, and a model that says which inputs the labels belong to."""

import struct

import numpy as np

from harness.errors import UsageError

MAX_CLASSES = 256
MAX_DIMENSION = 1 << 16
# Classes, shape of an input, and the SHA-256 of the inputs of both splits.
_MODEL = struct.Struct("<H3I32s32s")


class LabelTokenizer:
    """Each label is its own token id; the model names the inputs, so that they are part of every fingerprint."""

    kind = "labels"

    def __init__(self, num_classes: int, input_shape: tuple[int, ...], train_digest: bytes, heldout_digest: bytes):
        """`input_shape` is (channels, rows, columns); digests are `harness.labels.inputs.inputs_digest` of a split."""
        self.vocab_size, self.input_shape = num_classes, input_shape
        self.train_digest, self.heldout_digest = train_digest, heldout_digest
        self.token_bytes = np.ones(num_classes, dtype=np.int64)

    def encode(self, data: bytes) -> np.ndarray:
        """Token ids of `data`, one byte a label, uint8 (labels,), a read-only view; UsageError for other bytes."""
        labels = np.frombuffer(data, dtype=np.uint8)
        if labels.size and int(labels.max()) >= self.vocab_size:
            raise UsageError(f"label {int(labels.max())}: labels are from 0 to {self.vocab_size - 1}")
        return labels

    def decode(self, tokens: np.ndarray) -> bytes:
        """Inverse of `encode`; `tokens` may be of any integer type."""
        return np.asarray(tokens).astype(np.uint8).tobytes()

    def model_bytes(self) -> bytes:
        """All that another process needs but the inputs themselves."""
        return _MODEL.pack(self.vocab_size, *self.input_shape, self.train_digest, self.heldout_digest)


def read_label_tokenizer(data: bytes) -> LabelTokenizer:
    """The tokenizer of which `data` is the `model_bytes()`; UsageError where it is not one."""
    if len(data) == _MODEL.size:
        num_classes, *shape, train_digest, heldout_digest = _MODEL.unpack(data)
        if 2 <= num_classes <= MAX_CLASSES and all(1 <= size <= MAX_DIMENSION for size in shape):
            return LabelTokenizer(num_classes, tuple(shape), train_digest, heldout_digest)
    raise UsageError("tokenizer.kind=labels: its model is damaged; make it again")


def check_shape(inputs: str, tokenizer: LabelTokenizer) -> None:
    """Raises UsageError where `model.inputs` is not the shape of the inputs that labels are given."""
    shape = "x".join(map(str, tokenizer.input_shape))
    if inputs != shape:
        raise UsageError(f"model.inputs={inputs}: the inputs of the labels are {shape}; use model.inputs={shape}")
