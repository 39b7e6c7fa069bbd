"""The online code of a run whose settings name more than the weights that train: its length, token by token.

Tables come from whole sequences at once, as in training; `eval.online.lockstep` computes the same token by token for a
file.
"""

import numpy as np
import torch

from harness.data.batches import MicroBatch, StepBatch
from harness.machine.ranks import Ranks
from harness.model.transformer import Transformer, make_model
from harness.online.combiner import Combiner, table_nats
from harness.online.ensemble import Ensemble, Weights


class CodeLength:
    """Measures the code length of each new batch before anything is learnt from it."""

    def __init__(self, ensemble: Ensemble, vocab_size: int, num_tokens: int, ranks: Ranks, dtype: torch.dtype):
        self.ensemble, self.ranks, self.dtype = ensemble, ranks, dtype
        lanes, length = ensemble.main.micro_batch, ensemble.config.model.context
        self.combiner = Combiner(ensemble.online, vocab_size, num_tokens, lanes, length, ranks)
        self._modules = [
            make_model(shape, vocab_size, ensemble.config.seed).to(ranks.device) for shape in ensemble.shapes
        ]

    def code(self, batch: StepBatch) -> list[tuple[np.ndarray, np.ndarray]]:
        """Compute the code length of each micro-batch of this rank, and that by the run's own transformer alone.

        Both are in nats, float64 (n, length). The name of the chosen weights, in a self-switch, is charged to the first
        token of the former.
        """
        candidates = self.ensemble.candidates()
        best_tables = self._best_tables(candidates, batch)
        others = [self._tables(index, weights, batch) for index, weights in enumerate(self.ensemble.others(), start=1)]
        coded = []
        for place, micro_batch in enumerate(batch.micro_batches):
            best = best_tables[place]
            tables = np.stack([best, *(tables[place] for tables in others)])
            nats = self.combiner.sequence_nats(tables, micro_batch)
            if micro_batch.mask.any():
                nats[tuple(np.argwhere(micro_batch.mask)[0])] += np.log(len(candidates))
            chosen = np.take_along_axis(best, micro_batch.tokens[..., None], axis=-1)[..., 0]
            coded.append((nats, np.where(micro_batch.mask, table_nats(chosen), 0.0)))
        self.combiner.end_step()
        return coded

    def _best_tables(self, candidates: list[Weights], batch: StepBatch) -> list[np.ndarray]:
        """Of each micro-batch the table of the weights that code it best, as `_tables`."""
        best: list[np.ndarray] = []
        for weights in candidates:
            tables = self._tables(0, weights, batch)
            # Two candidates' tables at a time: those of all may be more than memory holds.
            pairs = zip(best, tables, batch.micro_batches, strict=True) if best else ()
            best = [best_table([one, other], micro_batch) for one, other, micro_batch in pairs] or tables
        return best

    @torch.no_grad()
    def _tables(self, index: int, weights: Weights, batch: StepBatch) -> list[np.ndarray]:
        """Tables (n, length, vocabulary), float32, of each micro-batch."""
        module = self._modules[index]
        parameters = dict(module.named_parameters())
        for name, tensor in weights:
            parameters[name].copy_(tensor)
        return [self._table(module, micro_batch) for micro_batch in batch.micro_batches]

    def _table(self, module: Transformer, micro_batch: MicroBatch) -> np.ndarray:
        tokens, _ = self.ensemble.main.on_device(micro_batch)
        inputs = self.ensemble.main.inputs_on_device(micro_batch)
        with torch.autocast(tokens.device.type, dtype=torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            logits = module(tokens if inputs is None else inputs)
        return torch.softmax(logits.float(), dim=-1).cpu().numpy()


def best_table(options: list[np.ndarray], micro_batch: MicroBatch) -> np.ndarray:
    """Choose the table (n, length, vocabulary) that codes a micro-batch best."""
    rows, places = np.nonzero(micro_batch.mask)
    tokens = micro_batch.tokens[rows, places]
    return min(options, key=lambda table: table_nats(table[rows, places, tokens]).sum())
