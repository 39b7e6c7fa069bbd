"""The grid search: the step it finds is the best one, and its figures are those of the file."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from torch.nn import functional as F

from eval.offline.archive import QuantisedModel, write_archive
from eval.offline.step_search import SAMPLE_CHUNKS, Search, choose_grid
from eval.report.precision import precision_records
from eval.weights.codec import encode_weights, quantise, rebuild
from harness.config.codes import EvalConfig
from harness.data.tokenizer import ByteTokenizer
from harness.model.transformer import ModelConfig, Transformer
from harness.pruning.step_sizes import Scale, balanced_steps

CHUNK_BYTES = 32
CONFIG = ModelConfig(width=16, layers=1, heads=2, context=CHUNK_BYTES)
TOKENIZER = ByteTokenizer()


def sentences(seed: int, count: int) -> bytes:
    """Text with something to learn."""
    rng = np.random.default_rng(seed)
    words = ["the ", "model ", "codes ", "every ", "byte ", "of ", "a ", "text. ", "and ", "the weights "]
    return "".join(rng.choice(words, count)).encode()


TEXT = sentences(1, 330)


@pytest.fixture(scope="module")
def weights() -> dict[str, np.ndarray]:
    """A model trained for a few seconds, half of its weights pruned."""
    torch.manual_seed(0)
    model = Transformer(CONFIG, TOKENIZER.vocab_size)
    tokens = torch.tensor(list(sentences(0, 5000)[: 500 * CHUNK_BYTES])).view(-1, CHUNK_BYTES)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    for step in range(50):
        batch = tokens[torch.arange(step * 8, step * 8 + 8) % len(tokens)]
        F.cross_entropy(model(batch).flatten(0, 1), batch.flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
    trained = {name: p.detach().numpy().copy() for name, p in model.named_parameters()}
    for tensor in trained.values():
        tensor[np.abs(tensor) < np.median(np.abs(tensor))] = 0
    return trained


def choose(weights, text=TEXT, trained_steps=None):
    return choose_grid(Search(weights, trained_steps or {}, CONFIG, TOKENIZER, text, CHUNK_BYTES, torch.float32))


def uniform(weights, relative_step) -> QuantisedModel:
    """All steps the same share of the root mean square of each tensor's non-zeros."""
    steps = {name: np.float32(relative_step * np.sqrt(np.mean(w[w != 0] ** 2))) for name, w in weights.items()}
    return QuantisedModel(CONFIG, TOKENIZER, quantise(weights, steps), steps)


def file_report(path, model, text=TEXT):
    config = EvalConfig(chunk_bytes=CHUNK_BYTES, lanes=16)
    return write_archive(path, text, model, config, 1, lambda done, total: None)


def test_the_file_has_the_size_that_was_found_and_no_uniform_step_is_better(tmp_path, weights):
    chosen, cost = choose(weights)
    # All chunks are in the sample, so that the projected length is the file's.
    assert len(TEXT) <= SAMPLE_CHUNKS * CHUNK_BYTES
    report = file_report(tmp_path / "a.cl", chosen)
    assert report.model_bytes == cost.model_bytes
    assert report.data_bytes == pytest.approx(cost.data_bytes, rel=2e-3, abs=8)
    total = report.model_bytes + report.data_bytes
    for log2_step in (-3, -1, -0.5, 0):
        other = file_report(tmp_path / "b.cl", uniform(weights, 2.0**log2_step))
        assert total <= 1.005 * (other.model_bytes + other.data_bytes)


def test_balanced_steps_make_weights_and_text_together_the_shortest():
    """Weights of log2(rms / step) bits, and a text of curvature * step^2 nats more."""
    scales = {"a": Scale(0.1, 5000), "b": Scale(2.0, 300)}
    curvatures = {"a": 4e7, "b": 3e3}

    def text_nats(steps):
        return 1e5 + sum(curvatures[name] * step**2 for name, step in steps.items())

    def total_nats(steps):
        return text_nats(steps) + sum(s.nonzeros * math.log(s.rms / steps[name]) for name, s in scales.items())

    steps = balanced_steps(scales, text_nats)
    for name in scales:
        best = minimize_scalar(
            lambda step, name=name: total_nats(steps | {name: step}), bounds=(1e-6, 1), method="bounded"
        )
        assert steps[name] == pytest.approx(best.x, rel=1e-3)


def test_a_tensor_that_hardly_matters_keeps_a_bounded_step():
    scales = {"idle": Scale(0.1, 10), "empty": Scale(1.0, 0)}
    steps = balanced_steps(scales, lambda steps: 5.0)
    assert {name: scales[name].limited(step) for name, step in steps.items()} == pytest.approx(
        {"idle": 0.15, "empty": 1.5}
    )


