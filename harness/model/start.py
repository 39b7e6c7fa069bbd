"""Weights that training starts from in place of random ones: those of an archive, which their code is charged with."""

import hashlib
from dataclasses import dataclass

import numpy as np
import torch

from harness.errors import UsageError
from harness.model.transformer import Transformer


@dataclass(frozen=True, slots=True)
class Start:
    """Weights by the names of the model's parameters, float32, and the bytes that they take."""

    weights: dict[str, np.ndarray]
    coded: bytes
    """Their section of the archive, from which a receiver rebuilds them."""
    tokenizer: tuple[str, bytes]
    """Kind and model of the tokenizer whose symbols they predict."""

    @property
    def sha256(self) -> str:
        """Digest of the coded weights."""
        return hashlib.sha256(self.coded).hexdigest()

    def check_tokenizer(self, kind: str, model_bytes: bytes) -> None:
        """Raise UsageError where a text is made of the symbols of another tokenizer."""
        if (kind, model_bytes) != self.tokenizer:
            own = "another one" if kind == self.tokenizer[0] else kind
            raise UsageError(
                f"online.start: its archive predicts symbols of a tokenizer of kind {self.tokenizer[0]}, and the text "
                f"has {own}; use an archive of this text's tokenizer"
            )

    @torch.no_grad()
    def install(self, model: Transformer) -> None:
        """Replace the weights of a model of the same shape."""
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(self.weights[name]))
