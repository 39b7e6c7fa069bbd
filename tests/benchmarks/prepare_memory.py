"""Prepares a synthetic text file with the bytes tokenizer and prints time, rate and peak memory.

Usage, from the top folder: python -m tests.benchmarks.prepare_memory [--gigabytes N] [--folder DIR]
It needs twice N of disk space.
"""

import argparse
import resource
import tempfile
import time
from pathlib import Path

import numpy as np

from harness.corpus.config import CorpusConfig, read_documents
from harness.data.shards import write_shard
from harness.data.tokenizer import TokenizerConfig, train_tokenizer

BLOCK_BYTES = 10_000_000


def make_text(path: Path, num_bytes: int) -> None:
    """Lines of random lower-case words."""
    generator = np.random.default_rng(0)
    letters = np.frombuffer(b"abcdefghijklmnopqrstuvwxyz     \n", dtype=np.uint8)
    with path.open("wb") as file:
        for start in range(0, num_bytes, BLOCK_BYTES):
            block_bytes = min(BLOCK_BYTES, num_bytes - start)
            file.write(letters[generator.integers(len(letters), size=block_bytes, dtype=np.uint8)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=6.0, help="size of the text in 10^9 bytes (default 6)")
    parser.add_argument("--folder", type=Path, default=None, help="where the files are made (default: the system's)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        text = Path(folder) / "corpus.txt"
        make_text(text, round(arguments.gigabytes * 1e9))
        config = CorpusConfig(kind="files", path=str(text))
        start = time.perf_counter()
        tokenizer = train_tokenizer(TokenizerConfig(), read_documents(config, "train"))
        texts = ((Path(folder) / split, read_documents(config, split)) for split in ("train", "heldout"))
        shards = [write_shard(path, text, tokenizer) for path, text in texts]
        seconds = time.perf_counter() - start
        raw_bytes = sum(shard.raw_bytes for shard in shards)
        # Linux gives the peak in units of 1024 bytes.
        peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        rate = raw_bytes / seconds / 1e6
        print(f"{raw_bytes} bytes in {seconds:.1f} s: {rate:.0f} MB/s, peak {peak_bytes / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
