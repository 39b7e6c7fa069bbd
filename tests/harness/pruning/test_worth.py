"""Weights that are not worth their bits: what a weight costs, what the text loses, and what a price removes."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from eval.weights.codec import encode_weights
from harness.config.run import load_config
from harness.corpus.prepared import prepare_data
from harness.data.batches import Batches
from harness.learner import Learner
from harness.machine.ranks import Ranks
from harness.pruning.sample import Sample
from harness.pruning.worth import cost_nats, remove_unworthy
from harness.train import train_run
from harness.units import bits_from_bytes, bits_from_nats
from tests.support.ranks import write_config

WEIGHT = "blocks.0.down.weight"


def test_costs_are_about_those_of_the_coder():
    generator = np.random.default_rng(0)
    rows, columns = generator.uniform(0.02, 0.5, (200, 1)), generator.uniform(0.1, 1.0, (1, 150))
    integers = (generator.random((200, 150)) < rows * columns) * generator.choice([-1, 1], (200, 150))
    step = {"w": np.float32(1)}
    costs = cost_nats(torch.from_numpy(integers != 0)).numpy()
    chosen = generator.choice(np.flatnonzero(integers), 400, replace=False)
    emptied = integers.copy()
    emptied.flat[chosen] = 0
    saved_bytes = len(encode_weights({"w": integers}, step)) - len(encode_weights({"w": emptied}, step))
    assert bits_from_nats(costs.flat[chosen].sum()) == pytest.approx(bits_from_bytes(saved_bytes), rel=0.15)


def test_a_weight_in_an_empty_row_costs_more_than_one_among_many():
    nonzero = torch.ones(40, 40, dtype=torch.bool)
    nonzero[1:20] = False
    nonzero[1, 3] = True
    costs = cost_nats(nonzero)
    assert costs[1, 3] > costs[0, 3] + 3
    assert torch.equal(cost_nats(nonzero.T), costs.T)
    assert cost_nats(nonzero.view(40, 10, 2, 2)).shape == (40, 10, 2, 2)


@pytest.fixture(scope="module")
def sample(tmp_path_factory) -> Sample:
    """A few training sequences."""
    config = load_config(write_config(tmp_path_factory.mktemp("sample"), epochs=1))
    ranks = Ranks(0, 1, torch.device("cpu"))
    data = prepare_data(config).train
    batches = Batches(data, config.train, config.model.context, config.train.micro_batch(1), config.seed, ranks)
    return Sample(Learner(config, 256, ranks, torch.float32), batches.sample(6))


def sparse_replica(sample: Sample) -> torch.nn.Module:
    torch.manual_seed(0)
    model = sample.learner.new_model()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.1 * torch.randn(p.shape) * (torch.rand(p.shape) < 0.3))
    return model


def test_squares_are_those_of_the_gradients_of_whole_sequences(sample):
    model = sparse_replica(sample)
    squares = sample.gradient_squares(model)
    model, total, tokens, change = model.double(), 0.0, 0, 1e-4
    weight = model.get_parameter(WEIGHT)
    with torch.no_grad():
        for micro_batch in sample._micro_batches:
            ids, mask = sample.learner.on_device(micro_batch)
            losses = []
            for sign in (1, -1):
                weight[3, 5] += sign * change
                logits = model(ids)
                nats = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids.flatten(), reduction="none")
                losses.append((nats.view_as(ids) * mask).sum(1))
                weight[3, 5] -= sign * change
            total += float(((losses[0] - losses[1]) / (2 * change)).square().sum())
            tokens += int(mask.sum())
    assert float(squares[WEIGHT][3, 5]) == pytest.approx(total / tokens, rel=1e-5)
    assert squares[WEIGHT].dtype == torch.float64


def test_what_goes_is_worth_less_than_its_price_and_costs_the_text_about_what_was_said(sample):
    counts = []
    for price, text_tokens in ((0.01, 1000), (0.1, 1000), (0.1, 100_000)):
        model = sparse_replica(sample)
        before, loss = {n: p.detach().clone() for n, p in model.named_parameters()}, sample.mean_loss(model)
        squares = sample.gradient_squares(model)
        removed = remove_unworthy(model, sample, price, text_tokens)
        gone = {name: (p == 0) & (before[name] != 0) for name, p in model.named_parameters()}
        assert removed == sum(int(mask.sum()) for mask in gone.values()) > 0
        lost = 0.5 * text_tokens * squares[WEIGHT] * before[WEIGHT].double().square()
        limit = price * cost_nats(before[WEIGHT] != 0)
        assert torch.equal(gone[WEIGHT], (before[WEIGHT] != 0) & (lost < limit))
        saved = sum(
            float((price * cost_nats(before[n] != 0))[mask].sum()) for n, mask in gone.items() if mask.dim() > 1
        )
        assert text_tokens * (sample.mean_loss(model) - loss) < 3 * saved
        assert all(torch.equal(p[~gone[name]], before[name][~gone[name]]) for name, p in model.named_parameters())
        counts.append(removed)
    assert counts[0] < counts[1] > counts[2]


def test_a_run_with_a_price_ends_with_fewer_weights_and_says_so(tmp_path, capsys):
    config = write_config(tmp_path, epochs=1)
    left = {}
    for price in (0, 3):
        train_run(load_config(config, [f"name=p{price}", f"prune.price={price}", "prune.rounds=2"]))
        weights = load_file(Path(config).parent / f"runs/p{price}/weights.safetensors")
        left[price] = sum(int(w.count_nonzero()) for w in weights.values())
        said = re.findall(r"prune \d of 2: ([\d,]+) weights are not worth 3 times their bits", capsys.readouterr().out)
        assert len(said) == (2 if price else 0)
    assert 0 < left[3] < 0.9 * left[0]
