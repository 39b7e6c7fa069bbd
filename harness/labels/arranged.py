"""Which rows of a set are trained on and which are held out: the same at a receiver, who knows no label."""

from dataclasses import dataclass

import numpy as np

from harness.errors import UsageError
from harness.labels.sets import LabelledSet

# Sets that are sorted by label would be read label by label: their rows are permuted, always alike.
_SEED = 23


@dataclass(frozen=True, slots=True)
class Split:
    """Inputs (n, channels, rows, columns) with their labels (n,), uint8; a receiver has none."""

    inputs: np.ndarray
    labels: np.ndarray | None


def arranged(found: LabelledSet, subset: int | None, heldout: int, shuffle: bool = False) -> tuple[Split, Split]:
    """The training and the held-out split of a set: its own, or the last `heldout` rows of its permuted rows.

    `subset` counts the leading rows that are trained on (None: all). With `shuffle` labels are permuted among rows, in
    each split by itself: the control of labels that say nothing. Raises UsageError where there are too few rows.
    """
    num_rows, has_own = len(found.inputs), found.heldout_inputs is not None
    order = _order(num_rows)
    num_train = num_rows if has_own else num_rows - heldout
    wanted = num_train if subset is None else subset
    if not 1 <= wanted <= num_train:
        raise UsageError(
            f"corpus.subset_bytes={subset}, corpus.heldout_bytes={heldout}: the set has only {num_rows} rows to train "
            "on and to hold out; use fewer (a label is a byte)"
        )
    rows, others = order[:wanted], order[num_train:]
    train = Split(found.inputs[rows], None if found.labels is None else found.labels[rows])
    if found.heldout_inputs is not None and found.heldout_labels is not None:
        held = Split(found.heldout_inputs[:heldout], found.heldout_labels[:heldout])
    else:
        held = Split(found.inputs[others], None if found.labels is None else found.labels[others])
    return (_permuted(train, 0), _permuted(held, 1)) if shuffle else (train, held)


def arranged_inputs(found: LabelledSet, num_rows: int) -> np.ndarray | None:
    """Inputs of the leading rows that are trained on, as a receiver has them; None where there are fewer."""
    order = _order(len(found.inputs))
    return found.inputs[order[:num_rows]] if num_rows <= len(order) else None


def _order(num_rows: int) -> np.ndarray:
    # Raw words are the same in every numpy, and so are the places of a stable sort of them.
    return np.argsort(np.random.Philox(key=_SEED).random_raw(num_rows), kind="stable")


def _permuted(split: Split, key: int) -> Split:
    if split.labels is None:
        return split
    words = np.random.Philox(key=_SEED + 1 + key).random_raw(len(split.labels))
    return Split(split.inputs, split.labels[np.argsort(words, kind="stable")])
