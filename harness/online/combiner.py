"""From the tables of the transformers to one code: temperatures, and the mixture with other experts."""

from typing import TYPE_CHECKING

import numpy as np
import torch

from harness.config.codes import OnlineConfig
from harness.data.batches import MicroBatch
from harness.machine.ranks import Ranks

if TYPE_CHECKING:
    from harness.online.mixture import Mixture

_SMALLEST = np.float32(1e-30)
_FLATTEST, _SHARPEST = 0.25, 4.0
_NEWTON_FRACTION = 0.5


class Combiner:
    """Combines the tables of transformers into one code, by temperatures and a mixture; each rank has its own."""

    def __init__(self, config: OnlineConfig, vocab_size: int, num_tokens: int, lanes: int, length: int, ranks: Ranks):
        """`length` is that of a sequence in tokens; `num_tokens` that of the text."""
        self.config, self.ranks, self.length = config, ranks, length
        self.sharpness = np.ones(1 + len(config.models))
        """Inverse temperature of each transformer."""
        self._slopes = np.zeros((2, len(self.sharpness)))
        self._sent: list[tuple[MicroBatch, np.ndarray]] = []
        is_mixture = bool(config.experts or config.models)
        self.mixture = _new_mixture(config, vocab_size, num_tokens, lanes) if is_mixture else None

    @property
    def names(self) -> list[str]:
        """Members of the mixture, in its order."""
        first = [name for name in ("uniform", "frequencies") if name in self.config.experts]
        last = [name for name in ("ngram", "network") if name in self.config.experts]
        return ["model", *self.config.models, *first, *last]

    @property
    def packages(self) -> tuple[str, ...]:
        """Packages whose versions decide the last bits."""
        return ("numpy", "numba", "llvmlite") if self.mixture else ("numpy",)

    def sharpened(self, tables: np.ndarray) -> np.ndarray:
        """Apply the temperatures learnt so far to `tables` (tables, ..., vocabulary), float32."""
        if not self.config.calibrate:
            return tables
        return np.stack([_sharpened(table, sharpness) for table, sharpness in zip(tables, self.sharpness, strict=True)])

    def observe(self, tables: np.ndarray, tokens: np.ndarray) -> None:
        """Collect what `tokens` (n,) say about the temperatures of `tables` (tables, n, vocabulary).

        Collects the first two derivatives of their code length by the sharpness.
        """
        if not self.config.calibrate:
            return
        rows = np.arange(len(tokens))
        for index, table in enumerate(tables):
            logs = np.log(np.maximum(table, _SMALLEST)).astype(np.float64)
            probabilities = _sharpened(table, self.sharpness[index]).astype(np.float64)
            means = (probabilities * logs).sum(axis=1)
            self._slopes[0, index] += float((means - logs[rows, tokens]).sum())
            self._slopes[1, index] += float(((probabilities * logs**2).sum(axis=1) - means**2).sum())

    def sequence_nats(self, tables: np.ndarray, micro_batch: MicroBatch) -> np.ndarray:
        """Compute the nats (n, length) of a micro-batch, given float32 tables (tables, n, length, vocabulary)."""
        tokens, mask, coded = micro_batch.tokens, micro_batch.mask, np.s_[:, micro_batch.first :]
        sharp = self.sharpened(tables)
        self.observe(tables[:, mask], tokens[mask])
        if self.mixture is None:
            chosen = np.take_along_axis(sharp[0], tokens[..., None], axis=-1)[..., 0]
            return np.where(mask, table_nats(chosen), 0.0)
        self.start(micro_batch)
        sharp = sharp[:, *coded]
        probabilities = self.mixture.bit_probabilities(sharp, tokens[coded], mask[coded])
        self.add_sent(micro_batch, sharp)
        nats = np.zeros(tokens.shape)
        nats[coded] = np.where(mask[coded], self.mixture.nats_of(probabilities, tokens[coded]), 0.0)
        return nats

    def start(self, micro_batch: MicroBatch) -> None:
        """Begin with the sequences of a micro-batch, where it begins to code them."""
        if self.mixture:
            self.mixture.start(*self._places(micro_batch))

    def add_sent(self, micro_batch: MicroBatch, sharp: np.ndarray) -> None:
        """Note what this rank has coded with the tables `sharp` (tables, n, coded length, vocabulary)."""
        if self.mixture and self.ranks.world_size > 1:
            self._sent.append((micro_batch, sharp))

    def end_step(self) -> None:
        """Learn from a step after it was coded: temperatures from all ranks, the mixture from the other ones."""
        if self.config.calibrate:
            slope, curvature = np.array(self.ranks.sum(*self._slopes.ravel())).reshape(2, -1)
            moved = self.sharpness - _NEWTON_FRACTION * slope / np.maximum(curvature, 1.0)
            self.sharpness = np.clip(moved, _FLATTEST, _SHARPEST)
            self._slopes[:] = 0
        if self.mixture and self.ranks.world_size > 1:
            # One at a time: all ranks' tables together may be more than memory holds.
            for rank, number in enumerate(self.ranks.gather(len(self._sent))):
                for index in range(number):
                    sent = self._sent[index] if rank == self.ranks.rank else None
                    micro_batch, sharp = self.ranks.broadcast(sent, source=rank)
                    if sent is None:
                        tokens, mask = (a[:, micro_batch.first :] for a in (micro_batch.tokens, micro_batch.mask))
                        self.mixture.learn_sequences(*self._places(micro_batch), sharp, tokens, mask)
        self._sent = []

    def _places(self, micro_batch: MicroBatch) -> tuple[np.ndarray, int, np.ndarray]:
        """Where a micro-batch begins to be coded, as `Mixture.start` takes it."""
        first, tokens = micro_batch.first, micro_batch.tokens
        before = tokens[:, first - 1] if first else np.zeros(len(tokens), dtype=np.int64)
        return micro_batch.sequences * self.length + first - micro_batch.given, first, before

    def member_nats(self) -> dict[str, float]:
        """Sum the nats of each member of the mixture by itself, over all ranks' sequences."""
        if self.mixture is None:
            return {}
        return dict(zip(self.names, self.ranks.sum(*self.mixture.state.nats), strict=True))

    def state(self) -> dict:
        """What a checkpoint of this rank holds."""
        arrays = self.mixture.arrays() if self.mixture else {}
        kept = {name: torch.from_numpy(_storable(array)) for name, array in arrays.items()}
        return {"sharpness": self.sharpness.tolist(), "mixture": kept}

    def load(self, rank_state: dict) -> None:
        """Go on from the saved state of this rank; raises KeyError or ValueError for that of something else."""
        self.sharpness = np.array(rank_state["sharpness"])
        if self.mixture:
            arrays = {name: tensor.numpy() for name, tensor in rank_state["mixture"].items()}
            like = self.mixture.arrays()
            self.mixture.load({name: array.view(like[name].dtype) for name, array in arrays.items()})


