"""A small labelled set in a file, and the settings of a run on it that takes a second."""

from pathlib import Path

import numpy as np

from eval.labels.archive import QuantisedClassifier, write_label_archive
from harness.labels.arranged import arranged
from harness.labels.inputs import inputs_digest
from harness.labels.sets import read_set
from harness.labels.tokenizer import LabelTokenizer
from harness.model.transformer import ModelConfig, make_model

NUM_ROWS, NUM_CLASSES, NUM_HELDOUT = 240, 4, 40


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
        f"corpus.heldout_bytes={NUM_HELDOUT}",
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


def coded_labels(path: Path) -> bytes:
    """The labels of the set in `path` that these settings train on, a byte each."""
    labels = arranged(read_set(str(path)), None, NUM_HELDOUT)[0].labels
    assert labels is not None
    return labels.tobytes()


def write_labels(archive: Path, path: Path) -> None:
    """Write a label archive of the set in `path`: a linear classifier that knows which pixels are bright."""
    inputs = arranged(read_set(str(path)), None, NUM_HELDOUT)[0].inputs
    config = ModelConfig(architecture="softmax", inputs="1x8x8", context=1)
    tokenizer = LabelTokenizer(NUM_CLASSES, (1, 8, 8), inputs_digest(inputs), b"")
    shapes = {name: tuple(p.shape) for name, p in make_model(config, NUM_CLASSES, 0).named_parameters()}
    rows, columns = np.divmod(np.arange(64), 8)
    is_bright = np.arange(NUM_CLASSES)[:, None] == 2 * (rows // 4) + columns // 4
    integers = {"head.weight": np.where(is_bright, 1, 0), "head.bias": np.zeros(shapes["head.bias"], dtype=int)}
    model = QuantisedClassifier(config, 0, tokenizer, integers, dict.fromkeys(shapes, np.float32(0.5)))
    write_label_archive(archive, model, inputs, np.frombuffer(coded_labels(path), dtype=np.uint8))
