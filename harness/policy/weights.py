"""A policy as a file: how much each sequence of a text counts in the updates of each stretch of training.

Layout, little-endian: 8 bytes CLPOLICY | u32 stages | u32 sequences | weights (stages, sequences) as bytes, in units of
1/16 of the mean weight, at most 255 of them, transposed, packed by brotli. It is chosen with knowledge of the text, so
a code that needs it is charged with the file.
"""

import hashlib
import struct
from dataclasses import dataclass
from pathlib import Path

import brotli
import numpy as np

from harness.errors import UsageError
from harness.files import reason

_HEAD = struct.Struct("<8sII")
_MAGIC = b"CLPOLICY"
_UNITS, _MOST_UNITS = 16.0, 255
MAX_WEIGHTS = 1 << 28
_REMEDY = "give a file that `codelength study` has written"


@dataclass(frozen=True, slots=True)
class Policy:
    """Weights in sixteenths."""

    units: np.ndarray
    """Shape (stages, sequences), uint8; in every stage some are above 0."""

    @classmethod
    def of_weights(cls, weights: np.ndarray) -> "Policy":
        """Round `weights` (stages, sequences), of which none is negative and each stage has some above 0."""
        relative = weights / weights.mean(axis=1, keepdims=True)
        units = np.clip(np.rint(_UNITS * relative), 0, _MOST_UNITS).astype(np.uint8)
        # Of weights that all round to 0 the largest stays.
        empty = np.flatnonzero(~units.any(axis=1))
        units[empty, weights[empty].argmax(axis=1)] = 1
        return cls(units)

    def weights(self, done: float) -> np.ndarray:
        """Weight of each sequence (sequences,), float32 of mean 1, when the fraction `done` of a phase is over."""
        stages = len(self.units)
        stage = self.units[min(int(done * stages), stages - 1)].astype(np.float64)
        return (stage / stage.mean()).astype(np.float32)

    def to_bytes(self) -> bytes:
        """Pack it."""
        stages, sequences = self.units.shape
        packed = brotli.compress(np.ascontiguousarray(self.units.T).tobytes())
        return _HEAD.pack(_MAGIC, stages, sequences) + packed

    @property
    def sha256(self) -> str:
        """Digest of what it says."""
        return hashlib.sha256(self.to_bytes()).hexdigest()


def num_weights(content: bytes, sequences: int) -> int:
    """Read from the head how many weights there are; raises ValueError where it is no policy of so many sequences."""
    if len(content) < _HEAD.size:
        raise ValueError("no policy")
    magic, stages, count = _HEAD.unpack_from(content)
    if magic != _MAGIC or not stages:
        raise ValueError("no policy")
    if count != sequences:
        raise ValueError(f"a policy of {count:,} sequences, and the text has {sequences:,}")
    if stages * count > MAX_WEIGHTS:
        raise ValueError(f"more than {MAX_WEIGHTS:,} weights")
    return stages * count


def read_policy(content: bytes, sequences: int) -> Policy:
    """Read what `to_bytes` has written; raises ValueError where it is no policy of so many sequences."""
    total = num_weights(content, sequences)
    try:
        decompressor = brotli.Decompressor()
        plain = decompressor.process(content[_HEAD.size :], output_buffer_limit=total + 1)
        is_whole = decompressor.is_finished()
    except brotli.error as error:
        raise ValueError("damaged") from error
    if not is_whole or len(plain) != total:
        raise ValueError("damaged")
    units = np.ascontiguousarray(np.frombuffer(plain, dtype=np.uint8).reshape(sequences, -1).T)
    if not units.any(axis=1).all():
        raise ValueError("a stage without any weight")
    return Policy(units)


def load_policy(path: str, sequences: int) -> Policy:
    """Read the file that `train.policy` names, for a text of so many sequences.

    Raises UsageError where it cannot be read or belongs to another text, before more of it is read than its head.
    """
    try:
        with Path(path).open("rb") as file:
            head = file.read(_HEAD.size)
            total = num_weights(head, sequences)
            # Brotli adds less to what it cannot pack.
            most = total + (total >> 10) + 1024
            packed = file.read(most + 1)
        if len(packed) > most:
            raise ValueError("damaged")
        return read_policy(head + packed, sequences)
    except OSError as error:
        raise UsageError(f"train.policy={path}: cannot be read ({reason(error)})") from None
    except ValueError as error:
        raise UsageError(f"train.policy={path}: {error}; {_REMEDY}") from None


def received_policy(path: Path, content: bytes, num_tokens: int, context: int) -> Policy:
    """Read the policy of the online code at `path`; raises UsageError where it is damaged or another text's."""
    try:
        return read_policy(content, -(-num_tokens // context))
    except ValueError as error:
        raise UsageError(f"{path}: malformed policy ({error}); fetch the file again") from None
