"""Inputs at a receiver, who has them already and knows no label."""

from pathlib import Path

import numpy as np

from harness.errors import UsageError
from harness.labels.arranged import arranged_inputs
from harness.labels.inputs import inputs_digest
from harness.labels.sets import read_set
from harness.labels.tokenizer import LabelTokenizer, check_shape


def received_inputs(path: Path, tokenizer: object, shape: str, num_labels: int, inputs: str | None) -> np.ndarray:
    """`read_inputs` for a model of inputs of a shape, as `model.inputs` says it.

    Raises UsageError also where the code is of a text.
    """
    if not isinstance(tokenizer, LabelTokenizer):
        raise UsageError(f"{path}: --inputs {inputs}: this is the code of a text, which needs none; leave it out")
    try:
        check_shape(shape, tokenizer)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None
    return read_inputs(path, tokenizer, num_labels, inputs)


def read_inputs(path: Path, tokenizer: LabelTokenizer, num_labels: int, inputs: str | None) -> np.ndarray:
    """Read the inputs (num_labels, channels, rows, columns) of a file of coded labels from a set named `inputs`.

    Raises UsageError where it is missing, or not the one that was sent with.
    """
    if not inputs:
        raise UsageError(f"{path}: labels are given inputs, which are not in the file; name the set by --inputs")
    given = arranged_inputs(read_set(inputs, needs_labels=False), num_labels)
    if given is None or not tokenizer.names(given, inputs_digest(given)):
        raise UsageError(f"{path}: --inputs {inputs}: not the inputs that the sender had (SHA-256); name the same set")
    return given
