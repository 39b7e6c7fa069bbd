"""Labels as tokens: a text of one byte a label, and a model that says which inputs the labels belong to."""

import struct

import numpy as np

from harness.errors import UsageError

MAX_CLASSES = 256
MAX_DIMENSION = (1 << 16) - 1
_DIGEST_BYTES, _RECEIVER_DIGEST_BYTES = 32, 8
# Classes less one, and shape of an input; digests of both splits follow, at a receiver the start of one.
_MODEL = struct.Struct("<B3H")
_SIZES = {_MODEL.size + 2 * _DIGEST_BYTES: _DIGEST_BYTES, _MODEL.size + _RECEIVER_DIGEST_BYTES: _RECEIVER_DIGEST_BYTES}


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
        return _MODEL.pack(self.vocab_size - 1, *self.input_shape) + self.train_digest + self.heldout_digest

    def of_receiver(self) -> "LabelTokenizer":
        """The same with no more than a receiver needs: nothing of the held-out split, and 64 bits of the digest."""
        return LabelTokenizer(self.vocab_size, self.input_shape, self.train_digest[:_RECEIVER_DIGEST_BYTES], b"")

    def names(self, inputs: np.ndarray, digest: bytes) -> bool:
        """Whether `inputs` (n, channels, rows, columns) with a digest are those that labels are trained on."""
        return inputs.shape[1:] == self.input_shape and digest.startswith(self.train_digest)


def read_label_tokenizer(data: bytes) -> LabelTokenizer:
    """The tokenizer of which `data` is the `model_bytes()`; UsageError where it is not one."""
    if len(data) in _SIZES:
        largest, *shape = _MODEL.unpack_from(data)
        end = _MODEL.size + _SIZES[len(data)]
        if largest and all(shape):
            return LabelTokenizer(largest + 1, tuple(shape), data[_MODEL.size : end], data[end:])
    raise UsageError("tokenizer.kind=labels: its model is damaged, or of an earlier version")


def check_shape(inputs: str, tokenizer: LabelTokenizer) -> None:
    """Raises UsageError where `model.inputs` is not the shape of the inputs that labels are given."""
    shape = "x".join(map(str, tokenizer.input_shape))
    if inputs != shape:
        raise UsageError(f"model.inputs={inputs}: the inputs of the labels are {shape}; use model.inputs={shape}")
