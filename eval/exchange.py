"""One rank's end of an online code: predict a batch token by token, code it, take the training step.

Sender and receiver run the very same code; only what happens to a symbol differs (`Coder`). The sender predicts with
the stepping predictor too, not with the training step's own forward pass, since the two differ in the last bits.
"""

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Protocol

import numpy as np
import torch

from eval.coder import MAX_TABLE, Decoder, Encoder
from eval.float_model import FloatModel
from eval.predictor import Predictor
from eval.sources import receiver_sources
from harness.batches import Batches, MicroBatch
from harness.config import RunConfig
from harness.distributed import Ranks
from harness.errors import UsageError
from harness.hardware import code_sha256, git_commit, identity, isa_limits, resolve_precision
from harness.learner import Learner
from harness.schedule import plan_phases
from harness.sparsity.rules import make_rule

MAX_WAITING_BYTES = 1 << 25
# Entries of the environment that are told, but decide nothing by themselves.
INFORMATIVE = ("limits", "commit")


@dataclass(frozen=True, slots=True)
class Source:
    """Tokens of a text in the order of the text; a receiver's are zeros until they are decoded."""

    tokens: np.ndarray
    """Token ids (num_tokens,), of any integer type; only a receiver's can be written to."""
    raw_bytes: int
    fingerprint: str
    """`Shard.fingerprint` of the tokens."""

    @property
    def num_tokens(self) -> int:
        """Number of tokens."""
        return len(self.tokens)


