"""Probabilities that encoder and decoder compute bit-identically.

A float matrix product's last bits depend on its shape and on the number of threads that share it. So the same kernels
run with the same shapes on both sides: blocks of a fixed number of lanes step one token at a time with a key-value
cache, and each block is computed by one thread. More threads compute more blocks at once and change no bit. Other
processors have other kernels: there, only a model in integers (`eval.portable`) computes the same.
"""

import hashlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from eval.stepping import SteppingModel

PROBE_STEPS = 16


class Predictor:
    """Steps `blocks` x `lanes` sequences side by side."""

    def __init__(self, model: SteppingModel, lanes: int, blocks: int, length: int, threads: int):
        """Sequences have at most `length` tokens; `threads` blocks are computed at a time."""
        torch.set_num_threads(1)
        self.model = model
        self.lanes, self.blocks, self.length = lanes, blocks, length
        self._pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
        self._caches = [model.new_cache(lanes, length) for _ in range(blocks)]

    @property
    def width(self) -> int:
        """Sequences that step side by side."""
        return self.blocks * self.lanes

    def start(self) -> None:
        """Begin a new wave of sequences; what the caches hold past the position is never read."""
        for cache in self._caches:
            cache.position = 0

    def step(self, tokens: np.ndarray) -> np.ndarray:
        """What the model gives each next token (n, vocabulary) after reading `tokens` (n,) int64, n <= width.

        Only the blocks that hold the first n lanes are computed.
        """
        used = -(-len(tokens) // self.lanes)
        padded = np.zeros(used * self.lanes, dtype=np.int64)
        padded[: len(tokens)] = tokens
        parts = np.split(padded, used)
        # One block needs no other thread, and the way there and back takes as long as a few tokens.
        run = self._pool.map if used > 1 else map
        rows = list(run(self._step_block, range(used), parts))
        return np.concatenate(rows)[: len(tokens)]

    def fingerprint(self) -> str:
        """SHA-256 of the probabilities of a fixed sequence: differs where this machine computes otherwise."""
        digest = hashlib.sha256()
        self.start()
        tokens = np.full(self.lanes, self.model.begin)
        for step in range(min(PROBE_STEPS, self.length)):
            probabilities = self.step(tokens)
            digest.update(probabilities.astype(probabilities.dtype.newbyteorder("<")).tobytes())
            tokens = (np.arange(self.lanes) * 31 + step * 17) % self.model.vocab_size
        return digest.hexdigest()

    def _step_block(self, block: int, tokens: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return self.model.step(torch.from_numpy(tokens), self._caches[block]).numpy()


def block_count(num_sequences: int, lanes: int, cache_bytes_per_lane: int, max_cache_bytes: int) -> int:
    """Blocks of a wave: enough for all sequences, as far as memory for keys and values allows; at least 1."""
    affordable = max_cache_bytes // (cache_bytes_per_lane * lanes)
    return max(1, min(affordable, -(-num_sequences // lanes)))
