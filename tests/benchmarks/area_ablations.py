"""What changes that this project has not taken up would do to the area under the loss curve, and what it has is worth.

`python -m tests.benchmarks.area_ablations [--seeds 3] [--only WORDS ...] [key=value ...]` trains one pass of
configs/wiki-mini.yaml, by default over the leading 300,000 bytes in steps of 512 tokens without running means and
replays, with each change in place of the original class or setting, and prints bits per byte (ideal, without the
tokenizer, mean and standard deviation over seeds) and processor seconds.
"""

import argparse
import io
import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from tempfile import TemporaryDirectory
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import harness.model.transformer as transformer
from harness.config.run import load_config
from harness.corpus.prepared import prepare_data
from harness.data.order import Sequences
from harness.machine.hardware import compute_deterministically
from harness.model.attention import causal_attention
from harness.model.transformer import Block, ModelConfig, Smear
from harness.optim.muon import Muon
from harness.run.ledger import read_online_code
from harness.train import train_run

SETTINGS = (
    *("corpus.subset_bytes=300000", "train.batch_schedule=[[0,512]]"),
    *("train.replays=0", "train.replays_until=0", "online.ema=0"),
)
NORM_DECAY = 0.95
"""Running mean of squared rows (Li et al. 2025, "NorMuon")."""