def _new_mixture(config: OnlineConfig, vocab_size: int, num_tokens: int, lanes: int) -> "Mixture":
    # Only a mixture needs the compiler, which takes a second to import.
    from harness.online.mixture import Mixture

    return Mixture(1 + len(config.models), config.experts, config.ngram_order, vocab_size, num_tokens, lanes)


def mixture_bytes(config: OnlineConfig, num_tokens: int) -> int:
    """Compute the memory of a rank's mixture, of n-gram model and networks, without what it keeps for each lane."""
    has_ngram, has_network = "ngram" in config.experts, "network" in config.experts
    if not (has_ngram or has_network):
        return 0
    from harness.online.logistic_mixer import network_bytes
    from harness.online.ngram import ngram_bytes, num_inputs

    contexts = num_inputs(config.ngram_order) if has_ngram else 0
    joint = network_bytes(contexts + len(config.models) + 2) if has_network else 0
    return (ngram_bytes(config.ngram_order, num_tokens) if has_ngram else 0) + network_bytes(contexts) + joint


def table_nats(probabilities: np.ndarray) -> np.ndarray:
    """Convert probabilities of symbols to code lengths in nats, float64; one that underflowed counts as e^-69."""
    return -np.log(np.maximum(probabilities, _SMALLEST).astype(np.float64))


def _sharpened(table: np.ndarray, sharpness: float) -> np.ndarray:
    logs = np.log(np.maximum(table, _SMALLEST)) * np.float32(sharpness)
    logs -= logs.max(axis=-1, keepdims=True)
    np.exp(logs, out=logs)
    return logs / logs.sum(axis=-1, keepdims=True)


def _storable(array: np.ndarray) -> np.ndarray:
    """The same bytes in a type that torch has."""
    signed = {"uint64": "int64", "uint16": "int16"}.get(array.dtype.name)
    return array.view(signed) if signed else array
