"""Speed of training steps against peers and against parts left out, side by side in one run, one thread.

    python -m tests.benchmarks.training_speed [--sizes 0.7M 5M 25M] [--rounds 5] [--only peers muon record]

peers: the published architecture with AdamW against a minimal loop of plain PyTorch and against GPT-2 of `transformers`
(the extra `bench`), both with fused attention and fused AdamW, at the same shape, type and threads; and useful FLOP/s
against the rate of a matrix product in the same run. muon: the modern architecture with Muon and with AdamW. record: a
step with R-L1, ledger and monitor and the same without. Steps take turns (A B A B); times are medians, ratios are of
rates, above 1 where this project is faster. Prints Markdown.
"""

import argparse
import functools
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.config.run import RunConfig, load_config
from harness.data.batches import StepBatch
from harness.data.schedule import Moment
from harness.learner import Learner
from harness.machine.hardware import compute_deterministically, matmul_flops, processor_name, resolve_precision
from harness.machine.ranks import Ranks
from harness.model.transformer import sinusoidal_positions
from harness.run.ledger import LedgerWriter
from harness.run.monitor import Monitor
from tests.gpu.jobs import ROOT

# Width, layers, heads, context, sequences of a step.
SIZES = {"0.7M": (128, 3, 2, 512, 8), "5M": (256, 6, 4, 512, 8), "25M": (640, 5, 10, 512, 4)}
# With Muon a step must be as large as it is in training, since the update does not grow with it.
MUON_SEQUENCES = {"0.7M": 8, "5M": 32, "25M": 64}
VOCABULARY = 256
CPU = torch.device("cpu")
Step = Callable[[], object]