def test_moving_single_steps_makes_the_total_smaller(weights):
    search = Search(weights, {}, CONFIG, TOKENIZER, TEXT, CHUNK_BYTES, torch.float32)
    steps, cost = search.refined(-1.0)
    assert cost.total_bytes < 0.995 * search.point(-1.0).total_bytes
    assert len(encode_weights(search.quantised(steps).integers, steps)) == cost.model_bytes


def test_steps_that_were_trained_are_moved_together_only(weights):
    on_grid = uniform(weights, 0.5)
    rebuilt = rebuild(on_grid.integers, on_grid.steps)
    search = Search(rebuilt, on_grid.steps, CONFIG, TOKENIZER, TEXT, CHUNK_BYTES, torch.float32)
    assert search.refined(0.0) == (on_grid.steps, search.point(0.0))


def test_precision_has_a_best_value_between_too_coarse_and_too_fine(weights):
    search = Search(weights, {}, CONFIG, TOKENIZER, TEXT * 4, CHUNK_BYTES, torch.float32)
    records = precision_records(search)
    totals = [record["total_bytes"] for record in records]
    best = int(np.argmin(totals))
    assert [record["is_emphasised"] for record in records] == [index == best for index in range(len(records))]
    assert totals[0] > 1.3 * totals[best]
    assert totals[-1] > 1.02 * totals[best]
    assert choose_grid(search)[1].total_bytes <= totals[best]


def test_a_longer_text_pays_for_a_larger_model(weights):
    (_, few), (_, many) = choose(weights, TEXT[:CHUNK_BYTES]), choose(weights, TEXT * 30)
    assert many.model_bytes > few.model_bytes


def test_a_sample_projects_the_whole_text(weights):
    whole = TEXT * 4
    assert len(whole) > 2 * SAMPLE_CHUNKS * CHUNK_BYTES
    model, cost = choose(weights, whole)
    nats_sum = 0.0
    with torch.inference_mode():
        for start in range(0, len(whole), CHUNK_BYTES):
            chunk = torch.tensor([list(whole[start : start + CHUNK_BYTES])])
            nats_sum += F.cross_entropy(model.transformer()(chunk)[0], chunk[0], reduction="sum").item()
    assert cost.data_bytes == pytest.approx(nats_sum / np.log(2) / 8, rel=0.05)


def test_an_empty_text_and_odd_tensors_have_a_grid(weights):
    odd = {name: np.zeros_like(tensor) for name, tensor in weights.items()}
    odd[next(iter(odd))].flat[3] = 1e-45
    for these, text in ((weights, b""), (odd, b""), (odd, TEXT[:40])):
        model, cost = choose(these, text)
        assert all(np.isfinite(step) and step > 0 for step in model.steps.values())
        assert np.isfinite(cost.total_bytes)
        assert (cost.data_bytes == 0) == (text == b"")


def test_weights_trained_on_a_grid_stay_on_it(weights):
    on_grid = uniform(weights, 0.5)
    rebuilt = rebuild(on_grid.integers, on_grid.steps)
    model, cost = choose(rebuilt, TEXT, on_grid.steps)
    # A finer factor than one gains nothing in data and costs a bit per non-zero.
    assert cost.factor >= 1
    for name, tensor in rebuilt.items():
        assert not model.integers[name][tensor == 0].any()


def test_weights_that_rounding_cuts_off_are_not_coded(weights):
    """A value's row of zeros leaves the column that reads it without influence, and the other way round."""
    cut = {name: tensor.copy() for name, tensor in weights.items()}
    cut["blocks.0.qkv.weight"][2 * CONFIG.width + 3] = 0
    cut["blocks.0.down.weight"][:, 5] = 1e-9
    cut["blocks.0.down.weight"][0, 6] = 1.0
    on_grid, _ = choose(cut)
    assert np.any(cut["blocks.0.out.weight"][:, 3]) and not on_grid.integers["blocks.0.out.weight"][:, 3].any()
    assert np.any(cut["blocks.0.up.weight"][5]) and not on_grid.integers["blocks.0.up.weight"][5].any()
    rounded = QuantisedModel(CONFIG, TOKENIZER, quantise(cut, on_grid.steps), on_grid.steps)
    assert len(encode_weights(on_grid.integers, on_grid.steps)) < len(encode_weights(rounded.integers, on_grid.steps))
    tokens = torch.tensor([list(TEXT[:CHUNK_BYTES])])
    with torch.inference_mode():
        assert torch.equal(on_grid.transformer()(tokens), rounded.transformer()(tokens))
