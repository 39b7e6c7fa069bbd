"""Rounding with error feedback: the published update, its closed forms, and that it is worth what it costs."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from eval.offline.step_search import Search, choose_grid
from eval.weights.codec import quantise
from harness.data.order import Sequences
from harness.data.tokenizer import ByteTokenizer
from harness.model.transformer import ModelConfig, Transformer
from harness.pruning.feedback import Feedback, input_moments, sample_rows, sparse_with_feedback
from harness.pruning.layerwise import sparse_fit

STEP = 0.25


def feedback(moments: np.ndarray, damping: float = 0.01, order: str = "natural") -> Feedback:
    return Feedback({"w": moments}, damping, order)


def correlated(size: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(8 * size, size)) @ (np.eye(size) + 0.7 * rng.normal(size=(size, size)))
    return inputs.T @ inputs


def lost(weights: np.ndarray, integers: np.ndarray, moments: np.ndarray) -> float:
    error = weights - STEP * integers
    return float(((error @ moments) * error).sum())


def brain_surgeon(weights: np.ndarray, moments: np.ndarray) -> np.ndarray:
    """Column by column: round, then move all that is open by the optimal brain surgeon's update."""
    moved, integers = weights.copy(), np.zeros(weights.shape, dtype=np.int64)
    for column in range(weights.shape[1]):
        inverse = np.linalg.inv(moments[column:, column:])
        integers[:, column] = np.rint(moved[:, column] / STEP)
        error = (moved[:, column] - STEP * integers[:, column]) / inverse[0, 0]
        moved[:, column:] -= np.outer(error, inverse[0])
    return integers


@pytest.mark.parametrize("size", [1, 7, 130])
def test_it_is_the_published_update(size):
    moments, weights = correlated(size), np.random.default_rng(1).normal(size=(5, size))
    rounded = feedback(moments, damping=0).rounded("w", weights, np.float32(STEP), 0.0)
    assert np.array_equal(rounded, brain_surgeon(weights, moments))


def test_inputs_that_do_not_correlate_leave_every_weight_at_its_nearest():
    weights = np.random.default_rng(2).normal(size=(6, 40)).astype(np.float32)
    for order in ("natural", "largest"):
        rounder = feedback(np.diag(np.arange(1.0, 41.0)), order=order)
        nearest = quantise({"w": weights}, {"w": np.float32(STEP)})["w"]
        assert np.array_equal(rounder.rounded("w", weights, np.float32(STEP), 0.0), nearest)
        assert np.array_equal(rounder.rounded("other", weights, np.float32(STEP), 0.0), nearest)


@given(seed=st.integers(0, 50), order=st.sampled_from(["natural", "largest"]))
def test_outputs_are_closer_than_with_the_nearest_steps(seed, order):
    moments, weights = correlated(48, seed), np.random.default_rng(seed).normal(size=(20, 48))
    rounded = feedback(moments, order=order).rounded("w", weights, np.float32(STEP), 0.0)
    assert lost(weights, rounded, moments) < 0.8 * lost(weights, np.rint(weights / STEP), moments)


def test_zeros_stay_and_a_dead_zone_makes_more_of_them():
    moments, weights = correlated(48), np.random.default_rng(3).normal(size=(20, 48))
    weights[:, ::3] = 0
    zeros = [
        int((feedback(moments).rounded("w", weights, np.float32(1.0), zone)[:, 1::3] == 0).sum())
        for zone in (0.0, 0.2, 0.4)
    ]
    assert zeros == sorted(set(zeros))
    assert not feedback(moments).rounded("w", weights, np.float32(1.0), 0.2)[:, ::3].any()


def relative_loss(weights: torch.Tensor, sparse: torch.Tensor, moments: torch.Tensor) -> float:
    error = (weights - sparse).double()
    return float(((error @ moments) * error).sum() / ((weights.double() @ moments) * weights).sum())


