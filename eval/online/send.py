"""Sending: the online (prequential) code of a text, written as a file.

What is done is kept beside the output, in OUTPUT.part, at the end of every segment, and goes on from there.
"""

import hashlib
import json
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import torch

from eval.codec.container import RESULT_DIGITS
from eval.codec.permutation import DocumentOrder
from eval.codec.symbol_coders import Sending
from eval.online.file import (
    FileSizes,
    OnlineHead,
    Part,
    Segment,
    sent_settings,
    write_online_file,
)
from eval.online.job import Costs, OnlineJob, Progress
from eval.online.lockstep import Lockstep, Sums, Text
from eval.online.sizes import check_batch
from eval.weights.start import read_start
from harness.config.run import RunConfig
from harness.data.shards import Shard, token_fingerprint
from harness.data.tokenizer import Tokenizer, from_model_bytes, train_tokenizer
from harness.errors import UsageError
from harness.machine.ranks import Ranks, on_first_rank
from harness.model.start import Start
from harness.policy.weights import Policy, load_policy
from harness.run.directory import open_on_all_ranks
from harness.units import bits_from_bytes, bits_from_nats

if TYPE_CHECKING:
    from harness.labels.tokenizer import LabelTokenizer

BLOCK_TOKENS = 1 << 24


@dataclass(frozen=True, slots=True)
class SendReport:
    """The report of a sent file: its parts from `aulc_bits` on add up to 8 * file_bytes."""

    file_bytes: int
    raw_bytes: int
    sha256: str
    """Digest of the text."""
    aulc_bits: float
    """Losses of the training steps: the area under the loss curve."""
    prediction_bits: float
    """What the stepping predictor's probabilities add: another order of the same sums, in float32."""
    quantisation_bits: float
    """What rounding probabilities to integer frequencies adds."""
    termination_bits: float
    """What the streams add: whole words at the end of each, and the range coder's own rounding."""
    segment_bits: float
    """Digests, checksums and lengths."""
    header_bits: float
    """Header, tokenizer and checksum of the file."""
    order_bits: float
    """Order and lengths of the documents, where they are not coded in their own order."""
    start_bits: float
    """Weights of an archive, where both ends start from them."""
    policy_bits: float
    """How much each sequence counts in the updates, where that is not the same."""
    costs: Costs


@dataclass(frozen=True, slots=True)
class Input:
    """The text to send, with its tokenizer and digests."""

    tokenizer: Tokenizer
    source: Text
    sha256: str
    """Digest of the text."""
    order: DocumentOrder | None = None
    """The order in which its documents are coded, where that is not their own."""
    start: Start | None = None
    """Weights that both ends start from, where these are not random."""


def open_input(config: RunConfig, path: Path | None, ranks: Ranks) -> Input:
    """Open the text of a file, or without one the training corpus of the configuration; called on all ranks.

    Raises UsageError where it, or what `online.start` or `train.policy` names, cannot be read or does not fit, or no
    tokenizer can be trained on it.
    """
    start = read_start(config)
    text = _open_text(config, path, ranks)
    if start:
        start.check_tokenizer(config.tokenizer.kind, text.tokenizer.model_bytes())
    source = replace(text.source, policy=_policy(config, text.source.num_tokens))
    return replace(text, source=source, start=start)


