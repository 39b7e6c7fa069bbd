"""The variational code of what a run was trained on: the distance of its posterior from the prior, and the data bits.

Section 3.2 of "The description length of deep learning models". By bits back the length KL(q || p) + E_q[-log p] could
be reached, but nobody writes the file: it is ideal.
"""

from dataclasses import dataclass
from pathlib import Path

import torch

from eval.labels.forward import install, predicted
from eval.weights.trained import load_deviations, load_weights
from harness.config.run import RunConfig
from harness.corpus.prepared import Data
from harness.model.transformer import make_model
from harness.rules.variational import kl_nats
from harness.units import bits_from_nats

DRAWS = 8
"""Weights that are drawn for the expected data bits."""


@dataclass(frozen=True, slots=True)
class VariationalCode:
    """The length of a variational code in bits, and its parts."""

    kl_bits: float
    data_bits: float
    """Mean over draws of the weights."""
    accuracy: float | None
    """Of the means, on held-out labels; None of a text."""

    @property
    def total_bits(self) -> float:
        """Both parts."""
        return self.kl_bits + self.data_bits


def variational_code(run_dir: Path, config: RunConfig, data: Data) -> VariationalCode:
    """Measure the code of a run with `rule.kind=variational`, of labels or of a text.

    Raises UsageError where the run is not finished or has no posterior.
    """
    vocab_size = data.tokenizer.vocab_size
    means, _ = load_weights(run_dir, config, vocab_size)
    deviations = load_deviations(run_dir, means)
    pairs = {name: (torch.from_numpy(mean), torch.from_numpy(deviations[name])) for name, mean in means.items()}
    kl = sum(float(kl_nats(mean, deviation, config.rule.prior)) for mean, deviation in pairs.values())
    model = make_model(config.model, vocab_size, config.seed).eval()
    generator, nats = torch.Generator().manual_seed(config.seed), 0.0
    for _ in range(DRAWS):
        install(model, {name: m + s * torch.randn(m.shape, generator=generator) for name, (m, s) in pairs.items()})
        nats += sum(float(own.sum(dtype=torch.float64)) for own, _ in predicted(model, data.train)) / DRAWS
    accuracy = None
    if data.heldout.inputs is not None:
        install(model, {name: mean for name, (mean, _) in pairs.items()})
        accuracy = sum(int(right.sum()) for _, right in predicted(model, data.heldout)) / data.heldout.num_tokens
    return VariationalCode(bits_from_nats(kl), bits_from_nats(nats), accuracy)
