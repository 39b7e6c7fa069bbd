"""Whether the sizes that an online code names follow from each other and from its length, and what they cost."""

from eval.codec.range_coder import most_symbols
from eval.online.file import OnlineHead, Segment
from harness.config.run import RunConfig
from harness.data.steps import StepOrder
from harness.data.tokenizer import Tokenizer
from harness.errors import UsageError
from harness.machine.memory import check_memory
from harness.online.combiner import mixture_bytes

# A batch may be so many tokens, or as many texts as this, however short the text.
MOST_TOKENS_OF_A_BATCH, MOST_TEXTS_OF_A_BATCH = 1 << 16, 4
# Interpreter and libraries of a process, and the compiler that a mixture needs (tests/benchmarks/decode_memory.py).
_BASE_BYTES, _COMPILER_BYTES = 480_000_000, 150_000_000
# Where each step begins, and what is made on the way to know that.
_STEP_BYTES = 64


def check_batch(config: RunConfig, num_tokens: int) -> None:
    """Raises UsageError where a batch is much more than the whole text, for which only padding would be computed."""
    batch_tokens = config.train.batch_sequences * config.model.context
    most = max(MOST_TOKENS_OF_A_BATCH, MOST_TEXTS_OF_A_BATCH * num_tokens)
    if batch_tokens > most:
        raise UsageError(
            f"train.batch_sequences={config.train.batch_sequences}: batches of {batch_tokens:,} tokens for a text of "
            f"{num_tokens:,}; use fewer sequences, or a shorter model.context"
        )


def check_sizes(head: OnlineHead, config: RunConfig, tokenizer: Tokenizer, segments: list[Segment]) -> None:
    """Raises UsageError where sizes contradict each other or the streams, before anything is allocated or started."""
    check_batch(config, head.num_tokens)
    config.train.micro_batch(head.world_size)
    longest = int(tokenizer.token_bytes.max())
    if not head.num_tokens <= head.raw_bytes <= longest * head.num_tokens:
        raise UsageError(f"num_tokens={head.num_tokens}: contradicts raw_bytes={head.raw_bytes}; fetch the file again")
    is_mixture = bool(config.online.experts or config.online.models)
    alphabet = 2 if is_mixture else tokenizer.vocab_size
    symbols_per_token = max(1, (tokenizer.vocab_size - 1).bit_length()) if is_mixture else 1
    most = sum(most_symbols(len(part.stream), alphabet) for segment in segments for part in segment.parts)
    if head.num_tokens * symbols_per_token > most:
        raise UsageError(f"num_tokens={head.num_tokens}: more than its streams can hold; fetch the file again")


def check_segments(head: OnlineHead, config: RunConfig, segments: list[Segment]) -> None:
    """Raises UsageError where there are not as many segments as steps need; to be asked when memory is known to do.

    A schedule of steps takes memory by their number.
    """
    num_steps = 0
    if head.num_tokens:
        order = StepOrder(config.train, head.num_tokens, config.model.context, head.fingerprint, config.seed)
        num_steps = order.steps_per_epoch
    due = -(-num_steps // config.online.segment_steps)
    if len(segments) != due:
        raise UsageError(f"{len(segments)} segments where {due} are due; fetch the file again")


def check_receiver(
    head: OnlineHead, config: RunConfig, tokenizer: Tokenizer, processes: int, max_memory_bytes: int | None
) -> None:
    """Raises UsageError where `processes` on this machine need more memory than is free or allowed."""
    check_memory(processes * memory_bytes(head, config, tokenizer), max_memory_bytes)


def memory_bytes(head: OnlineHead, config: RunConfig, tokenizer: Tokenizer) -> int:
    """Bound the memory of a rank in bytes: weights with optimizers, activations, the mixture, text and tokens."""
    lanes, vocab_size = config.train.micro_batch(head.world_size), tokenizer.vocab_size
    context, models = config.model.context, config.expert_models()
    total = _BASE_BYTES + (16 + 4 * head.world_size) * head.num_tokens + 3 * head.raw_bytes + 2 * len(head.start)
    total += _policy_bytes(head, context)
    total += _STEP_BYTES * (head.num_tokens // config.train.step_sizes(context)[0] + 1)
    for index, model in enumerate(models):
        num_weights = 12 * model.layers * model.width**2 + (2 * vocab_size + model.places) * model.width
        per_token = 4 * (42 * model.layers * model.width + 4 * vocab_size)
        if model.is_classifier:
            from harness.model.classifiers import receiver_numbers

            num_weights, per_token = receiver_numbers(model, vocab_size)
        # Weights that are sent take integers, floats, and what decoding them keeps.
        own = 2 * (config.online.checkpoints - 1) + (10 if head.start else 0)
        copies = 12 + bool(config.online.ema) + (0 if index else own)
        total += 4 * copies * num_weights + lanes * model.places * per_token
    if config.online.experts or config.online.models:
        tables = len(models) + len(config.online.experts)
        total += _COMPILER_BYTES + 32 * tables * (lanes + 16) * vocab_size
        if head.world_size > 1:
            # Every rank learns from what all of them have sent.
            total += 4 * (2 + 2 * head.world_size) * len(models) * lanes * config.model.places * vocab_size
    return total + mixture_bytes(config.online, head.num_tokens)


def _policy_bytes(head: OnlineHead, context: int) -> int:
    """Bytes of a policy, packed, as it is unpacked, and its weights of a step; raises UsageError where it is none."""
    if not head.policy:
        return 0
    # In most codes all sequences count alike.
    from harness.policy.weights import num_weights

    sequences = -(-head.num_tokens // context)
    try:
        return 2 * len(head.policy) + 3 * num_weights(head.policy, sequences) + 24 * sequences
    except ValueError as error:
        raise UsageError(f"malformed policy ({error}); fetch the file again") from None
