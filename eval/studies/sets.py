"""The training, desired and test sets of a study of policies."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from eval.gradient.module import ModuleLearner
from eval.gradient.perceptron import Perceptron
from eval.gradient.training import Desired, Learner, memory_bytes, most_steps
from eval.studies.config import PolicyConfig
from harness.corpus.config import read_documents
from harness.errors import UsageError
from harness.machine.ranks import Ranks
from harness.model.transformer import Transformer

VOCABULARY = 256
SENTENCE_END = b". "
# Inputs of examples that are learnt from are wide, those of the others off centre (Gu et al. 2024, appendix).
_TRAIN_DEVIATION, _SHIFT = 3.0**0.5, 0.5


@dataclass(frozen=True, slots=True)
class Sets:
    """The sets of one job, as one rank sees them."""

    train: Learner
    desired: Desired
    test: Desired
    is_corrupted: np.ndarray
    """Which of all training examples contradict the others (examples,), bool."""
    symbols: int
    """What a loss is to be compared with: the logarithm of so many."""
    text: np.ndarray | None = None
    """Symbols of all training examples (examples, context), uint8; None where there is no text."""


def make_sets(config: PolicyConfig, examples: int, seed: int, ranks: Ranks) -> Sets:
    """Draw the sets; all ranks draw the same and keep their part.

    Raises UsageError where the corpus has too few sentences.
    """
    make = _perceptron_sets if config.learner == "perceptron" else _transformer_sets
    return make(config, examples, seed, ranks)


def own_rows(count: int, ranks: Ranks) -> slice:
    """The rows of `count` that are this rank's."""
    return slice(count * ranks.rank // ranks.world_size, count * (ranks.rank + 1) // ranks.world_size)


def num_parameters(config: PolicyConfig) -> int:
    """Count the parameters of what is trained."""
    if config.learner == "perceptron":
        return config.width
    with torch.device("meta"):
        return Transformer(config.model, VOCABULARY).num_parameters


def memory_lines(config: PolicyConfig, processes: int) -> list[str]:
    """A line about the memory of states for each number of examples and steps.

    Raises UsageError, with the steps that fit, where a process would need more than `max_memory_bytes`.
    """
    parameters, limit, lines = num_parameters(config), config.max_memory_bytes, []
    for examples in config.examples:
        if examples < processes or config.desired < processes or config.test < processes:
            raise UsageError(f"--processes {processes}: more than there are examples; use fewer")
        for steps in config.steps:
            needed = memory_bytes(steps, parameters, examples, processes, config.recompute)
            what = (
                f"{needed / 1e6:,.1f} MB a process for states of {parameters:,} parameters and weights of {examples:,} "
                f"examples over {steps:,} steps"
            )
            if needed > limit:
                fit = most_steps(limit, parameters, examples, processes, config.recompute)
                remedy = "more --processes" if config.recompute else "recompute=true, or more --processes"
                raise UsageError(
                    f"steps={steps}: {what}, above max_memory_bytes={limit}; {fit} steps fit, or use {remedy}"
                )
            lines.append(what)
    return lines


def token_losses(call: "object", tokens: Tensor) -> Tensor:
    """Mean nats of a symbol in each of `tokens` (n, length)."""
    logits = call(tokens)  # type: ignore[operator]
    nats = F.cross_entropy(logits.flatten(0, 1), tokens.flatten(), reduction="none")
    return nats.view_as(tokens).mean(dim=1)


def _perceptron_sets(config: PolicyConfig, examples: int, seed: int, ranks: Ranks) -> Sets:
    generator, device = torch.Generator().manual_seed(seed), ranks.device
    teacher = torch.randn(config.width, generator=generator)

    def draw(count: int, mean: float, deviation: float) -> tuple[Tensor, Tensor]:
        inputs = mean + deviation * torch.randn(count, config.width, generator=generator)
        return inputs, inputs @ teacher > 0

    def part(inputs: Tensor, labels: Tensor) -> Perceptron:
        rows = own_rows(len(inputs), ranks)
        return Perceptron(inputs[rows].to(device), labels[rows].to(device))

    inputs, labels = draw(examples, 0.0, _TRAIN_DEVIATION)
    desired, test = (draw(count, _SHIFT, 1.0) for count in (config.desired, config.test))
    flipped = torch.rand(examples, generator=generator) < config.corrupted
    return Sets(
        part(inputs, labels ^ flipped),
        Desired(part(*desired), config.desired),
        Desired(part(*test), config.test),
        flipped.numpy(),
        symbols=2,
    )


def _transformer_sets(config: PolicyConfig, examples: int, seed: int, ranks: Ranks) -> Sets:
    generator = np.random.default_rng(seed)
    counts = [examples, config.desired, config.test]
    chosen = _sentences(config, sum(counts), generator)
    text, desired, test = np.split(chosen, np.cumsum(counts)[:-1])
    text = text.copy()
    is_corrupted = np.zeros(examples, dtype=bool)
    is_corrupted[generator.permutation(examples)[: round(config.corrupted * examples)]] = True
    for row in np.flatnonzero(is_corrupted):
        text[row] = corrupt(text[row], config.operations, generator)
    torch.manual_seed(seed)
    model = Transformer(config.model, VOCABULARY).to(ranks.device)

    def part(rows: np.ndarray) -> ModuleLearner:
        own = torch.from_numpy(rows[own_rows(len(rows), ranks)].astype(np.int64))
        return ModuleLearner(model, own.to(ranks.device), token_losses, config.rows)

    return Sets(
        part(text),
        Desired(part(desired), config.desired),
        Desired(part(test), config.test),
        is_corrupted,
        symbols=VOCABULARY,
        text=text,
    )


def _sentences(config: PolicyConfig, count: int, generator: np.random.Generator) -> np.ndarray:
    """The beginnings (count, context) of as many sentences, uint8, drawn without putting any back."""
    length = config.model.context
    text = b"".join(read_documents(config.corpus, "train"))
    sentences = sorted({sentence[:length] for sentence in text.split(SENTENCE_END) if len(sentence) >= length})
    if len(sentences) < count:
        raise UsageError(
            f"examples, desired, test: need {count:,} different sentences of {length} bytes, and the corpus has "
            f"{len(sentences):,}; lower them or model.context, or raise corpus.subset_bytes"
        )
    drawn = generator.permutation(len(sentences))[:count]
    return np.frombuffer(b"".join(sentences[index] for index in drawn), dtype=np.uint8).reshape(count, length)


def corrupt(row: np.ndarray, operations: int, generator: np.random.Generator) -> np.ndarray:
    """Change a text (length,): each operation replaces a symbol, drops the last one, or repeats one.

    What is too short in the end is repeated from the front, what is too long is cut.
    """
    symbols = row.tolist()
    for _ in range(operations):
        place = int(generator.integers(len(symbols)))
        operation = generator.integers(3)
        if operation == 0:
            symbols[place] = int(generator.integers(VOCABULARY))
        elif operation == 1 and len(symbols) > 1:
            symbols.pop()
        else:
            symbols.insert(place, symbols[place])
    return np.resize(np.array(symbols, dtype=row.dtype), len(row))
