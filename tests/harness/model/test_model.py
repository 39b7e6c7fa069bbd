"""The transformer: what it may see, and that stepping and whole sequences agree."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from eval.predict.float_model import FloatModel
from harness.model.functions import EPSILON, rms_norm, squared_relu
from harness.model.transformer import ARCHITECTURES, ModelConfig, Transformer

KINDS = (*ARCHITECTURES, "smeared")


def kind(architecture: str) -> dict:
    """Settings of a model: of an architecture, or of the first one with smeared embeddings."""
    return {"smear": 2} if architecture == "smeared" else {"architecture": architecture}


def make_model(architecture: str, vocab_size: int = 256) -> Transformer:
    torch.manual_seed(0)
    model = Transformer(ModelConfig(**kind(architecture), width=32, layers=2, heads=2, context=64), vocab_size)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return model


@pytest.mark.parametrize("architecture", KINDS)
def test_stepping_computes_what_whole_sequences_do(architecture):
    model = make_model(architecture)
    stepping = FloatModel(model.config, 256, model.named_parameters())
    tokens = torch.randint(0, 256, (16, 64))
    cache, previous, rows = stepping.new_cache(16, 64), torch.full((16,), stepping.begin), []
    with torch.inference_mode():
        whole = torch.softmax(model(tokens), dim=-1)
        for position in range(64):
            rows.append(torch.from_numpy(stepping.step(previous[:, None].numpy(), cache)))
            previous = tokens[:, position]
    # Keys and values in 16 bits differ by 2^-16 of the largest of a head.
    torch.testing.assert_close(torch.cat(rows, dim=1), whole, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("architecture", KINDS)
def test_a_prediction_sees_all_before_it_and_nothing_else(architecture):
    model = make_model(architecture)
    tokens = torch.randint(0, 256, (1, 64))
    with torch.inference_mode():
        before = model(tokens)
        tokens[0, 30] = (tokens[0, 30] + 1) % 256
        changed = (model(tokens) != before).any(dim=2)[0]
    assert not changed[:31].any() and changed[31:].all()


def test_an_untrained_modern_model_is_the_uniform_code():
    model = Transformer(ModelConfig(width=32, layers=1, heads=2), 256)
    assert torch.equal(model(torch.randint(0, 256, (2, 9))), torch.zeros(2, 9, 256))


@pytest.mark.parametrize("function", [rms_norm, squared_relu])
def test_hand_written_gradients_are_the_numeric_ones(function):
    torch.manual_seed(0)
    x = torch.randn(4, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(function, x)


def test_functions_are_what_torch_computes():
    x = torch.randn(5, 16)
    torch.testing.assert_close(rms_norm(x), F.rms_norm(x, (16,), eps=EPSILON))
    assert torch.equal(squared_relu(x), F.relu(x).square())


@pytest.mark.parametrize("architecture", KINDS)
def test_a_model_of_zeros_stays_finite(architecture):
    model = make_model(architecture)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    assert model(torch.zeros(1, 5, dtype=torch.int64)).isfinite().all()


def test_shapes_alone_import_no_compiler():
    """It takes longer than decoding a page."""
    program = (
        "import sys, torch\n"
        "from harness.model.transformer import ModelConfig, Transformer\n"
        "for architecture in ('modern', 'published'):\n"
        "    with torch.device('meta'):\n"
        "        model = Transformer(ModelConfig(architecture=architecture, width=32, layers=1, context=8), 50)\n"
        "    assert all(p.is_meta for p in model.parameters())\n"
        "print('torch._dynamo' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=100)
    assert done.stdout == "False\n", done.stderr
