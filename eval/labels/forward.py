"""What a model with given weights makes of what a run was trained on, of labels and of texts alike."""

from collections.abc import Iterator, Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from harness.data.order import Sequences
from harness.data.shards import Shard
from harness.model.transformer import Transformer

_TOKENS, _MOST_ROWS = 8192, 1000


@torch.no_grad()
def install(model: Transformer, weights: Mapping[str, Tensor]) -> None:
    """Replace all weights of a model."""
    for name, parameter in model.named_parameters():
        parameter.copy_(weights[name])


def predicted(model: Transformer, shard: Shard) -> Iterator[tuple[Tensor, Tensor]]:
    """Nats (n,) of the tokens of some sequences after others, and whether each is the most likely one."""
    context = model.config.context
    sequences, rows = Sequences(shard, context), min(_MOST_ROWS, max(1, _TOKENS // context))
    for start in range(0, sequences.num_sequences, rows):
        ids = np.arange(start, min(start + rows, sequences.num_sequences))
        tokens, mask = map(torch.from_numpy, sequences.read(ids))
        given = tokens if shard.inputs is None else torch.from_numpy(np.array(shard.inputs[ids]))
        with torch.inference_mode():
            logits = model(given).float()
            nats = F.cross_entropy(logits.flatten(0, 1), tokens.flatten(), reduction="none").view_as(tokens)
        yield nats[mask], (logits.argmax(dim=-1) == tokens)[mask]
