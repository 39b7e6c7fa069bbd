"""The offline code without its file: weights really coded, the text as the sum of its ideal code lengths.

For sweeps over many runs, where only the shortest is worth a file; everything that comes of it says `ideal`.
"""

import hashlib
import time
from collections.abc import Callable

import numpy as np
import torch

from eval.offline.archive import ArchiveReport, QuantisedModel
from eval.weights.codec import decode_weights, encode_weights
from harness.errors import RunFailure
from harness.model.transformer import token_nats
from harness.units import bits_from_nats, bytes_from_bits

ROWS_PER_FORWARD = 16
Progress = Callable[[int, int], None]


def split(text: bytes, chunk_bytes: int) -> list[bytes]:
    """Chunks of `text`; the last one may be short."""
    return [text[start : start + chunk_bytes] for start in range(0, len(text), chunk_bytes)]


def ideal_bits(
    model: QuantisedModel, chunks: list[bytes], dtype: torch.dtype, progress: Progress = lambda *_: None
) -> float:
    """-log2 of the probabilities of `chunks`, which share no context, each from the begin symbol, in bits."""
    transformer = model.transformer().eval()
    nats_sum, done, total = 0.0, 0, sum(map(len, chunks))
    with torch.inference_mode():
        for start in range(0, len(chunks), ROWS_PER_FORWARD):
            rows = [model.tokenizer.encode(chunk) for chunk in chunks[start : start + ROWS_PER_FORWARD]]
            tokens = np.zeros((len(rows), max(map(len, rows))), dtype=np.int64)
            mask = np.zeros(tokens.shape, dtype=bool)
            for row, values in enumerate(rows):
                tokens[row, : len(values)], mask[row, : len(values)] = values, True
            nats = token_nats(transformer, torch.from_numpy(tokens), dtype).numpy()
            nats_sum += float(nats[mask].sum(dtype=np.float64))
            done += sum(map(len, chunks[start : start + ROWS_PER_FORWARD]))
            progress(done, total)
    return bits_from_nats(nats_sum)


def ideal_archive(
    model: QuantisedModel, text: bytes, chunk_bytes: int, dtype: torch.dtype, progress: Progress
) -> ArchiveReport:
    """What an archive of `text` would consist of but for its header and checksum.

    Raises RunFailure where the coded weights do not decode to themselves.
    """
    start = time.perf_counter()
    payload = encode_weights(model.integers, model.steps)
    decoded, _ = decode_weights(payload, {name: q.shape for name, q in model.integers.items()})
    if not all(np.array_equal(decoded[name], q) for name, q in model.integers.items()):
        raise RunFailure("weights: do not decode to what was coded, so that no total is right; please report this run")
    bits = ideal_bits(model, split(text, chunk_bytes), dtype, progress)
    data_bytes, tokenizer_bytes = round(bytes_from_bits(bits)), len(model.tokenizer.model_bytes())
    return ArchiveReport(
        header_bytes=0,
        model_bytes=len(payload),
        tokenizer_bytes=tokenizer_bytes,
        data_bytes=data_bytes,
        checksum_bytes=0,
        total_bytes=len(payload) + tokenizer_bytes + data_bytes,
        ideal_data_bits=bits,
        quantised_data_bits=bits,
        sha256=hashlib.sha256(text).hexdigest(),
        encode_seconds=time.perf_counter() - start,
        kind="ideal",
    )
