"""One rank's end of an online code: predict a batch token by token, code it, learn from it.

Sender and receiver run the very same code; only what happens to a symbol differs (`Coder`). The sender predicts with
the stepping predictor too, not with the training step's own forward pass, since the two differ in the last bits.
"""

import functools
import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from eval.codec.container import EARLY_DIGITS
from eval.codec.symbol_coders import Coder, Digesting
from eval.online.program import receiver_sha256
from eval.predict.float_model import FloatModel
from eval.predict.predictor import Predictor
from harness.config.run import RunConfig
from harness.data.batches import MicroBatch, make_batches
from harness.data.schedule import plan_phases
from harness.machine.hardware import c_library, git_commit, identity, isa_limits, resolve_precision
from harness.machine.ranks import Ranks
from harness.model.start import Start
from harness.online.combiner import Combiner, table_nats
from harness.online.ensemble import Ensemble, Weights
from harness.online.replay import ReplaySchedule

if TYPE_CHECKING:
    from eval.labels.predictor import LabelPredictor
    from harness.data.parts import Parts
    from harness.online.mixture import Mixture
    from harness.policy.weights import Policy

# Entries of the environment that are told, but decide nothing by themselves.
INFORMATIVE = ("limits", "commit")


@dataclass(frozen=True, slots=True)
class Text:
    """Tokens of a text in the order of the text; a receiver's are zeros until they are decoded."""

    tokens: np.ndarray
    """Token ids (num_tokens,), of any integer type; only a receiver's can be written to."""
    raw_bytes: int
    fingerprint: str
    """`Shard.fingerprint` of the tokens; a receiver of labels needs none."""
    parts: "Parts | None" = None
    """Where the parts of the text begin, if the code speaks of any."""
    inputs: np.ndarray | None = None
    """What labels are given (num_tokens, channels, rows, columns), which a receiver has too; None in a text."""
    policy: "Policy | None" = None
    """How much each sequence counts in the updates, where that is not the same."""

    @property
    def num_tokens(self) -> int:
        """Number of tokens."""
        return len(self.tokens)


@dataclass(slots=True)
class Sums:
    """Code lengths of what this rank has sent."""

    aulc_nats: float = 0.0
    """Losses of the training steps; in a block code, which takes none on new batches, of the predictor."""
    ideal_bits: float = 0.0
    """-log2 of the predictor's float probabilities."""
    quantised_bits: float = 0.0
    """-log2 of the coder's integer frequencies."""

    def over_all(self, ranks: Ranks) -> "Sums":
        """Add up the sums of all ranks."""
        return Sums(*ranks.sum(*asdict(self).values()))


