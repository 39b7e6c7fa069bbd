"""Receiving: the text of an online code, rebuilt from its file alone by learning what the sender learnt.

What is done is kept beside the output, in OUTPUT.part, at the end of every segment, and goes on from there.
"""

import hashlib
from contextlib import closing
from pathlib import Path

import numpy as np
import torch

from eval.codec.container import RESULT_DIGITS
from eval.codec.symbol_coders import Receiving
from eval.online.file import (
    OnlineHead,
    Segment,
    read_online_file,
)
from eval.online.job import Costs, OnlineJob, Progress
from eval.online.lockstep import INFORMATIVE, Lockstep, Sums, Text
from eval.online.sizes import check_receiver, check_segments, check_sizes
from harness.config.run import RunConfig
from harness.data.tokenizer import Tokenizer
from harness.errors import UsageError
from harness.files import sha256, write_file
from harness.machine.ranks import Ranks, on_first_rank


def open_file(
    path: Path, processes: int, max_memory_bytes: int | None
) -> tuple[OnlineHead, RunConfig, Tokenizer, list[Segment]]:
    """Open an online code that `processes` on this machine are to receive.

    Raises UsageError where it is foreign, damaged or made to mislead, or needs more memory than is free or allowed.
    """
    head, config, tokenizer, segments = read_online_file(path)
    try:
        check_sizes(head, config, tokenizer, segments)
        check_receiver(head, config, tokenizer, processes, max_memory_bytes)
        check_segments(head, config, segments)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None
    return head, config, tokenizer, segments


def receive(
    path: Path,
    output: Path,
    ranks: Ranks,
    progress: Progress,
    max_memory_bytes: int | None = None,
    inputs: str | None = None,
) -> Costs:
    """Decode an online code to `output`; called on all ranks, as many as have sent.

    `inputs` names what labels were given, as `corpus.path` does.

    Raises UsageError where the file is foreign or damaged, or this machine computes otherwise than the sender's; no
    output is written then. Raises RunFailure where the work fails, and Stopped where it was asked to.
    """
    head, config, tokenizer, segments = open_file(path, ranks.num_on_this_machine, max_memory_bytes)
    if ranks.world_size != head.world_size:
        raise UsageError(
            f"{path}: world_size: {head.world_size} in the file, {ranks.world_size} here; receive it with "
            f"{head.world_size} process(es)"
        )
    given = None
    if inputs or config.model.is_classifier:
        # Texts need none of it.
        from harness.labels.received import received_inputs

        given = received_inputs(path, tokenizer, config.model.inputs, head.num_tokens, inputs)
    policy = None
    if head.policy:
        # In most codes all sequences count alike.
        from harness.policy.weights import received_policy

        policy = received_policy(path, head.policy, head.num_tokens, config.model.context)
    tokens = np.zeros(head.num_tokens, dtype=np.uint16)
    source = Text(tokens, head.raw_bytes, head.fingerprint, head.parts, given, policy)
    start = None
    if head.start:
        # Most codes start from random weights.
        from eval.weights.start import received_start

        start = received_start(path, head.start, config, tokenizer)
    with closing(Lockstep(config, source, tokenizer.vocab_size, ranks, start)) as lockstep:
        _check_setting(path, head, lockstep)
        identity = {"file": sha256(path), "arithmetic": head.arithmetic}
        with closing(OnlineJob(lockstep, output, identity, progress)) as job:
            text = _receive_text(path, head, segments, tokenizer, job)
            on_first_rank(ranks, write_file, output, text)
            costs = job.costs()
            job.finish()
    return costs


def _receive_text(path: Path, head: OnlineHead, segments: list[Segment], tokenizer: Tokenizer, job: OnlineJob) -> bytes:
    source, ranks = job.lockstep.source, job.ranks
    kept = job.resume()
    if kept:
        source.tokens[:] = kept["tokens"].numpy()
    try:
        for index, first_step, end_step in job.segments():
            _receive_segment(segments[index], (first_step, end_step), job, f"{path}: segment {index}", head)
            job.save(end_step, {"tokens": torch.from_numpy(source.tokens)})
        # What a rank has not decoded is 0 to it.
        tokens = np.max(ranks.gather(source.tokens), axis=0)
        text = tokenizer.decode(head.order.in_text(tokens) if head.order else tokens)
        if len(text) != head.raw_bytes or hashlib.sha256(text).hexdigest()[:RESULT_DIGITS] != head.sha256:
            raise UsageError(f"{path}: the text is not the one that was sent (SHA-256); fetch the file again")
    except UsageError:
        # What was received is of no use.
        job.finish()
        raise
    return text


def _receive_segment(segment: Segment, steps: tuple[int, int], job: OnlineJob, where: str, head: OnlineHead) -> None:
    """Decode and learn a segment; raises UsageError on every rank where one of them has got something else."""
    lockstep, ranks = job.lockstep, job.ranks
    part = segment.parts[ranks.rank]
    decoding = Receiving(part.stream)
    checksum = lockstep.run(*steps, decoding, Sums(), job.report)
    decoding.finish()
    weights = lockstep.weights_digest()
    problem = ""
    if decoding.has_failed or checksum != part.checksum:
        problem = f"the text of rank {ranks.rank}"
    elif weights != segment.weights:
        problem = "the text is right, but the weights"
    problems = [text for text in ranks.gather(problem) if text]
    if problems:
        raise UsageError(
            f"{where} (steps {steps[0]} to {steps[1] - 1}): {problems[0]} came out otherwise than at the sender's; "
            f"{_differences(head.environment, lockstep.environment)}; nothing was written"
        )


def _check_setting(path: Path, head: OnlineHead, lockstep: Lockstep) -> None:
    """Refuse what cannot end well before the first symbol."""
    here = lockstep.environment
    deciding = [key for key in here if key not in INFORMATIVE and here[key] != head.environment.get(key)]
    if deciding:
        raise UsageError(f"{path}: {_differences(head.environment, here)}; receive it in the sender's setting")
    if head.arithmetic != lockstep.probe():
        raise UsageError(
            f"{path}: this machine computes a training step otherwise than the sender's; "
            f"{_differences(head.environment, here)}; receive it on such a processor with such libraries"
        )


def _differences(sent: dict[str, str], here: dict[str, str]) -> str:
    """Every entry that differs, as `key: sent -> here`."""
    keys = [key for key in here if sent.get(key) != here[key]]
    changes = ", ".join(f"{key}: {sent.get(key)} -> {here[key]}" for key in keys)
    return changes or "no recorded setting differs (" + ", ".join(f"{k} {v}" for k, v in here.items()) + ")"
