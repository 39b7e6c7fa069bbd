"""Probabilities that encoder and decoder compute bit-identically.

A float matrix product's last bits depend on its shape and on the number of threads that share it. So the same kernels
run with the same shapes on both sides: blocks of a fixed number of lanes step with a key-value cache, and each block is
computed by one thread. More threads compute more blocks at once and change no bit, and neither does reading several
tokens at a time, which is faster where they are known. Other processors may have other kernels: there, only a model in
integers (`eval.portable`) is sure to compute the same.
"""

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from eval.kernels.vectors import WIDTH
from eval.predict.stepping import Cache, SteppingModel, tiles_of

PROBE_STEPS = 16
# Numbers of a layer that a block computes at a time where tokens are known: 8 positions of 64 lanes 128 wide.
_MAX_NUMBERS = 1 << 18

Handler = Callable[[slice, slice, np.ndarray], None]
"""Takes lanes, positions, and probabilities (lanes, positions, vocabulary) of these."""


class Predictor:
    """Predicts the next tokens of `blocks` x `lanes` sequences side by side."""

    def __init__(
        self,
        model: SteppingModel,
        lanes: int,
        blocks: int,
        length: int,
        threads: int,
        others: Sequence[SteppingModel] = (),
    ):
        """Sequences have at most `length` tokens; `threads` blocks are computed at a time.

        `others` are the same model on other devices, which take turns with the first one to get a block.
        """
        torch.set_num_threads(1)
        self.model = model
        self.lanes, self.blocks, self.length = lanes, blocks, length
        self._pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
        # Models compute whole vectors of lanes.
        self._block_lanes = tiles_of(lanes) * WIDTH
        models, num_blocks = (model, *others), -(-self.width // self._block_lanes)
        self._models = [models[block % len(models)] for block in range(num_blocks)]
        self._caches = [own.new_cache(self._block_lanes, length) for own in self._models]

    @property
    def width(self) -> int:
        """Sequences that step side by side."""
        return self.blocks * self.lanes

    @property
    def begin(self) -> int:
        """The input symbol before the first."""
        return self.model.begin

    def start(self, _inputs: np.ndarray | None = None) -> None:
        """Begin a new wave of sequences; what the caches hold past the position is never read. Texts have no inputs."""
        for cache in self._caches:
            cache.position = 0

    def step(self, tokens: np.ndarray) -> np.ndarray:
        """Read `tokens` (n,) int64, n <= width; returns the weights of each next token (n, vocabulary).

        Only the blocks that hold the first n lanes are computed.
        """
        parts = self._parts(tokens[:, None])
        # One block needs no other thread, and the way there and back takes as long as a few tokens.
        run = self._pool.map if len(parts) > 1 else map
        rows = list(run(_step, self._models, parts, self._caches))
        return (rows[0] if len(rows) == 1 else np.concatenate(rows))[: len(tokens), 0]

    def read(self, tokens: np.ndarray, handle: Handler) -> None:
        """Read whole sequences `tokens` (n, length), and hand on what `step` would give for each position.

        `handle` is called from several threads at once; for the lanes of a block in the order of their positions.
        """
        self.start()
        inputs = np.pad(tokens[:, :-1], ((0, 0), (1, 0)), constant_values=self.model.begin)
        features = max(self.model.vocab_size, 4 * self.model.config.width)
        count = max(1, _MAX_NUMBERS // (self._block_lanes * features))

        def read_block(block: int, part: np.ndarray) -> None:
            first = block * self._block_lanes
            lanes = slice(first, min(first + self._block_lanes, len(tokens)))
            for start in range(0, part.shape[1], count):
                known = np.ascontiguousarray(part[:, start : start + count])
                rows = _step(self._models[block], known, self._caches[block])
                handle(lanes, slice(start, start + known.shape[1]), rows[: lanes.stop - first])

        parts = self._parts(inputs)
        list(self._pool.map(read_block, range(len(parts)), parts))

    def fingerprint(self) -> str:
        """Digest the probabilities of a fixed sequence by SHA-256: it differs where this machine computes otherwise."""
        digest = hashlib.sha256()
        self.start()
        tokens = np.full(self.lanes, self.model.begin)
        for step in range(min(PROBE_STEPS, self.length)):
            probabilities = self.step(tokens)
            digest.update(probabilities.astype(probabilities.dtype.newbyteorder("<")).tobytes())
            tokens = (np.arange(self.lanes) * 31 + step * 17) % self.model.vocab_size
        return digest.hexdigest()

    def _parts(self, tokens: np.ndarray) -> list[np.ndarray]:
        """`tokens` (n, count) by block; lanes without a token read zeros."""
        used = -(-len(tokens) // self._block_lanes)
        padded = np.zeros((used * self._block_lanes, tokens.shape[1]), dtype=np.int64)
        padded[: len(tokens)] = tokens
        return np.split(padded, used)


def _step(model: SteppingModel, tokens: np.ndarray, cache: Cache) -> np.ndarray:
    with torch.inference_mode():
        return model.step(tokens, cache)


def block_count(num_sequences: int, lanes: int, cache_bytes_per_lane: int, max_cache_bytes: int) -> int:
    """Choose the blocks that run side by side: enough for all sequences, as far as memory allows; at least 1."""
    affordable = max_cache_bytes // (cache_bytes_per_lane * lanes)
    return max(1, min(affordable, -(-num_sequences // lanes)))