def _policy(config: RunConfig, num_tokens: int) -> Policy | None:
    """The policy of the code, if it has one; raises UsageError where it does not fit the text."""
    if not config.train.policy:
        return None
    return load_policy(config.train.policy, -(-num_tokens // config.model.context))


def _open_text(config: RunConfig, path: Path | None, ranks: Ranks) -> Input:
    if config.model.subspace and not config.model.is_classifier:
        raise UsageError(f"model.subspace={config.model.subspace}: no online code of a text is in one; use 0")
    if path is None:
        data = open_on_all_ranks(config, ranks)
        shard, digest, order = data.train, hashlib.sha256(), document_order(data.train)
        tokens = order.in_text(shard.tokens) if order else shard.tokens
        for start in range(0, shard.num_tokens, BLOCK_TOKENS):
            digest.update(data.tokenizer.decode(tokens[start : start + BLOCK_TOKENS]))
        source = Text(shard.tokens, shard.raw_bytes, shard.fingerprint, shard.parts, shard.inputs)
        tokenizer = data.tokenizer if shard.inputs is None else cast("LabelTokenizer", data.tokenizer).of_receiver()
        return Input(tokenizer, source, digest.hexdigest(), order)
    if config.train.reads_parts:
        raise UsageError(f"{path}: a file has no parts, which settings of train name; send the corpus instead")
    try:
        text = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; give the path of a file") from None
    # One rank trains: the pieces that sentencepiece finds are not promised to be the same twice.
    model = on_first_rank(ranks, lambda: train_tokenizer(config.tokenizer, iter([text])).model_bytes())
    tokenizer = from_model_bytes(config.tokenizer.kind, model)
    tokens = tokenizer.encode(text)
    tokens.flags.writeable = False
    source = Text(tokens, len(text), token_fingerprint(tokens, tokenizer))
    return Input(tokenizer, source, hashlib.sha256(text).hexdigest())


def document_order(shard: Shard) -> DocumentOrder | None:
    """The order of a text's documents, where it is not their own."""
    return None if shard.order is None else DocumentOrder(shard.order, shard.document_lengths)


def send(config: RunConfig, sent: Input, output: Path, ranks: Ranks, progress: Progress) -> SendReport:
    """Write the online code of a text to `output`; on all ranks, each with a stream of its own.

    Raises UsageError where batches are too large for the text, or OUTPUT.part is in use or belongs to something else,
    RunFailure where the work fails, and Stopped where it was asked to.
    """
    check_batch(config, sent.source.num_tokens)
    with closing(Lockstep(config, sent.source, sent.tokenizer.vocab_size, ranks, sent.start)) as lockstep:
        return _send(config, sent, lockstep, output, progress)


def _send(config: RunConfig, sent: Input, lockstep: Lockstep, output: Path, progress: Progress) -> SendReport:
    ranks = lockstep.ranks
    head = OnlineHead(
        settings=sent_settings(config),
        num_tokens=sent.source.num_tokens,
        raw_bytes=sent.source.raw_bytes,
        sha256=sent.sha256[:RESULT_DIGITS],
        fingerprint=sent.source.fingerprint if sent.source.inputs is None else "",
        environment=lockstep.environment,
        arithmetic=lockstep.probe(),
        parts=sent.source.parts if config.train.reads_parts else None,
        order=sent.order,
        start=sent.start.coded if sent.start else b"",
        policy=sent.source.policy.to_bytes() if sent.source.policy else b"",
    )
    identity = {"settings": json.dumps(head.settings), "text": sent.sha256, "arithmetic": head.arithmetic}
    identity |= lockstep.ensemble.identity | {"policy": hashlib.sha256(head.policy).hexdigest()[:16]}
    with closing(OnlineJob(lockstep, output, identity, progress)) as job:
        coded = job.resume() or {"weights": [], "checksums": [], "streams": [], "sums": asdict(Sums())}
        sums = Sums(**coded["sums"])
        for _, first_step, end_step in job.segments():
            encoding = Sending()
            coded["checksums"].append(lockstep.run(first_step, end_step, encoding, sums, job.report).hex())
            coded["weights"].append(lockstep.weights_digest().hex())
            coded["streams"].append(_tensor(encoding.stream()))
            sums.quantised_bits += encoding.encoder.quantised_bits
            sums.ideal_bits += encoding.encoder.ideal_bits
            job.save(end_step, coded | {"sums": asdict(sums)})
        streams = [stream.numpy().tobytes() for stream in coded["streams"]]
        by_rank = ranks.gather(list(zip(map(bytes.fromhex, coded["checksums"]), streams, strict=True)))
        segments = [
            Segment(bytes.fromhex(weights), [Part(*parts[index]) for parts in by_rank])
            for index, weights in enumerate(coded["weights"])
        ]
        sizes = on_first_rank(ranks, write_online_file, output, head, sent.tokenizer, segments)
        costs = job.costs()
        job.finish()
    return _report(sent, sums.over_all(ranks), sizes, costs)


def _tensor(content: bytes) -> torch.Tensor:
    return torch.from_numpy(np.frombuffer(content, dtype=np.uint8).copy())


def _report(sent: Input, sums: Sums, sizes: FileSizes, costs: Costs) -> SendReport:
    aulc_bits = bits_from_nats(sums.aulc_nats)
    header_bytes = sizes.header_bytes + sizes.tokenizer_bytes + sizes.checksum_bytes
    return SendReport(
        file_bytes=sizes.file_bytes,
        raw_bytes=sent.source.raw_bytes,
        sha256=sent.sha256,
        aulc_bits=aulc_bits,
        prediction_bits=sums.ideal_bits - aulc_bits,
        quantisation_bits=sums.quantised_bits - sums.ideal_bits,
        termination_bits=bits_from_bytes(sizes.stream_bytes) - sums.quantised_bits,
        segment_bits=bits_from_bytes(sizes.segment_bytes),
        header_bits=bits_from_bytes(header_bytes),
        order_bits=bits_from_bytes(sizes.order_bytes),
        start_bits=bits_from_bytes(sizes.start_bytes),
        policy_bits=bits_from_bytes(sizes.policy_bytes),
        costs=costs,
    )
