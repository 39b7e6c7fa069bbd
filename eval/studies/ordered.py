"""What a study of orders puts into order: rows of a table with labels, or the documents of a corpus."""

import gzip
import io
import math
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from eval.gradient.module import ModuleLearner
from eval.gradient.perceptron import SoftmaxRegression
from eval.gradient.training import Learner
from eval.studies.config import OrderConfig
from eval.studies.sets import VOCABULARY
from harness.corpus.arrangement import open_corpus
from harness.errors import UsageError
from harness.files import reason
from harness.model.transformer import Transformer

MAX_TABLE_BYTES, MAX_LABEL, _WHITE = 1 << 28, 1000, 255.0
_PADDING = -1


@dataclass(frozen=True, slots=True)
class Ordered:
    """Examples that are to be ordered."""

    learner: Learner
    unit_nats: float
    """Loss of an example whose symbols have equal probability."""
    scale: float = 1.0
    """Nats of an example over its loss."""
    heldout: Learner | None = None
    """Examples on which the last state is tried, if any."""


def make_ordered(config: OrderConfig, seed: int, is_shuffled: bool) -> Ordered:
    """Read and draw the examples; labels of a table may be shuffled among all rows.

    Raises UsageError where they cannot be read, or are too few or too many.
    """
    return _rows(config, seed, is_shuffled) if config.source == "table" else _documents(config, seed)


def read_table(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Inputs (rows, width) from 0 to 1, float32, and labels (rows,) of a CSV file, plain or packed by gzip.

    Raises UsageError where it cannot be read as such.
    """
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            with gzip.open(io.BytesIO(content)) as file:
                content = file.read(MAX_TABLE_BYTES + 1)
        if len(content) > MAX_TABLE_BYTES:
            raise ValueError(f"more than {MAX_TABLE_BYTES:,} bytes")
        values = np.loadtxt(io.StringIO(content.decode("ascii")), delimiter=",", dtype=np.float32, ndmin=2)
    except OSError as error:
        raise UsageError(f"table={path}: cannot be read ({reason(error)}); name a CSV file") from None
    except (ValueError, EOFError, zlib.error) as error:
        raise UsageError(f"table={path}: no table of numbers ({' '.join(str(error).split())[:100]})") from None
    if values.shape[1] < 2 or not len(values):
        raise UsageError(f"table={path}: needs inputs and a label in each row")
    inputs, labels = values[:, :-1], values[:, -1]
    is_label = (labels == labels.round()) & (labels >= 0) & (labels <= MAX_LABEL)
    if not is_label.all() or not ((inputs >= 0) & (inputs <= _WHITE)).all():
        raise UsageError(
            f"table={path}: inputs must be from 0 to {_WHITE:.0f}, and labels, in the last column, whole numbers up to "
            f"{MAX_LABEL}"
        )
    return inputs / np.float32(_WHITE), labels.astype(np.int64)


def _rows(config: OrderConfig, seed: int, is_shuffled: bool) -> Ordered:
    inputs, labels = read_table(Path(config.table))
    if len(labels) < config.examples + config.heldout:
        raise UsageError(
            f"examples={config.examples}, heldout={config.heldout}: the table has only {len(labels):,} rows; lower them"
        )
    generator = np.random.default_rng(seed)
    rows = generator.permutation(len(labels))
    if is_shuffled:
        labels = generator.permutation(labels)
    chosen = rows[: config.examples], rows[config.examples : config.examples + config.heldout]
    classes = int(labels.max()) + 1

    def learner(part: np.ndarray) -> SoftmaxRegression:
        return SoftmaxRegression(torch.from_numpy(inputs[part]), torch.from_numpy(labels[part]), classes)

    return Ordered(learner(chosen[0]), math.log(classes), heldout=learner(chosen[1]))


def _documents(config: OrderConfig, seed: int) -> Ordered:
    # Read as a run with an order reads them, so that its numbers are those of the file.
    corpus = open_corpus(replace(config.corpus, documents="shortest"))
    documents = list(corpus.train())
    order = corpus.record()["order"]
    count, length = len(documents), config.model.context
    if not 2 <= count <= config.examples:
        raise UsageError(
            f"corpus: has {count:,} documents, and from 2 to examples={config.examples} can be ordered; change "
            "corpus.subset_bytes or examples"
        )
    tokens = np.full((count, length), _PADDING, dtype=np.int64)
    for number, document in zip(order, documents, strict=True):
        start = np.frombuffer(document[:length], dtype=np.uint8)
        tokens[number, : len(start)] = start
    torch.manual_seed(seed)
    module = Transformer(config.model, VOCABULARY)
    learner = ModuleLearner(module, torch.from_numpy(tokens), _document_losses)
    filled = float((tokens != _PADDING).mean())
    return Ordered(learner, math.log(VOCABULARY) * filled, scale=length)


def _document_losses(call: "object", tokens: Tensor) -> Tensor:
    """Nats of each document over the longest length."""
    logits = call(tokens.clamp(min=0))  # type: ignore[operator]
    nats = F.cross_entropy(logits.flatten(0, 1), tokens.flatten(), reduction="none", ignore_index=_PADDING)
    return nats.view_as(tokens).mean(dim=1)
