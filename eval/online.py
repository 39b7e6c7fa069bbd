"""The online (prequential) code as a file: `send` writes it, `receive` rebuilds the text from it alone.

Both keep what they have done beside their output, in OUTPUT.part, at the end of every segment, and go on from there.
"""

import hashlib
import json
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from eval.exchange import INFORMATIVE, Exchange, Source, Sums
from eval.online_file import (
    FileSizes,
    OnlineHead,
    Segment,
    Share,
    Tokenizer,
    read_online_file,
    sent_settings,
    write_online_file,
)
from eval.online_job import Costs, OnlineJob, Progress
from eval.online_sizes import check_batch, check_receiver, check_sizes
from eval.stream_coders import Decoding, Encoding
from harness.config import RunConfig
from harness.distributed import Ranks, on_first_rank
from harness.errors import UsageError
from harness.files import sha256, write_file
from harness.rundir import open_on_all_ranks
from harness.shards import token_fingerprint
from harness.tokenizer import from_model_bytes, train_tokenizer
from harness.units import bits_from_bytes, bits_from_nats

BLOCK_TOKENS = 1 << 24


@dataclass(frozen=True, slots=True)
class SendReport:
    """A file, and how its bits come about: the parts from `aulc_bits` on add up to 8 * file_bytes."""

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
    segment_bits: int
    """Digests, checksums and lengths."""
    header_bits: int
    """Header, tokenizer and checksum of the file."""
    costs: Costs


@dataclass(frozen=True, slots=True)
class Input:
    """What is sent."""

    tokenizer: Tokenizer
    source: Source
    sha256: str
    """Digest of the text."""


def open_input(config: RunConfig, path: Path | None, ranks: Ranks) -> Input:
    """The text of a file, or without one the training corpus of the configuration; on all ranks.

    Raises UsageError where it cannot be read, or no tokenizer can be trained on it.
    """
    if path is None:
        data = open_on_all_ranks(config, ranks)
        shard, digest = data.train, hashlib.sha256()
        for start in range(0, shard.num_tokens, BLOCK_TOKENS):
            digest.update(data.tokenizer.decode(shard.tokens[start : start + BLOCK_TOKENS]))
        return Input(data.tokenizer, Source(shard.tokens, shard.raw_bytes, shard.fingerprint), digest.hexdigest())
    try:
        text = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; give the path of a file") from None
    # One rank trains: the pieces that sentencepiece finds are not promised to be the same twice.
    model = on_first_rank(ranks, lambda: train_tokenizer(config.tokenizer, iter([text])).model_bytes())
    tokenizer = from_model_bytes(config.tokenizer.kind, model)
    tokens = tokenizer.encode(text)
    tokens.flags.writeable = False
    source = Source(tokens, len(text), token_fingerprint(tokens, tokenizer))
    return Input(tokenizer, source, hashlib.sha256(text).hexdigest())


def send(config: RunConfig, sent: Input, output: Path, ranks: Ranks, progress: Progress) -> SendReport:
    """Write the online code of a text to `output`; on all ranks, each with a stream of its own.

    Raises UsageError where batches are too large for the text, or OUTPUT.part is in use or belongs to something else,
    RunFailure where the work fails, and Stopped where it was asked to.
    """
    check_batch(config, sent.source.num_tokens)
    with closing(Exchange(config, sent.source, sent.tokenizer.vocab_size, ranks)) as exchange:
        return _send(config, sent, exchange, output, progress)


def _send(config: RunConfig, sent: Input, exchange: Exchange, output: Path, progress: Progress) -> SendReport:
    ranks = exchange.ranks
    head = OnlineHead(
        settings=sent_settings(config),
        num_tokens=sent.source.num_tokens,
        raw_bytes=sent.source.raw_bytes,
        sha256=sent.sha256,
        fingerprint=sent.source.fingerprint,
        environment=exchange.environment,
        arithmetic=exchange.probe(),
    )
    identity = {"settings": json.dumps(head.settings), "text": head.sha256, "arithmetic": head.arithmetic}
    with closing(OnlineJob(exchange, output, identity, progress)) as job:
        own = job.resume() or {"weights": [], "checksums": [], "streams": [], "sums": asdict(Sums())}
        sums = Sums(**own["sums"])
        for _, first_step, end_step in job.segments():
            encoding = Encoding()
            own["checksums"].append(exchange.run(first_step, end_step, encoding, sums, job.report).hex())
            own["weights"].append(exchange.weights_digest().hex())
            own["streams"].append(_tensor(encoding.stream()))
            sums.quantised_bits += encoding.encoder.quantised_bits
            sums.ideal_bits += encoding.encoder.ideal_bits
            job.save(end_step, own | {"sums": asdict(sums)})
        streams = [stream.numpy().tobytes() for stream in own["streams"]]
        by_rank = ranks.gather(list(zip(map(bytes.fromhex, own["checksums"]), streams, strict=True)))
        segments = [
            Segment(bytes.fromhex(weights), [Share(*shares[index]) for shares in by_rank])
            for index, weights in enumerate(own["weights"])
        ]
        sizes = on_first_rank(ranks, write_online_file, output, head, sent.tokenizer, segments)
        costs = job.costs()
        job.finish()
    return _report(head, sums.over_all(ranks), sizes, costs)


