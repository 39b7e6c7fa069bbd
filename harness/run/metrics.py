"""What happened since the last log, summed over ranks and turned into metrics."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from harness.learner import Learner
from harness.machine.ranks import Ranks
from harness.run.checkpoint import RunState
from harness.units import bits_from_nats, bits_per_byte

TAGS = {
    "loss_nats_sum": ("loss/nats_sum", "Training losses since the last log, summed over all tokens, in nats."),
    "loss_nats_per_token": ("loss/nats_per_token", "Mean training loss since the last log, nats a token."),
    "loss_bits_per_byte": ("loss/bits_per_byte", "Training loss since the last log, bits a byte of raw text."),
    "tokens": ("loss/tokens", "Tokens trained on since the last log, on all ranks."),
    "raw_bytes": ("loss/raw_bytes", "Bytes of raw text that these tokens stand for."),
    "online_bits": (
        "online/bits",
        "Online code of the text read so far, in bits: first visits only; an ideal length.",
    ),
    "online_raw_bytes": ("online/raw_bytes", "Bytes of raw text read so far."),
    "online_bits_per_byte": ("online/bits_per_byte", "Online code of the text read so far, bits a byte of raw text."),
    "tokens_per_second": ("speed/tokens_per_second", "Tokens trained on a second of wall-clock time, on all ranks."),
    "seconds_per_step": ("speed/seconds_per_step", "Wall-clock time of an optimizer step, in seconds."),
    "mfu": ("speed/mfu", "Useful operations a second over the measured peak of these devices, between 0 and 1."),
    "nonzeros": ("weights/nonzeros", "Weights that are not zero, in all tensors."),
}
"""By metric: TensorBoard's tag, grouped, and what it is, with its unit."""


@dataclass
class MetricSums:
    """Sums over what this rank trained on since the last log; losses are those of the backward passes."""

    loss_nats_sum: float = 0.0
    tokens: int = 0
    raw_bytes: int = 0
    first_nats_sum: float = 0.0
    first_raw_bytes: int = 0
    steps: int = 0
    seconds_before: float = 0.0
    """Time that counts from before a run was stopped."""
    started: float = field(default_factory=time.perf_counter)

    def state(self) -> dict[str, float]:
        """Collect what a checkpoint keeps of the sums."""
        state = asdict(self)
        state["seconds_before"] += time.perf_counter() - state.pop("started")
        return state

    def add(self, loss_nats_sum: float, tokens: int, raw_bytes: int, code_nats_sum: float, first_visit: bool) -> None:
        """Count one micro-batch; `code_nats_sum` is what the online code takes for it."""
        self.loss_nats_sum += loss_nats_sum
        self.tokens += tokens
        self.raw_bytes += raw_bytes
        self.first_nats_sum += code_nats_sum
        if first_visit:
            self.first_raw_bytes += raw_bytes

    def reduce(self, ranks: Ranks, state: RunState, flops_per_token: float, peak_flops: float) -> dict[str, float]:
        """Metrics over all ranks; adds the first visits to the totals in `state`."""
        seconds = self.seconds_before + time.perf_counter() - self.started
        nats_sum, tokens, raw_bytes, first_nats_sum, first_raw_bytes = ranks.sum(
            self.loss_nats_sum, self.tokens, self.raw_bytes, self.first_nats_sum, self.first_raw_bytes
        )
        state.first_nats_sum += first_nats_sum
        state.first_raw_bytes += int(first_raw_bytes)
        online_bits = bits_from_nats(state.first_nats_sum)
        return {
            "loss_nats_sum": nats_sum,
            "tokens": tokens,
            "raw_bytes": raw_bytes,
            "loss_nats_per_token": nats_sum / tokens,
            "loss_bits_per_byte": bits_per_byte(bits_from_nats(nats_sum), raw_bytes),
            "online_bits": online_bits,
            "online_raw_bytes": state.first_raw_bytes,
            "online_bits_per_byte": bits_per_byte(online_bits, state.first_raw_bytes),
            "tokens_per_second": tokens / seconds,
            "seconds_per_step": seconds / self.steps,
            "mfu": tokens / seconds * flops_per_token / peak_flops,
        }


def flops_per_token(learners: Sequence[Learner], replays: int | None) -> float:
    """Count the FLOPs of a token that is new, after whose batch so many replays follow, or, with None, of another.

    All transformers of an online code learn from new tokens, the first one alone from those that were read before.
    """
    if replays is None:
        return learners[0].flops_per_token
    return (1 + replays) * sum(learner.flops_per_token for learner in learners)
