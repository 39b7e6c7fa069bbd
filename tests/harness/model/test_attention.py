"""Attention in blocks computes what its formula says."""

import pytest
import torch
import torch.nn.functional as F

from harness.model.attention import BLOCK, causal_attention
from harness.model.functions import rotated


def by_formula(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    q, k, v = (x.double().transpose(1, 2) for x in (q, k, v))
    scores = q @ k.mT / q.shape[-1] ** 0.5
    hidden = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool).triu(1)
    return (scores.masked_fill(hidden, -torch.inf).softmax(-1) @ v).transpose(1, 2).flatten(2)


@pytest.mark.parametrize(
    ("batch", "length", "heads", "width"), [(1, 1, 1, 4), (3, BLOCK + 7, 3, 8), (5, 3 * BLOCK, 2, 16)]
)
def test_values_and_gradients_are_those_of_the_formula(batch, length, heads, width):
    torch.manual_seed(0)
    # As in the model: three parts of one product.
    qkv = torch.randn(batch, length, 3, heads, width, requires_grad=True)
    twin = qkv.detach().clone().requires_grad_()
    gradient = torch.randn(batch, length, heads * width)
    found, expected = causal_attention(*qkv.unbind(2)), by_formula(*twin.unbind(2))
    found.backward(gradient)
    expected.backward(gradient.double())
    assert found.dtype == torch.float32
    assert torch.allclose(found.double(), expected, rtol=0, atol=1e-5)
    assert torch.allclose(qkv.grad, twin.grad, rtol=0, atol=2e-5)


def test_later_places_do_not_matter_bit_by_bit():
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 2 * BLOCK, 2, 8).unbind(0)
    before = causal_attention(q, k, v)
    for x in (q, k, v):
        x[:, BLOCK + 5 :] = torch.randn_like(x[:, BLOCK + 5 :]) * 100
    assert torch.equal(causal_attention(q, k, v)[:, : BLOCK + 5], before[:, : BLOCK + 5])


@pytest.mark.parametrize("is_native", [True, False])
def test_half_precision_keeps_its_type_and_is_near_the_formula(is_native, monkeypatch):
    monkeypatch.setattr("harness.model.attention.has_native_bf16", lambda device: is_native)
    torch.manual_seed(0)
    qkv = torch.randn(2, BLOCK + 7, 3, 2, 16).bfloat16().requires_grad_()
    twin = qkv.detach().double().requires_grad_()
    q, k, v = qkv.unbind(2)
    with torch.autocast("cpu", torch.bfloat16):
        # Norms and rotations give float32 under autocast, linear layers bfloat16.
        found = causal_attention(q.float(), k.float(), v)
    expected = by_formula(*twin.unbind(2))
    found.backward(torch.ones_like(found))
    expected.backward(torch.ones_like(expected))
    assert found.dtype == torch.bfloat16
    assert (found.double() - expected).abs().max() < (0.02 if is_native else 0.009)
    assert (qkv.grad.double() - twin.grad).abs().max() < 0.1


def test_compiled_attention_is_pytorchs_kernel(monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    q, k, v = (torch.randn(2, 9, 2, 8) for _ in range(3))
    theirs = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), is_causal=True)
    assert torch.equal(causal_attention(q, k, v), theirs.transpose(1, 2).flatten(2))


def test_a_rotation_has_the_gradient_of_its_formula():
    torch.manual_seed(0)
    x = torch.randn(2, 5, 2, 3, 8, dtype=torch.float64, requires_grad=True)
    angle = torch.randn(5, 1, 1, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: rotated(x, angle.cos(), angle.sin()), (x,))
    first, second = rotated(x, angle.cos(), angle.sin()).chunk(2, dim=-1)
    assert torch.allclose(first, x[..., :4] * angle.cos() - x[..., 4:] * angle.sin())
    assert torch.allclose(second, x[..., :4] * angle.sin() + x[..., 4:] * angle.cos())
