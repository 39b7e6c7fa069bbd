"""What changes that this project has not taken up would do to the length of an archive.

`python -m tests.benchmarks.archive_ablations FOLDER [--seeds 2] [--only WORDS ...] [key=value ...]` trains
configs/table3.yaml with R-L1 on the leading 300,000 bytes, with each change in place of the original, and prints the
bytes of the weights as coded, of the text (ideal) and of both. Runs that lie in FOLDER are not trained again.
"""

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

import eval.offline.step_search as step_search
import harness.pruning.phase as phase
import harness.pruning.random_gradient as random_gradient
from eval.offline.archive import QuantisedModel
from eval.offline.evaluate import grid_search, text_to_code
from eval.offline.ideal import ideal_archive
from eval.offline.step_search import Search, choose_grid
from eval.weights.codec import encode_weights, quantise, rebuild
from eval.weights.worth import cost_nats, gradient_squares
from harness.config.run import RunConfig, load_config
from harness.machine.hardware import compute_deterministically
from harness.model.transformer import Transformer
from harness.pruning.feedback import Feedback, input_moments
from harness.run.directory import is_done, open_run_data
from harness.train import train_run
from tests.benchmarks.area_ablations import looped, tied

SETTINGS = (
    "corpus.subset_bytes=300000",
    "train.epochs=6",
    "train.finetune_epochs=1.5",
    "train.log_every_steps=200",
    "rule.kind=rl1",
    "rule.alpha=0.9",
    "prune.kind=tamade",
    "optimizer.finetune_fraction=0.12",
    "eval.worth_sequences=48",
)
TEXT_TOKENS = 300_000
FACTOR_STEP = 0.4
"""Step of the grid of a low-rank correction, in root mean squares of its factors."""


@dataclass(frozen=True)
class Trained:
    """A run, and what its archive holds."""

    config: RunConfig
    model: QuantisedModel
    unpriced: QuantisedModel
    """The same with the weights that are not worth their bits."""
    search: Search
    text: bytes

    def total(self, model: QuantisedModel) -> tuple[int, int]:
        """Bytes of weights as coded, and of the text."""
        report = ideal_archive(model, self.text, self.config.eval.chunk_bytes, torch.float32, lambda *_: None)
        return report.model_bytes, report.data_bytes


class Corrected(QuantisedModel):
    """A model to whose rebuilt weights matrices of low rank are added."""

    corrections: dict[str, np.ndarray]

    def transformer(self) -> Transformer:
        """The model with the corrected weights."""
        model = super().transformer()
        with torch.no_grad():
            for name, correction in self.corrections.items():
                model.get_parameter(name).add_(torch.from_numpy(correction))
        return model


@contextmanager
def all_live() -> Iterator[None]:
    """Nothing counts as dead: a tied head reads the embedding past the tensors that such a search follows."""

    def live(nonzero: dict[str, Tensor], heads: int) -> tuple[dict[str, Tensor], phase.DeadStructure]:
        return {n: torch.ones_like(p) for n, p in nonzero.items()}, phase.DeadStructure(0, 0, 0, 0, 0, 0)

    with patch.object(random_gradient, "find_dead", live), patch.object(step_search, "find_dead", live):
        yield


@contextmanager
def changed(name: str) -> Iterator[None]:
    """The project with one change."""
    forward = Transformer.forward
    if name == TIED:
        with patch.object(Transformer, "forward", tied(forward)), all_live():
            yield
    elif name.startswith(LOOPED):
        with patch.object(Transformer, "forward", looped(forward)):
            yield
    elif name.startswith(COST):
        price = float(name.removeprefix(COST))
        with patch.object(phase, "_prune_replica", pruning_by_cost(phase._prune_replica, price)):
            yield
    elif name == FEEDBACK:
        with patch.object(phase, "_lay_grid", starting_from_feedback(phase._lay_grid)):
            yield
    else:
        yield


def pruning_by_cost(prune_replica: Callable, price: float) -> Callable:
    """Before fine-tuning weights go that are not worth `price` times their bits in the archive of 300,000 bytes."""

    def changed_pruning(replica: Transformer, sample: phase.Sample, *others: object) -> phase.PruneReport:
        report = prune_replica(replica, sample, *others)
        rows = np.concatenate([part.tokens for part in sample._micro_batches])
        copy = deepcopy(replica)
        with torch.enable_grad():
            squares = gradient_squares(copy, rows)
        for name, p in replica.named_parameters():
            if phase.is_regularised(p):
                # As if on a grid of one step: what a weight costs follows from the zeros around it.
                cost = price * cost_nats((p != 0).numpy().astype(np.int64))
                p.mul_(torch.from_numpy(0.5 * TEXT_TOKENS * squares[name] * p.double().numpy() ** 2 >= cost))
        print(f"by cost {sum(int((p != 0).sum()) for p in replica.parameters()):,} weights stay")
        return report

    return changed_pruning