class Coder(Protocol):
    """What happens to the symbols of one position."""

    def code(self, symbols: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
        """The symbols (n,) that the text has there, given `symbols` and `probabilities` (n, vocabulary)."""


class Encoding:
    """Appends to a stream.

    Symbols with one table each wait for others, since a call of the encoder takes longer than a few of them. Larger
    alphabets have two digits, and a call codes all first ones before the second ones: there each call is the decoder's.
    """

    def __init__(self):
        self.encoder = Encoder()
        self._waiting: list[tuple[np.ndarray, np.ndarray]] = []
        self._waiting_bytes = 0

    def code(self, symbols: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
        """The symbols themselves."""
        self._waiting.append((symbols, probabilities))
        self._waiting_bytes += probabilities.nbytes
        if probabilities.shape[1] > MAX_TABLE or self._waiting_bytes > MAX_WAITING_BYTES:
            self._encode()
        return symbols

    def stream(self) -> bytes:
        """The finished stream."""
        self._encode()
        return self.encoder.stream()

    def _encode(self) -> None:
        if self._waiting:
            self.encoder.encode(*(np.concatenate(parts) for parts in zip(*self._waiting, strict=True)))
        self._waiting, self._waiting_bytes = [], 0


class Decoding:
    """Reads from a stream.

    One that was coded with other probabilities must not stop this rank alone: it goes on with zeros, and says so.
    """

    def __init__(self, stream: bytes):
        self.decoder, self.has_failed = Decoder(stream), False

    def code(self, symbols: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
        """What the stream holds."""
        try:
            return symbols if self.has_failed else self.decoder.decode(probabilities)
        except UsageError:
            self.has_failed = True
            return symbols


class Hashing:
    """Takes a digest of the probabilities."""

    def __init__(self):
        self.digest = hashlib.blake2b(digest_size=16)

    def code(self, symbols: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
        """The symbols themselves."""
        self.digest.update(np.ascontiguousarray(probabilities, dtype="<f4"))
        return symbols


@dataclass(slots=True)
class Sums:
    """Code lengths of what this rank has sent."""

    aulc_nats: float = 0.0
    """Losses of the training steps."""
    ideal_bits: float = 0.0
    """-log2 of the predictor's float probabilities."""
    quantised_bits: float = 0.0
    """-log2 of the coder's integer frequencies."""

    def over_all(self, ranks: Ranks) -> "Sums":
        """Sums over ranks."""
        return Sums(*ranks.sum(*asdict(self).values()))


class Exchange:
    """Predictor and learner in lockstep, over one epoch of the sequences of a text."""

    def __init__(self, config: RunConfig, source: Source, vocab_size: int, ranks: Ranks):
        # So that the number of threads is nothing to agree on; speed comes from more ranks.
        torch.set_num_threads(1)
        self.config, self.source, self.ranks = config, source, ranks
        dtype = resolve_precision(config.train.precision, ranks.device)
        self.learner = Learner(config, vocab_size, ranks, dtype)
        context, lanes = config.model.context, self.learner.micro_batch
        self.num_steps = 0
        if source.num_tokens:
            self.batches = Batches(source, context, config.train.batch_sequences, lanes, config.seed, ranks)
            self.num_steps = self.batches.order.steps_per_epoch
            self._phase = plan_phases(config.train, self.batches.order.steps, has_finetuning=False)[0]
        self.model = FloatModel(config.model, vocab_size, self.learner.backend.weights())
        self.predictor = Predictor(self.model, lanes, blocks=1, length=context, threads=1)
        self.environment = ranks.agreed(_environment(ranks, dtype, self.learner.backend.packages))

    @property
    def segments(self) -> list[tuple[int, int]]:
        """First and end step of each segment."""
        length = self.config.online.segment_steps
        return [(first, min(first + length, self.num_steps)) for first in range(0, self.num_steps, length)]

    def probe(self) -> str:
        """Digest of a training step and of what the predictor says after it, on made-up tokens; leaves no trace.

        To be called once, before the first segment.
        """
        self.learner.dry_step()
        self.model.load(self.learner.backend.weights())
        hashing = Hashing()
        self._code(self.learner.probe().micro_batches[0], hashing)
        hashing.digest.update(self.learner.weights_digest())
        self.learner.reset()
        self.learner.optimizer.set_rule(make_rule(self.config.rule))
        return "/".join(sorted(set(self.ranks.gather(hashing.digest.hexdigest()))))

    def run(self, first_step: int, end_step: int, coder: Coder, sums: Sums, report: Callable[[int], None]) -> bytes:
        """Code and learn the steps from `first_step` to before `end_step`; returns a checksum of this rank's tokens.

        `report` is called after every step with the number of tokens that all ranks have coded in it.
        """
        checksum = hashlib.blake2b(digest_size=8)
        for step in range(first_step, end_step):
            batch = self.batches.of_step(step)
            self.model.load(self.learner.backend.weights())
            for micro_batch in batch.micro_batches:
                self._code(micro_batch, coder)
                checksum.update(micro_batch.tokens[micro_batch.mask].astype("<u2"))
                self._keep(micro_batch)
            self.learner.set_schedule(step, self._phase)
            sums.aulc_nats += sum(nats_sum for _, nats_sum in self.learner.train(batch, f"step {step}"))
            report(batch.num_tokens)
        return checksum.digest()

    def close(self) -> None:
        """Let go of what the backend holds."""
        self.learner.backend.close()

    def _code(self, micro_batch: MicroBatch, coder: Coder) -> None:
        """Code a micro-batch position by position; its tokens become what the coder returns."""
        tokens, mask = micro_batch.tokens, micro_batch.mask
        self.predictor.start()
        previous = np.full(len(tokens), self.predictor.model.begin)
        for position in range(tokens.shape[1]):
            active = mask[:, position]
            if not active.any():
                break
            probabilities = self.predictor.step(previous)
            tokens[active, position] = coder.code(tokens[active, position], probabilities[active])
            previous = tokens[:, position]

    def _keep(self, micro_batch: MicroBatch) -> None:
        """Write a receiver's tokens to their place in the text."""
        if self.source.tokens.flags.writeable:
            for sequence, tokens, mask in zip(micro_batch.sequences, micro_batch.tokens, micro_batch.mask, strict=True):
                start, length = sequence * len(tokens), int(mask.sum())
                self.source.tokens[start : start + length] = tokens[:length]


def _environment(ranks: Ranks, dtype: torch.dtype, packages: tuple[str, ...]) -> dict[str, str]:
    """What decides the last bits; with the entries of `INFORMATIVE`."""
    return {
        **identity(ranks.device, dtype, (*packages, "numpy", "constriction")),
        "code": code_sha256(receiver_sources())[:16],
        "world_size": str(ranks.world_size),
        "limits": " ".join(f"{name}={value}" for name, value in isa_limits().items()) or "none",
        "commit": git_commit() or "unknown",
    }