def open_file(
    path: Path, processes: int, max_memory_bytes: int | None
) -> tuple[OnlineHead, RunConfig, Tokenizer, list[Segment]]:
    """The parts of an online code that `processes` on this machine are to receive.

    Raises UsageError where it is foreign, damaged or made to mislead, or needs more memory than is free or allowed.
    """
    head, config, tokenizer, segments = read_online_file(path)
    try:
        check_sizes(head, config, tokenizer, segments)
        check_receiver(head, config, tokenizer, processes, max_memory_bytes)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None
    return head, config, tokenizer, segments


def receive(path: Path, output: Path, ranks: Ranks, progress: Progress, max_memory_bytes: int | None = None) -> Costs:
    """Rebuild the text of an online code at `output`; on all ranks, of which there must be as many as have sent.

    Raises UsageError where the file is foreign or damaged, or this machine computes otherwise than the sender's; no
    output is written then. Raises RunFailure where the work fails, and Stopped where it was asked to.
    """
    head, config, tokenizer, segments = open_file(path, ranks.num_on_this_machine, max_memory_bytes)
    if ranks.world_size != head.world_size:
        raise UsageError(
            f"{path}: world_size: {head.world_size} in the file, {ranks.world_size} here; receive it with "
            f"{head.world_size} process(es)"
        )
    source = Source(np.zeros(head.num_tokens, dtype=np.uint16), head.raw_bytes, head.fingerprint)
    with closing(Exchange(config, source, tokenizer.vocab_size, ranks)) as exchange:
        _check_setting(path, head, exchange)
        identity = {"file": sha256(path), "arithmetic": head.arithmetic}
        with closing(OnlineJob(exchange, output, identity, progress)) as job:
            text = _receive_text(path, head, segments, tokenizer, job)
            on_first_rank(ranks, write_file, output, text)
            costs = job.costs()
            job.finish()
    return costs


def _receive_text(path: Path, head: OnlineHead, segments: list[Segment], tokenizer: Tokenizer, job: OnlineJob) -> bytes:
    source, ranks = job.exchange.source, job.ranks
    kept = job.resume()
    if kept:
        source.tokens[:] = kept["tokens"].numpy()
    try:
        for index, first_step, end_step in job.segments():
            _receive_segment(segments[index], (first_step, end_step), job, f"{path}: segment {index}", head)
            job.save(end_step, {"tokens": torch.from_numpy(source.tokens)})
        text = tokenizer.decode(np.sum(ranks.gather(source.tokens), axis=0, dtype=source.tokens.dtype))
        if len(text) != head.raw_bytes or hashlib.sha256(text).hexdigest() != head.sha256:
            raise UsageError(f"{path}: the text is not the one that was sent (SHA-256); fetch the file again")
    except UsageError:
        # What was received is of no use.
        job.finish()
        raise
    return text


def _receive_segment(segment: Segment, steps: tuple[int, int], job: OnlineJob, where: str, head: OnlineHead) -> None:
    """Decode and learn a segment; raises UsageError on every rank where one of them has got something else."""
    exchange, ranks = job.exchange, job.ranks
    share = segment.shares[ranks.rank]
    decoding = Decoding(share.stream)
    checksum = exchange.run(*steps, decoding, Sums(), job.report)
    decoding.finish()
    weights = exchange.weights_digest()
    problem = ""
    if decoding.has_failed or checksum != share.checksum:
        problem = f"the text of rank {ranks.rank}"
    elif weights != segment.weights:
        problem = "the text is right, but the weights"
    problems = [text for text in ranks.gather(problem) if text]
    if problems:
        raise UsageError(
            f"{where} (steps {steps[0]} to {steps[1] - 1}): {problems[0]} came out otherwise than at the sender's; "
            f"{_differences(head.environment, exchange.environment)}; nothing was written"
        )


def _check_setting(path: Path, head: OnlineHead, exchange: Exchange) -> None:
    """Refuse what cannot end well before the first symbol."""
    here = exchange.environment
    deciding = [key for key in here if key not in INFORMATIVE and here[key] != head.environment.get(key)]
    if deciding:
        raise UsageError(f"{path}: {_differences(head.environment, here)}; receive it in the sender's setting")
    if head.arithmetic != exchange.probe():
        raise UsageError(
            f"{path}: this machine computes a training step otherwise than the sender's; "
            f"{_differences(head.environment, here)}; receive it on such a processor with such libraries"
        )


def _differences(sent: dict[str, str], here: dict[str, str]) -> str:
    """Every entry that differs, as `key: sent -> here`."""
    keys = [key for key in here if sent.get(key) != here[key]]
    found = ", ".join(f"{key}: {sent.get(key)} -> {here[key]}" for key in keys)
    return found or "no recorded setting differs (" + ", ".join(f"{k} {v}" for k, v in here.items()) + ")"


def _tensor(content: bytes) -> torch.Tensor:
    return torch.from_numpy(np.frombuffer(content, dtype=np.uint8).copy())


def _report(head: OnlineHead, sums: Sums, sizes: FileSizes, costs: Costs) -> SendReport:
    aulc_bits = bits_from_nats(sums.aulc_nats)
    header_bytes = sizes.header_bytes + sizes.tokenizer_bytes + sizes.checksum_bytes
    return SendReport(
        file_bytes=sizes.file_bytes,
        raw_bytes=head.raw_bytes,
        sha256=head.sha256,
        aulc_bits=aulc_bits,
        prediction_bits=sums.ideal_bits - aulc_bits,
        quantisation_bits=sums.quantised_bits - sums.ideal_bits,
        termination_bits=bits_from_bytes(sizes.stream_bytes) - sums.quantised_bits,
        segment_bits=bits_from_bytes(sizes.segment_bytes),
        header_bits=bits_from_bytes(header_bytes),
        costs=costs,
    )
