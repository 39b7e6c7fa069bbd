"""Labelled sets: formats of files, splits, and what is refused in words."""

import gzip
import io
import math
import pickle
import struct

import numpy as np
import pytest

from harness.errors import UsageError
from harness.labels.arranged import arranged, arranged_inputs
from harness.labels.sets import _ArrayUnpickler, read_set
from tests.support.labels import labelled_set


def write_idx(path, array):
    head = b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(gzip.compress(head + array.tobytes()) if path.suffix == ".gz" else head + array.tobytes())


def test_idx_files_packed_or_not_and_cifar_batches_are_read(tmp_path):
    images, labels = np.arange(5 * 6 * 7, dtype=np.uint8).reshape(5, 6, 7), np.array([0, 1, 2, 1, 0], dtype=np.uint8)
    write_idx(tmp_path / "train-images-idx3-ubyte.gz", images)
    write_idx(tmp_path / "train-labels-idx1-ubyte", labels)
    found = read_set(str(tmp_path))
    assert np.array_equal(found.inputs[:, 0], images) and found.labels.tolist() == labels.tolist()
    assert found.num_classes == 3 and found.heldout_inputs is None

    rows = np.random.default_rng(0).integers(0, 10, (4, 3073)).astype(np.uint8)
    batches = tmp_path / "cifar"
    batches.mkdir()
    for name in ("data_batch_1.bin", "test_batch.bin"):
        (batches / name).write_bytes(rows.tobytes())
    found = read_set(str(batches))
    assert found.inputs.shape == found.heldout_inputs.shape == (4, 3, 32, 32)
    assert np.array_equal(found.inputs.reshape(4, -1), rows[:, 1:]) and np.array_equal(found.labels, rows[:, 0])


def test_every_row_is_trained_on_or_held_out_and_a_receiver_has_the_same_rows(tmp_path):
    found = read_set(str(labelled_set(tmp_path / "set.npz")))
    train, held = arranged(found, None, 40)
    assert len(train.inputs) == 200 and len(held.inputs) == 40
    rows = np.concatenate([train.inputs, held.inputs]).reshape(240, -1)
    assert np.array_equal(np.sort(rows, axis=0), np.sort(found.inputs.reshape(240, -1), axis=0))
    assert np.array_equal(arranged_inputs(read_set(str(tmp_path / "set.npz"), needs_labels=False), 200), train.inputs)

    fake, _ = arranged(found, None, 40, shuffle=True)
    assert np.array_equal(fake.inputs, train.inputs) and (fake.labels != train.labels).any()
    assert np.array_equal(np.bincount(fake.labels), np.bincount(train.labels))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"x": np.zeros((3, 4))}, "without y"),
        ({"y": np.zeros(3, dtype=int)}, "without x"),
        ({"x": np.zeros((3, 4)), "y": np.zeros(2, dtype=int)}, "y has shape (2,) for 3 inputs"),
        ({"x": np.zeros((3, 4)), "y": np.array([0, 1, 300])}, "labels must be whole numbers from 0 to 255"),
        ({"x": np.zeros((3, 4)), "y": np.array([0.0, 1.0, 0.5])}, "labels must be whole numbers"),
        ({"x": np.array([[0.0, np.nan]]), "y": np.array([1])}, "must be finite"),
        ({"x": np.array([[{}]]), "y": np.array([1])}, "damaged"),
    ],
)
def test_what_is_no_labelled_set_is_refused_in_words(tmp_path, content, words):
    path = tmp_path / "set.npz"
    np.savez(path, **content)
    with pytest.raises(UsageError) as refusal:
        read_set(str(path))
    assert words in str(refusal.value) and str(path) in str(refusal.value) and "\n" not in str(refusal.value)


def test_damaged_idx_files_and_foreign_pickles_are_refused(tmp_path):
    write_idx(tmp_path / "train-images-idx3-ubyte", np.zeros((2, 2, 2), dtype=np.uint8))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01" + struct.pack(">I", 1 << 31) + b"\1")
    with pytest.raises(UsageError, match="has 1 bytes where its head says"):
        read_set(str(tmp_path))
    arrays = pickle.dumps([np.arange(3), np.ones(2, dtype=np.float32)], protocol=3)
    assert _ArrayUnpickler(io.BytesIO(arrays), encoding="latin1").load()[0].tolist() == [0, 1, 2]
    with pytest.raises(pickle.UnpicklingError, match=r"asks for math\.sqrt"):
        _ArrayUnpickler(io.BytesIO(pickle.dumps(math.sqrt)), encoding="latin1").load()
