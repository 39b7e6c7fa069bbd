"""A text with its bytes permuted: what is left of it for a model to learn is how frequent each byte is."""

from collections.abc import Iterable, Iterator

import numpy as np

from harness.errors import UsageError

BLOCK_BYTES = 1 << 20
# numpy draws from urns of fewer balls than this.
MAX_BYTES = 10**9 - 1
_NUM_BYTE_VALUES = 256


def shuffled(stream: Iterable[bytes], seed: int) -> Iterator[bytes]:
    """Permute the bytes of `stream`, all orders being equally likely; stream and seed decide the order.

    The bytes are counted, and then drawn from an urn with these counts without putting any back, so memory does not
    grow with the stream. Raises UsageError where it holds more than `MAX_BYTES`.
    """
    left, num_bytes = np.zeros(_NUM_BYTE_VALUES, dtype=np.int64), 0
    for document in stream:
        num_bytes += len(document)
        if num_bytes > MAX_BYTES:
            raise UsageError(f"corpus.shuffle=true: permutes at most {MAX_BYTES} bytes; set corpus.subset_bytes")
        left += np.bincount(np.frombuffer(document, dtype=np.uint8), minlength=_NUM_BYTE_VALUES)
    generator = np.random.default_rng(seed)
    values = np.arange(_NUM_BYTE_VALUES, dtype=np.uint8)
    while num_bytes:
        block_bytes = min(BLOCK_BYTES, num_bytes)
        drawn = generator.multivariate_hypergeometric(left, block_bytes, method="marginals")
        left, num_bytes = left - drawn, num_bytes - block_bytes
        yield generator.permutation(np.repeat(values, drawn)).tobytes()