def main() -> None:
    """Print a table for each comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=TABLES, default=list(TABLES))
    options = parser.parse_args()
    torch.set_num_threads(1)
    compute_deterministically()
    dtype = resolve_precision("auto", CPU)
    place = processor_name()
    print(f"{place}, {torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}, one thread, {dtype}\n")
    for name in options.only:
        TABLES[name](options.sizes, options.rounds, dtype)


def against_peers(sizes: list[str], rounds: int, dtype: torch.dtype) -> None:
    """The published architecture and AdamW."""
    header = ["parameters", "codelength, tokens/s", "plain loop", "GPT-2", "to plain", "to GPT-2", "of the matmul peak"]
    print_row(header)
    print_row([":---", *["---:"] * (len(header) - 1)])
    for size in sizes:
        config = make_config(SIZES[size], "published", "adamw")
        ours = Learner(config, VOCABULARY, Ranks(0, 1, CPU), dtype)
        batch = ours.probe()
        tokens = torch.from_numpy(batch.micro_batches[0].tokens)
        steps = {"ours": stepper(ours, batch), "plain": plain_step(config, tokens, dtype)}
        if gpt2 := gpt2_step(config, tokens, dtype):
            steps["gpt2"] = gpt2
        peaks: list[float] = []
        steps["peak"] = functools.partial(add_peak, peaks, dtype)
        seconds = turns(steps, rounds)
        rate = batch.num_tokens / seconds["ours"]
        others = [batch.num_tokens / seconds[name] if name in seconds else None for name in ("plain", "gpt2")]
        useful = rate * ours.flops_per_token / statistics.median(peaks)
        cells = [*(f"{other:,.0f}" if other else "-" for other in others)]
        cells += [*(f"{rate / other:.2f}" if other else "-" for other in others), f"{useful:.0%}"]
        print_row([f"{ours.num_parameters:,}", f"{rate:,.0f}", *cells])


def muon_against_adamw(sizes: list[str], rounds: int, dtype: torch.dtype) -> None:
    """The modern architecture with both optimizers."""
    print_row(["parameters", "sequences a step", "Muon, tokens/s", "AdamW, tokens/s", "ratio"])
    print_row([":---", *["---:"] * 4])
    for size in sizes:
        shape = (*SIZES[size][:4], MUON_SEQUENCES[size])
        learners = [
            Learner(make_config(shape, "modern", kind), VOCABULARY, Ranks(0, 1, CPU), dtype)
            for kind in ("muon", "adamw")
        ]
        batch = learners[0].probe()
        steps = {kind: stepper(learner, batch) for kind, learner in zip(("muon", "adamw"), learners, strict=True)}
        seconds = turns(steps, rounds)
        rates = [batch.num_tokens / seconds[kind] for kind in ("muon", "adamw")]
        cells = [f"{learners[0].num_parameters:,}", str(shape[-1]), *(f"{rate:,.0f}" for rate in rates)]
        print_row([*cells, f"{rates[0] / rates[1]:.3f}"])


def recorded_and_not(sizes: list[str], rounds: int, dtype: torch.dtype) -> None:
    """What rule, ledger and monitor add to a step, and each of them alone."""
    print_row(["parameters", "step, ms", "with ledger and monitor", "with R-L1 too"])
    print_row([":---", *["---:"] * 3])
    for size in sizes:
        config = make_config(SIZES[size], "modern", "muon", "rule.kind=rl1", "rule.alpha=0.35")
        bare, ruled = (Learner(config, VOCABULARY, Ranks(0, 1, CPU), dtype) for _ in range(2))
        ruled.start_rule(1_000_000)
        batch = bare.probe()
        with tempfile.TemporaryDirectory() as folder, Monitor(Path(folder), 1000) as monitor:
            ledger, count = LedgerWriter(Path(folder), 0), itertools.count()

            def recorded(learner: Learner, batch=batch, ledger=ledger, count=count, view=monitor) -> None:
                step = next(count)
                learner.set_schedule(Moment(step / 1000, (step + 1) / 1000, step))
                losses = learner.train(batch, "benchmark")
                for part, (nats, _) in zip(batch.micro_batches, losses.micro_batches, strict=True):
                    ledger.append(step, 0, part, nats, np.full(len(nats), nats.shape[1]))
                if step % 10 == 0:
                    nonzeros = learner.backend.count_nonzeros()
                    view.log_step(step, "main", {"loss_nats_sum": losses.nats_sum, "nonzeros": nonzeros})

            steps = {"bare": stepper(bare, batch)}
            steps |= {name: functools.partial(recorded, one) for name, one in (("recorded", bare), ("ruled", ruled))}
            seconds = turns(steps, 4 * rounds)
            ledger.close()
        ratios = [f"{seconds[name] / seconds['bare']:.3f}" for name in ("recorded", "ruled")]
        print_row([f"{bare.num_parameters:,}", f"{1e3 * seconds['bare']:.1f}", *ratios])


TABLES = {"peers": against_peers, "muon": muon_against_adamw, "record": recorded_and_not}


def turns(steps: dict[str, Step], rounds: int) -> dict[str, float]:
    """Median seconds of each step; they take turns, after one each to warm up."""
    for step in steps.values():
        step()
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(own) for name, own in times.items()}


def stepper(learner: Learner, batch: StepBatch) -> Step:
    """One step of a learner as a function."""
    return functools.partial(learner.train, batch, "benchmark")


def add_peak(peaks: list[float], dtype: torch.dtype) -> None:
    """Measure the rate of a matrix product once more."""
    peaks.append(matmul_flops(dtype, CPU))


def make_config(shape: tuple[int, ...], architecture: str, kind: str, *settings: str) -> RunConfig:
    """A run of that shape."""
    width, layers, heads, context, sequences = shape
    own = [f"model.architecture={architecture}", f"optimizer.kind={kind}", f"train.batch_sequences={sequences}"]
    own += ["train.batch_schedule=[]", "model.smear=0"]
    own += [f"model.width={width}", f"model.layers={layers}", f"model.heads={heads}", f"model.context={context}"]
    return load_config(ROOT / "configs" / "wiki-mini.yaml", [*own, *settings])


class PlainBlock(nn.Module):
    """A block as tutorials write it."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class PlainModel(nn.Module):
    """The published architecture in thirty lines."""

    def __init__(self, config: RunConfig):
        super().__init__()
        model = config.model
        self.embed = nn.Embedding(VOCABULARY + 1, model.width)
        self.register_buffer("positions", sinusoidal_positions(model.context, model.width))
        self.blocks = nn.Sequential(*(PlainBlock(model.width, model.heads) for _ in range(model.layers)))
        self.norm, self.head = nn.LayerNorm(model.width), nn.Linear(model.width, VOCABULARY, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        begin = torch.full_like(tokens[:, :1], VOCABULARY)
        x = self.embed(torch.cat([begin, tokens[:, :-1]], dim=1)) + self.positions
        return self.head(self.norm(self.blocks(x)))


def plain_step(config: RunConfig, tokens: Tensor, dtype: torch.dtype) -> Step:
    """A training step of a minimal loop."""
    return trained(PlainModel(config), lambda model: model(tokens), tokens, dtype)


def gpt2_step(config: RunConfig, tokens: Tensor, dtype: torch.dtype) -> Step | None:
    """A training step of GPT-2 of that shape; None where `transformers` is not installed."""
    try:
        from transformers import GPT2Config, GPT2LMHeadModel
    except ImportError:
        return None
    model = config.model
    shape = {"n_embd": model.width, "n_layer": model.layers, "n_head": model.heads, "n_positions": model.context}
    ends = {"bos_token_id": VOCABULARY, "eos_token_id": VOCABULARY}
    dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    gpt2 = GPT2LMHeadModel(
        GPT2Config(vocab_size=VOCABULARY + 1, attn_implementation="sdpa", use_cache=False, **ends, **shape, **dropout)
    )
    begin = torch.full_like(tokens[:, :1], VOCABULARY)
    inputs = torch.cat([begin, tokens[:, :-1]], dim=1)
    return trained(gpt2, lambda model: model(inputs).logits, tokens, dtype)


def trained(model: nn.Module, logits_of: Callable[[nn.Module], Tensor], tokens: Tensor, dtype: torch.dtype) -> Step:
    """Forward, backward and fused AdamW."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), fused=True)

    def step() -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            logits = logits_of(model)
        loss = F.cross_entropy(logits.float().flatten(0, 1), tokens.flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        loss.item()

    return step


def print_row(cells: list[str]) -> None:
    """A row of Markdown."""
    print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