def starting_from_feedback(lay_grid: Callable) -> Callable:
    """Fine-tuning on the grid starts from weights that were rounded with error feedback."""

    def changed_grid(replica: Transformer, sample: phase.Sample, text_tokens: int, factor: float) -> dict[str, float]:
        steps = lay_grid(replica, sample, text_tokens, factor)
        rows = np.concatenate([part.tokens for part in sample._micro_batches])
        feedback = Feedback(input_moments(replica, rows, torch.float32), 0.01, "natural")
        with torch.no_grad():
            for tensor, step in steps.items():
                p = replica.get_parameter(tensor)
                integers = feedback.rounded(tensor, p.numpy(), np.float32(step), 0.0)
                p.copy_(torch.from_numpy(integers * np.float32(step)) * (p != 0))
        return steps

    return changed_grid


def with_low_rank(run: Trained, rank: int) -> tuple[str, int, int]:
    """Steps that are coarser, and what rounding loses as a product of two thin matrices on grids of their own."""
    results = []
    for factor in (1.0, 1.4, 2.0):
        steps = {name: np.float32(factor * step) for name, step in run.model.steps.items()}
        integers = quantise(run.search.weights, steps)
        rebuilt, corrections, coded = rebuild(integers, steps), {}, {}
        for name, weights in run.search.weights.items():
            if weights.ndim != 2 or min(weights.shape) <= rank or name == "embed.weight":
                continue
            left, sizes, right = np.linalg.svd(weights - rebuilt[name], full_matrices=False)
            parts = left[:, :rank] * np.sqrt(sizes[:rank]), right[:rank].T * np.sqrt(sizes[:rank])
            grid = {side: np.float32(FACTOR_STEP * np.sqrt((part**2).mean())) for side, part in enumerate(parts)}
            rounded = [np.rint(part / grid[side]).astype(np.int64) for side, part in enumerate(parts)]
            coded |= {f"{name}.{side}": (q, grid[side]) for side, q in enumerate(rounded)}
            corrections[name] = ((rounded[0] * grid[0]) @ (rounded[1] * grid[1]).T).astype(np.float32)
        model = Corrected(run.model.config, run.model.tokenizer, integers, steps)
        object.__setattr__(model, "corrections", corrections)
        extra = len(encode_weights({n: q for n, (q, _) in coded.items()}, {n: s for n, (_, s) in coded.items()}))
        weights_bytes, text_bytes = run.total(model)
        results.append((f"steps x {factor}", weights_bytes + extra, text_bytes))
    return min(results, key=lambda result: result[1] + result[2])


LOOPED, TIED, FEEDBACK = "one block three times", "head tied to the embedding", "grid after feedback"
NO_GRID, COST = "nothing learnt on a grid", "pruned by cost, price "
CHANGES: dict[str, tuple[str, ...]] = {
    "as it is": (),
    LOOPED: ("model.layers=1",),
    LOOPED + ", wider": ("model.layers=1", "model.width=144"),
    TIED: (),
    FEEDBACK: (),
    COST + "1": (),
    COST + "3": (),
    NO_GRID: ("prune.grid=0",),
}


def trained(name: str, folder: Path, seed: int, settings: list[str]) -> Trained:
    """The run of a change, from FOLDER where it has ended."""
    run_name = f"{name.replace(' ', '-').replace(',', '')}-{seed}"
    config = load_config(
        "table3", [*SETTINGS, *CHANGES[name], f"seed={seed}", f"runs_dir={folder}", f"name={run_name}", *settings]
    )
    if not is_done(config.run_dir):
        train_run(config, None)
    data = open_run_data(config.run_dir, config)
    text = text_to_code(config.eval.split, data)
    search = grid_search(config.run_dir, config, data, text, 1)
    model, cost = choose_grid(search)
    return Trained(config, model, search.quantised(model.steps, cost.dead_zone), search, text)


def main() -> None:
    """Print a line for each change."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("settings", nargs="*")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--only", nargs="*", help="words of the changes to measure")
    options = parser.parse_intermixed_args()
    torch.set_num_threads(1)
    compute_deterministically()
    for seed in range(options.seeds):
        for name in CHANGES:
            if options.only and not any(word in name for word in options.only):
                continue
            with changed(name):
                run = trained(name, options.folder, seed, options.settings)
                lines = [
                    (f"{name}, all weights", *run.total(run.unpriced)),
                    (f"{name}, weights worth their bits", *run.total(run.model)),
                ]
                if name == NO_GRID:
                    lines += [(f"{name}, corrected in rank {rank}", *with_low_rank(run, rank)[1:]) for rank in (1, 4)]
            for label, weights_bytes, text_bytes in lines:
                print(
                    f"{label:50} seed {seed}  {weights_bytes:7,} + {text_bytes:7,} = {weights_bytes + text_bytes:7,}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
