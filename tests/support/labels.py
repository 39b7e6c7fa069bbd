"""A small labelled set in a file, and the settings of a run on it that takes a second."""

from pathlib import Path

import numpy as np

NUM_ROWS, NUM_CLASSES = 240, 4


def labelled_set(path: Path, seed: int = 1, num_rows: int = NUM_ROWS) -> Path:
    """Write an npz of `num_rows` inputs of 8 x 8 pixels: each class lights one quarter, with noise."""
    generator = np.random.default_rng(seed)
    y = generator.integers(0, NUM_CLASSES, num_rows)
    y[:NUM_CLASSES] = np.arange(NUM_CLASSES)
    x = generator.integers(0, 90, (num_rows, 8, 8))
    for row, label in enumerate(y):
        top, left = 4 * (label // 2), 4 * (label % 2)
        x[row, top : top + 4, left : left + 4] += 100
    np.savez(path, x=x.astype(np.uint8), y=y)
    return path


def settings(folder: Path, path: Path, *more: str) -> list[str]:
    """A configuration for `path` with runs and data in `folder`."""
    return [
        "configs/labels.yaml",
        f"corpus.path={path}",
        "corpus.heldout_bytes=40",
        "model.architecture=mlp",
        "model.inputs=1x8x8",
        "model.hidden=16",
        "train.replays=2",
        "train.log_every_steps=5",
        "optimizer.learning_rate=1e-2",
        "online.segment_steps=4",
        f"runs_dir={folder}",
        f"data_dir={folder / 'data'}",
        *more,
    ]
