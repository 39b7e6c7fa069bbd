"""What changes that this project has not taken up would do to the length of an archive.

`python -m tests.benchmarks.archive_ablations FOLDER [--seeds 3] [--only WORDS ...] [key=value ...]` trains
configs/table3.yaml with R-L1 on the leading 300,000 bytes, with each change in place of the original, and prints the
bytes of the weights as coded, of the text (ideal) and of both. Runs that lie in FOLDER are not trained again.
"""

import argparse
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
from harness.config.run import RunConfig, load_config
from harness.model.transformer import Transformer
from harness.pruning.feedback import Feedback, input_moments
from harness.pruning.sample import Sample
from harness.pruning.structure import DeadStructure
from harness.run.directory import is_done, open_run_data
from harness.train import train_run
from tests.benchmarks.area_ablations import chosen_changes, looped, tied

SETTINGS = (
    "corpus.subset_bytes=300000",
    "train.epochs=6",
    "train.finetune_epochs=1.5",
    "train.log_every_steps=200",
    "rule.kind=rl1",
    "rule.alpha=0.9",
    "prune.kind=tamade",
    "optimizer.finetune_fraction=0.12",
)
FACTOR_STEP = 0.4
"""Step of the grid of a low-rank correction, in root mean squares of its factors."""


@dataclass(frozen=True)
class Trained:
    """A run, and what its archive holds."""

    config: RunConfig
    model: QuantisedModel
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

    def live(nonzero: dict[str, Tensor], heads: int) -> tuple[dict[str, Tensor], DeadStructure]:
        return {n: torch.ones_like(p) for n, p in nonzero.items()}, DeadStructure(0, 0, 0, 0, 0, 0)

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
    elif name == FEEDBACK:
        with patch.object(phase, "_lay_grid", starting_from_feedback(phase._lay_grid)):
            yield
    else:
        yield


def starting_from_feedback(lay_grid: Callable) -> Callable:
    """Fine-tuning on the grid starts from weights that were rounded with error feedback."""

    def changed_grid(replica: Transformer, sample: Sample, text_tokens: int, factor: float) -> dict[str, float]:
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
        coded: dict[str, tuple[np.ndarray, np.float32]] = {}
        rebuilt, corrections = rebuild(integers, steps), {}
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
    COST + "1": ("prune.price=1",),
    COST + "3": ("prune.price=3",),
    COST + "10": ("prune.price=10",),
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
    model, _ = choose_grid(search)
    return Trained(config, model, search, text)


def main() -> None:
    """Print a line for each change."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    options, names = chosen_changes(parser, CHANGES)
    for seed, name in itertools.product(range(options.seeds), names):
        with changed(name):
            run = trained(name, options.folder, seed, options.settings)
            lines = [(name, *run.total(run.model))]
            if name == NO_GRID:
                lines += [(f"{name}, corrected in rank {rank}", *with_low_rank(run, rank)[1:]) for rank in (1, 4)]
        for label, weights_bytes, text_bytes in lines:
            print(
                f"{label:50} seed {seed}  {weights_bytes:7,} + {text_bytes:7,} = {weights_bytes + text_bytes:7,}",
                flush=True,
            )


if __name__ == "__main__":
    main()