def test_pruning_with_feedback_loses_less_than_by_magnitude_and_no_weight_for_more_than_its_price():
    moments = torch.from_numpy(correlated(48)) / 384
    weights = torch.from_numpy(np.random.default_rng(4).normal(size=(20, 48))).float()
    sparse = sparse_with_feedback(weights, moments, 0.003)
    kept = int(sparse.count_nonzero())
    assert 200 < kept < 700
    threshold = weights.abs().flatten().sort().values[-kept]
    by_magnitude = weights * (weights.abs() >= threshold)
    assert relative_loss(weights, sparse, moments) < 0.6 * relative_loss(weights, by_magnitude, moments)
    # What is removed costs less than its price each, in mean squares of one of the 20 outputs.
    assert 20 * relative_loss(weights, sparse, moments) < 0.003 * (int(weights.count_nonzero()) - kept)


def test_without_correlation_feedback_and_descent_prune_the_same_weights():
    squares = torch.rand(30, generator=torch.Generator().manual_seed(0)).double() + 0.1
    weights = torch.randn(20, 30, generator=torch.Generator().manual_seed(1))
    found = sparse_with_feedback(weights, torch.diag(squares), 0.02)
    assert torch.equal(found[found != 0], weights[found != 0])
    other = sparse_fit(weights, torch.diag(squares), 0.02, 300)
    assert ((found != 0) != (other != 0)).float().mean() < 0.03
    assert not sparse_with_feedback(weights, 0 * torch.diag(squares), 0.02).any()
    weights[:, ::5] = 0
    assert not sparse_with_feedback(weights, torch.diag(squares), 0.02)[:, ::5].any()


def test_layers_without_any_input_are_rounded_all_the_same():
    weights = np.random.default_rng(4).normal(size=(3, 9))
    rounded = feedback(np.zeros((9, 9))).rounded("w", weights, np.float32(STEP), 0.0)
    assert np.array_equal(rounded, np.rint(weights / STEP))


def test_moments_are_those_of_the_inputs_of_each_layer():
    model = Transformer(ModelConfig(width=16, layers=1, heads=1, context=12), 256)
    rows = np.arange(60).reshape(5, 12)
    moments = input_moments(model, rows, torch.float32)
    assert set(moments) == {f"blocks.0.{name}.weight" for name in ("qkv", "out", "up", "down")} | {"head.weight"}
    begin = np.full((5, 1), 256)
    inputs = model.embed(torch.from_numpy(np.concatenate([begin, rows[:, :-1]], axis=1)))
    x = model.blocks[0].attention_norm(inputs).flatten(0, 1).detach().double().numpy()
    assert np.allclose(moments["blocks.0.qkv.weight"], x.T @ x, rtol=1e-4, atol=1e-3)


def test_the_sample_is_of_whole_sequences_of_the_text():
    class Text:
        tokens, num_tokens = np.arange(45), 45

    assert sample_rows(Sequences(Text, 10), 2).tolist() == [list(range(10)), list(range(30, 40))]
    assert sample_rows(Sequences(Text, 10), 100).shape == (4, 10)
    assert sample_rows(Sequences(Text, 50), 3).shape == (1, 50)


def test_the_search_takes_feedback_where_it_is_shorter():
    torch.manual_seed(0)
    config = ModelConfig(width=32, layers=1, heads=1, context=64)
    model = Transformer(config, 256)
    text = (b"the cat sat on the mat; the dog sat on the log; " * 60)[:2400]
    tokens = torch.tensor(list(text[: 64 * 37])).view(-1, 64)
    adam = torch.optim.Adam(model.parameters(), 5e-3)
    for _ in range(60):
        loss = torch.nn.functional.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten())
        adam.zero_grad()
        loss.backward()
        adam.step()
    weights = {name: p.detach().numpy().copy() for name, p in model.named_parameters()}
    rounder = Feedback(input_moments(model, tokens.numpy(), torch.float32), 0.01, "natural")
    plain, better = (
        choose_grid(Search(weights, {}, config, ByteTokenizer(), text, 64, torch.float32, own))[1]
        for own in (None, rounder)
    )
    assert better.total_bytes < 0.97 * plain.total_bytes and better.dead_zone > 0