class Lockstep:
    """Predicts and learns a text in lockstep, over one epoch of its sequences: the same at both ends of a code."""

    def __init__(self, config: RunConfig, source: Text, vocab_size: int, ranks: Ranks, start: Start | None = None):
        # So that the number of threads is nothing to agree on; speed comes from more ranks.
        torch.set_num_threads(1)
        self.started = time.perf_counter()
        self.config, self.source, self.ranks = config, source, ranks
        dtype = resolve_precision(config.train.precision, ranks.device)
        self.ensemble = Ensemble(config, vocab_size, ranks, dtype, start)
        context, lanes = config.model.context, self.ensemble.main.micro_batch
        self.num_steps = 0
        if source.num_tokens:
            overlap, policy = config.model.overlap, source.policy
            self.batches = make_batches(source, config.train, context, lanes, config.seed, ranks, policy, overlap)
            self.replays = ReplaySchedule(config.train, self.batches)
            self.num_steps = self.batches.order.steps_per_epoch
            self._phase = plan_phases(config.train, self.batches.order, prunings=0)[0]
        weights: list[Weights] = [learner.backend.weights() for learner in self.ensemble.learners]
        given = zip(self.ensemble.shapes, weights, strict=True)
        self._models: Sequence[FloatModel | LabelPredictor]
        self.predictors: Sequence[Predictor | LabelPredictor]
        if config.model.is_classifier:
            # Texts need none.
            from eval.labels.predictor import label_predictors

            self.predictors = self._models = label_predictors(given, vocab_size, config.seed, lanes)
        else:
            models = [FloatModel(shape, vocab_size, own) for shape, own in given]
            self._models, length = models, config.model.places
            self.predictors = [Predictor(model, lanes, blocks=1, length=length, threads=1) for model in models]
        self._new_combiner = functools.partial(
            Combiner, config.online, vocab_size, lanes=lanes, length=context, ranks=ranks
        )
        self.combiner = self._new_combiner(num_tokens=source.num_tokens)
        self.learning_seconds = 0.0
        packages = (*self.ensemble.main.backend.packages, *self.combiner.packages)
        self.environment = ranks.agreed(_environment(ranks, dtype, packages))

    @property
    def segments(self) -> list[tuple[int, int]]:
        """First and end step of each segment."""
        length = self.config.online.segment_steps
        return [(first, min(first + length, self.num_steps)) for first in range(0, self.num_steps, length)]

    def probe(self) -> str:
        """Digest a training step on made-up tokens and the probabilities after it; leaves no trace.

        To be called once, before the first segment.
        """
        for step_tokens in self.config.train.step_sizes(self.config.model.context):
            self.ensemble.dry_step(step_tokens)
        hashing = Digesting()
        probe = self.ensemble.main.probe().micro_batches[0]
        kept, self.combiner = self.combiner, self._new_combiner(num_tokens=probe.tokens.size)
        probe.sequences[:] = np.arange(len(probe.sequences))
        self._code([probe], hashing)
        self.combiner = kept
        hashing.digest.update(self.ensemble.weights_digest())
        self.ensemble.reset()
        self.ensemble.main.start_rule(self.source.num_tokens)
        return "/".join(sorted(set(self.ranks.gather(hashing.digest.hexdigest()[:EARLY_DIGITS]))))

    def run(self, first_step: int, end_step: int, coder: Coder, sums: Sums, report: Callable[[int], None]) -> bytes:
        """Code and learn the steps from `first_step` to before `end_step`; returns a checksum of this rank's tokens.

        `report` is called after every step with the number of tokens that all ranks have coded in it.
        """
        checksum = hashlib.blake2b(digest_size=EARLY_DIGITS // 2)
        for step in range(first_step, end_step):
            batch = self.batches.of_step(step)
            predicted_nats = self._code(batch.micro_batches, coder)
            for micro_batch in batch.micro_batches:
                checksum.update(micro_batch.tokens[micro_batch.mask].astype("<u2"))
            self._keep(batch.micro_batches)
            self.combiner.end_step()
            start = time.perf_counter()
            moment = self.batches.order.moment(step, self._phase)
            losses = self.ensemble.learn(step, moment, batch, self.replays)
            self.learning_seconds += time.perf_counter() - start
            own_nats = None if losses is None else sum(nats_sum for _, nats_sum in losses.micro_batches)
            sums.aulc_nats += predicted_nats if own_nats is None else own_nats
            report(batch.num_tokens)
        return checksum.digest()

    def weights_digest(self) -> bytes:
        """Digest of what has been learnt, 4 bytes, the same on every rank."""
        return self.ensemble.weights_digest()[: EARLY_DIGITS // 2]

    def state(self) -> dict:
        """What a checkpoint of this rank holds."""
        state = {"ensemble": self.ensemble.state(), "combiner": self.combiner.state()} | self.batches.state()
        return state | {"learning_seconds": self.learning_seconds}

    def load(self, rank_state: dict, common_state: dict) -> None:
        """Go on from the saved states of this rank and of the first."""
        self.ensemble.load(rank_state["ensemble"], common_state["ensemble"])
        self.combiner.load(rank_state["combiner"])
        self.batches.load(rank_state)
        self.learning_seconds = rank_state["learning_seconds"]

    def close(self) -> None:
        """Release what the backends hold."""
        self.ensemble.close()

    def _code(self, micro_batches: list[MicroBatch], coder: Coder) -> float:
        """Code the micro-batches of a step one after another; their tokens become what the coder returns.

        Returns the code length in nats by the chosen weights of the run's own transformer.
        """
        main, *others = self._models
        for model, weights in zip(others, self.ensemble.others(), strict=True):
            model.load(weights)
        candidates = self.ensemble.candidates()
        if len(candidates) == 1:
            main.load(candidates[0])
        nats = 0.0
        for micro_batch in micro_batches:
            if len(candidates) > 1 and micro_batch.mask.any():
                self._choose(candidates, micro_batch, coder)
            nats += self._code_micro_batch(micro_batch, coder)
        return nats

    def _choose(self, candidates: list[Weights], micro_batch: MicroBatch, coder: Coder) -> None:
        """Predict with the weights that the code names; a sender tries all of them first."""
        main = self._models[0]
        tried = []
        for weights in candidates if coder.knows_symbols else ():
            main.load(weights)
            tried.append(sum(self._own_nats(micro_batch)))
        best = np.array([np.argmin(tried) if tried else 0])
        (index,) = coder.code(best, np.ones((1, len(candidates))))
        main.load(candidates[int(index)])

    def _own_nats(self, micro_batch: MicroBatch) -> Iterator[float]:
        """Code length of each position by the run's own transformer alone."""
        tokens, mask = micro_batch.tokens, micro_batch.mask
        for position, (table,) in self._tables(micro_batch, self.predictors[:1]):
            active = np.flatnonzero(mask[:, position])
            yield float(table_nats(table[active, tokens[active, position]]).sum())

    def _tables(
        self, micro_batch: MicroBatch, predictors: "Sequence[Predictor | LabelPredictor]"
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Each position to code with what `predictors` say of it: float32 (predictors, n, vocabulary).

        Tokens are read when the next position is asked for, those before the first one without asking.
        """
        tokens, mask, first = micro_batch.tokens, micro_batch.mask, micro_batch.first
        for predictor in predictors:
            predictor.start(micro_batch.inputs)
        previous = np.full(len(tokens), predictors[0].begin)
        for position in range(tokens.shape[1]):
            if position >= first and not mask[:, position].any():
                break
            tables = [predictor.step(previous) for predictor in predictors]
            if position >= first:
                yield position, np.stack(tables)
            previous = tokens[:, position]

    def _code_micro_batch(self, micro_batch: MicroBatch, coder: Coder) -> float:
        tokens, mask, combiner, nats = micro_batch.tokens, micro_batch.mask, self.combiner, 0.0
        combiner.start(micro_batch)
        coded_with: list[np.ndarray] = []
        for position, tables in self._tables(micro_batch, self.predictors):
            active = mask[:, position]
            sharp = combiner.sharpened(tables)
            if combiner.mixture:
                tokens[active, position] = self._code_bits(combiner.mixture, sharp, tokens[:, position], active, coder)
                if self.ranks.world_size > 1:
                    coded_with.append(sharp)
            else:
                tokens[active, position] = coder.code(tokens[active, position], sharp[0, active])
            combiner.observe(tables[:, active], tokens[active, position])
            nats += float(table_nats(tables[0, active, tokens[active, position]]).sum())
        if coded_with:
            combiner.add_sent(micro_batch, np.stack(coded_with, axis=2))
        return nats

    def _code_bits(
        self, mixture: "Mixture", tables: np.ndarray, symbols: np.ndarray, active: np.ndarray, coder: Coder
    ) -> np.ndarray:
        """Code the active ones of `symbols` (n,) bit by bit; returns what the coder makes of them."""
        first, *others = np.ascontiguousarray(mixture.bits_of(symbols[active]).T)
        bits = coder.code(first, mixture.start_symbols(tables, active))
        for known in others:
            bits = coder.code(known, mixture.next_bits(bits))
        return mixture.end_symbols(bits)

    def _keep(self, micro_batches: list[MicroBatch]) -> None:
        """Write a receiver's tokens to their places in the text; of all ranks, where sequences are given others'."""
        if not self.source.tokens.flags.writeable:
            return
        own = [_placed(micro_batch, self.config.model.context) for micro_batch in micro_batches]
        for parts in self.ranks.gather(own) if self.config.model.overlap else [own]:
            for places, tokens in parts:
                self.source.tokens[places] = tokens


def _placed(micro_batch: MicroBatch, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Places in the text, and tokens, of what a micro-batch of sequences of `length` tokens codes."""
    columns = np.arange(micro_batch.tokens.shape[1]) - micro_batch.given
    places = micro_batch.sequences[:, None] * length + columns
    return places[micro_batch.mask], micro_batch.tokens[micro_batch.mask]


def _environment(ranks: Ranks, dtype: torch.dtype, packages: tuple[str, ...]) -> dict[str, str]:
    """What decides the last bits; with the entries of `INFORMATIVE`."""
    commit = git_commit() or ""
    return {
        **identity(ranks.device, dtype, (*packages, "constriction")),
        "code": receiver_sha256()[:EARLY_DIGITS],
        # Learning rates come from its functions.
        "libc": c_library(),
        "world_size": str(ranks.world_size),
        "limits": " ".join(f"{name}={value}" for name, value in isa_limits().items()) or "none",
        "commit": f"{commit[:EARLY_DIGITS]}{commit[40:]}" or "unknown",
    }
