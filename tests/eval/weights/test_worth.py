"""Weights that are not worth their bits: what a weight costs, what it is worth, and that files get shorter by it."""

import numpy as np
import pytest
import torch

from eval.offline.step_search import Search, choose_grid
from eval.weights.codec import encode_weights
from eval.weights.worth import Worth, cost_nats, gradient_squares
from harness.data.tokenizer import ByteTokenizer
from harness.model.transformer import ModelConfig, Transformer
from harness.units import bits_from_bytes, bits_from_nats

CONFIG = ModelConfig(width=32, layers=1, heads=1, context=64)
TEXT = (b"the cat sat on the mat; the dog sat on the log; " * 60)[:2400]


def trained_model() -> Transformer:
    torch.manual_seed(0)
    model = Transformer(CONFIG, 256)
    tokens = torch.tensor(list(TEXT[: 64 * 37])).view(-1, 64)
    adam = torch.optim.Adam(model.parameters(), 5e-3)
    for _ in range(60):
        loss = torch.nn.functional.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten())
        adam.zero_grad()
        loss.backward()
        adam.step()
    return model


def test_costs_are_about_those_of_the_coder():
    generator = np.random.default_rng(0)
    rows, columns = generator.uniform(0.02, 0.5, (200, 1)), generator.uniform(0.1, 1.0, (1, 150))
    integers = (generator.random((200, 150)) < rows * columns) * generator.choice([-2, -1, 1, 2], (200, 150))
    step = {"w": np.float32(1)}
    costs = cost_nats(integers)
    chosen = generator.choice(np.flatnonzero(integers), 400, replace=False)
    emptied = integers.copy()
    emptied.flat[chosen] = 0
    saved_bytes = len(encode_weights({"w": integers}, step)) - len(encode_weights({"w": emptied}, step))
    assert bits_from_nats(costs.flat[chosen].sum()) == pytest.approx(bits_from_bytes(saved_bytes), rel=0.15)


def test_a_weight_in_an_empty_row_costs_more_than_one_among_many():
    integers = np.ones((40, 40), dtype=np.int64)
    integers[1:20] = 0
    integers[1, 3] = 1
    costs = cost_nats(integers)
    assert costs[1, 3] > costs[0, 3] + 3
    assert cost_nats(4 * integers)[1, 3] > costs[1, 3]


def test_gradients_are_those_of_the_loss_and_what_is_lost_follows_from_them():
    model = trained_model()
    weight, rows = "blocks.0.down.weight", np.array(list(TEXT[:640])).reshape(10, 64)
    squares = gradient_squares(model, rows)
    change, column = 1e-4, model.get_parameter(weight)

    def nats(row: np.ndarray) -> float:
        tokens = torch.from_numpy(row[None])
        return float(torch.nn.functional.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten(), reduction="sum"))

    total = 0.0
    with torch.no_grad():
        for row in rows:
            losses = []
            for sign in (1, -1):
                column[3, 5] += sign * change
                losses.append(nats(row))
                column[3, 5] -= sign * change
            total += ((losses[0] - losses[1]) / (2 * change)) ** 2
    assert squares[weight][3, 5] == pytest.approx(total / 640, rel=1e-5)

    worth = Worth({"w": np.array([[2.0, 0.0, 2.0]])}, text_tokens=100)
    integers = np.array([[3, 3, 0]])
    assert worth.kept("w", integers, np.float32(0.5), 1e-9).tolist() == [[3, 0, 0]]
    lost = 0.5 * 100 * 2.0 * 1.5**2
    for factor, kept in ((0.99, 3), (1.01, 0)):
        price = factor * lost / cost_nats(integers)[0, 0]
        assert worth.kept("w", integers, np.float32(0.5), price)[0, 0] == kept


def test_the_search_drops_what_is_not_worth_its_bits_and_never_gets_longer():
    model = trained_model()
    weights = {name: p.detach().numpy().copy() for name, p in model.named_parameters()}
    rows = np.array(list(TEXT[: 64 * 16])).reshape(16, 64)
    worth = Worth(gradient_squares(model, rows), len(TEXT))
    found = {}
    for name, own in (("all", None), ("worth", worth), ("no gradients", Worth(dict.fromkeys(weights, 1e9), 1))):
        search = Search(weights, {}, CONFIG, ByteTokenizer(), TEXT, 64, torch.float32, worth=own)
        found[name] = choose_grid(search)
    (plain, all_cost), (sparse, cost) = found["all"], found["worth"]
    assert cost.price > 0 and cost.total_bytes < 0.97 * all_cost.total_bytes
    assert sum((q != 0).sum() for q in sparse.integers.values()) < sum((q != 0).sum() for q in plain.integers.values())
    assert sparse.steps == plain.steps
    assert found["no gradients"][1].total_bytes == all_cost.total_bytes