class ChangedBlock(Block):
    """A block whose values, mixed values or inputs pass through one more function."""

    made = itertools.count()

    def __init__(self, config: ModelConfig):
        super().__init__(config)
        self.number = next(self.made) % config.layers

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor] | None) -> Tensor:
        batch, length, _ = x.shape
        normal = self.before_attention(self.attention_norm(x))
        q, k, v = self._heads(self.qkv(normal).view(batch, length, 3, self.heads, -1), rotary)
        mixed = self.mixed_values(q, k, self.of_values(v))
        x = x + self.out(self.of_mixed(mixed, normal))
        return x + self.down(self._activate(self.up(self.before_perceptron(self.mlp_norm(x)))))

    def before_attention(self, normal: Tensor) -> Tensor:
        return normal

    def before_perceptron(self, normal: Tensor) -> Tensor:
        return normal

    def of_values(self, values: Tensor) -> Tensor:
        return values

    def mixed_values(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return causal_attention(q, k, v)

    def of_mixed(self, mixed: Tensor, normal: Tensor) -> Tensor:
        return mixed


class ValueResidual(ChangedBlock):
    """Values of the first block are added to those of the others (Zhou et al. 2024)."""

    first: list[Tensor] = []

    def __init__(self, config: ModelConfig):
        super().__init__(config)
        self.shares = nn.Parameter(torch.tensor([1.0, 0.0]))

    def of_values(self, values: Tensor) -> Tensor:
        if self.number == 0:
            self.first[:] = [values]
            return values
        return self.shares[0] * values + self.shares[1] * self.first[0]


class Gated(ChangedBlock):
    """What each head mixes is scaled by a gate of the first twelve channels."""

    def __init__(self, config: ModelConfig):
        super().__init__(config)
        self.gate = nn.Parameter(torch.zeros(12 * config.heads))

    def of_mixed(self, mixed: Tensor, normal: Tensor) -> Tensor:
        gate = 2 * torch.sigmoid(normal[..., :12] @ self.gate.view(12, -1))
        return (mixed.unflatten(-1, (self.heads, -1)) * gate[..., None]).flatten(-2)


class Convolved(ChangedBlock):
    """Inputs of attention and perceptron are smeared as embeddings are, three places back (Allen-Zhu 2025)."""

    def __init__(self, config: ModelConfig):
        super().__init__(config)
        self.attention_smear, self.perceptron_smear = (Smear(3, config.width) for _ in range(2))

    def before_attention(self, normal: Tensor) -> Tensor:
        return self.attention_smear(normal)

    def before_perceptron(self, normal: Tensor) -> Tensor:
        return self.perceptron_smear(normal)


class Carried(ChangedBlock):
    """Queries see the keys and values of the sequence before, too, as far as a sequence (Dai et al. 2019)."""

    kept: tuple[Tensor, Tensor] | None = None

    def __init__(self, config: ModelConfig):
        super().__init__(config)
        cos, sin = transformer.rotary_tables(config.context + 1, config.width // config.heads)
        self.back = cos[-1:], -sin[-1:]

    def mixed_values(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        before, self.kept = self.kept, (k.detach(), v.detach())
        if before is None:
            return causal_attention(q, k, v)
        # Keys were turned by their places, which are a whole sequence earlier now.
        earlier = transformer.rotate(before[0][:, :, None], *self.back)[:, :, 0]
        keys, values = torch.cat([earlier, k], 1), torch.cat([before[1], v], 1)
        seen = torch.ones(q.shape[1], keys.shape[1], dtype=torch.bool).tril_(keys.shape[1] - q.shape[1])
        heads = (each.transpose(1, 2) for each in (q, keys, values))
        return F.scaled_dot_product_attention(*heads, attn_mask=seen).transpose(1, 2).flatten(2)


def looped(forward: Callable) -> Callable:
    """All blocks, three times one after another ("depth recurrence", Dehghani et al. 2018)."""

    def changed(self: transformer.Transformer, targets: Tensor) -> Tensor:
        once, self.blocks = self.blocks, nn.ModuleList([*self.blocks] * 3)
        try:
            return forward(self, targets)
        finally:
            self.blocks = once

    return changed


def tied(forward: Callable) -> Callable:
    """The head is the embedding, scaled, plus weights that begin at 0 (Press and Wolf 2017, with a difference)."""

    def changed(self: transformer.Transformer, targets: Tensor) -> Tensor:
        head, self.head = self.head, nn.Identity()
        try:
            x = forward(self, targets)
        finally:
            self.head = head
        return F.linear(x, head.weight + self.embed.weight[: self.vocab_size] * self.config.width**-0.5)

    return changed


def normalised_by_row(orthogonalised: Callable) -> Callable:
    """Muon's update with rows of equal running size and the norm that it had."""

    def changed(self: Muon, matrices: list[Tensor]) -> list[Tensor]:
        parameters = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        made = []
        for p, update in zip(parameters, orthogonalised(self, matrices), strict=True):
            state = self.state[p]
            state["rows"] = state.get("rows", torch.zeros(len(p), 1)).lerp(
                update.square().mean(1, True), 1 - NORM_DECAY
            )
            state["count"] = state.get("count", 0) + 1
            scaled = update / ((state["rows"] / (1 - NORM_DECAY ** state["count"])).sqrt() + 1e-8)
            made.append(scaled * (update.norm() / (scaled.norm() + 1e-8)))
        return made

    return changed


@contextmanager
def changed(name: str) -> Iterator[None]:
    """The project with one change."""
    blocks = {
        "value residual": ValueResidual,
        "gates of heads": Gated,
        "smeared inputs of every layer": Convolved,
        CARRIED: Carried,
    }
    if name in blocks:
        with patch.object(transformer, "Block", blocks[name]):
            yield
    elif name == "NorMuon":
        with patch.object(Muon, "_orthogonalised", normalised_by_row(Muon._orthogonalised)):
            yield
    elif name in (LOOPED, TIED):
        forward = (looped if name == LOOPED else tied)(transformer.Transformer.forward)
        with patch.object(transformer.Transformer, "forward", forward):
            yield
    else:
        yield


LOOPED, TIED = "one block three times", "head tied to the embedding"
IN_ORDER, CARRIED = "in the order of the text", "the same, keys and values carried over"
ONE_RATE = tuple(f"optimizer.{kind}_factor=1" for kind in ("embedding", "head", "vectors"))
SETTINGS_OF = {
    **dict.fromkeys((IN_ORDER, CARRIED), ("train.order=sequential", "train.batch_sequences=1")),
    "not smeared": ("model.smear=0",),
    "all at one rate": ONE_RATE,
    "learning rates that fall to .3": ("optimizer.final_fraction=0.3",),
    "the weights predict": ("online.ema=0",),
}
CHANGES = (
    "as it is",
    "value residual",
    "gates of heads",
    "smeared inputs of every layer",
    "NorMuon",
    LOOPED,
    TIED,
    *SETTINGS_OF,
)


def area(name: str, settings: list[str]) -> tuple[float, float]:
    """Bits per byte of the online code of a run with a change, and the processor seconds that it took."""
    with TemporaryDirectory() as folder, changed(name):
        config = load_config("wiki-mini", [*settings, f"runs_dir={folder}", "name=ablation"])
        text, started = prepare_data(config).train, time.process_time()
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            train_run(config)
        seconds, num_sequences = time.process_time() - started, Sequences(text, config.model.context).num_sequences
        return read_online_code(config.run_dir, num_sequences, text.num_tokens).bits_per_byte, seconds


def chosen_changes(parser: argparse.ArgumentParser, changes: Iterable[str]) -> tuple[argparse.Namespace, list[str]]:
    """The options of a command that measures changes, and which of them it shall; all is on one thread from now on."""
    parser.add_argument("settings", nargs="*")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="*", help="words of the changes to measure")
    options = parser.parse_intermixed_args()
    torch.set_num_threads(1)
    compute_deterministically()
    return options, [name for name in changes if not options.only or any(word in name for word in options.only)]


def main() -> None:
    """Print a line for each change."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options, names = chosen_changes(parser, CHANGES)
    for name in names:
        settings = [*SETTINGS, *options.settings, *SETTINGS_OF.get(name, ())]
        runs = [area(name, [*settings, f"seed={seed}"]) for seed in range(options.seeds)]
        bits, seconds = zip(*runs, strict=True)
        deviation = statistics.stdev(bits) if len(bits) > 1 else math.nan
        print(f"{name:40} {statistics.mean(bits):.3f} ± {deviation:.3f}  {statistics.mean(seconds):.0f} s", flush=True)


if __name__ == "__main__":
    main()
