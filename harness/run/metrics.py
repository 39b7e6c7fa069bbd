"""What happened since the last log, summed over ranks and turned into metrics."""

import time
from dataclasses import asdict, dataclass, field

from harness.machine.ranks import Ranks
from harness.run.checkpoint import RunState
from harness.units import bits_from_nats, bits_per_byte


@dataclass
class Meter:
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
        """What a run that goes on makes its meter from."""
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
