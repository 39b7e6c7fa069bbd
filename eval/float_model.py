"""The transformer of `harness.model` in float32, one token a lane.

At a few lanes a call of torch takes longer than its work, and one of numpy much less. So matrix products, attention and
what numpy has not are torch's, and all else is numpy's, on the same memory.
"""

from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from eval.stepping import Cache
from harness.functions import EPSILON
from harness.model import ModelConfig, rotary_tables, sinusoidal_positions

Affine = tuple[Tensor, Tensor | None]
"""A matrix (inputs, outputs) and what is added to the product."""


class FloatModel:
    """Steps lanes with weights that can be replaced."""

    def __init__(self, config: ModelConfig, vocab_size: int, weights: Iterable[tuple[str, Tensor]]):
        """`weights` are names and tensors of a `Transformer`, all of them."""
        self.config, self.vocab_size, self.begin = config, vocab_size, vocab_size
        self._published = config.architecture == "published"
        if self._published:
            self._positions = sinusoidal_positions(config.context, config.width).numpy()
        else:
            cos, sin = (table.numpy() for table in rotary_tables(config.context, config.width // config.heads))
            # Both halves of a head at once: x * cos + (the other half) * (-sin, sin).
            self._rotary = np.concatenate([cos, cos], axis=1), np.concatenate([-sin, sin], axis=1)
        self.load(weights)

    def load(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Replace all weights."""
        w = {name: tensor.detach().float().cpu() for name, tensor in weights}

        def affine(name: str) -> Affine:
            return w[f"{name}.weight"].t().contiguous(), w.get(f"{name}.bias")

        def norm(name: str) -> tuple[Tensor | None, Tensor | None]:
            return w.get(f"{name}.weight"), w.get(f"{name}.bias")

        self._embed = w["embed.weight"].numpy()
        self._blocks = [
            (
                *(norm(f"blocks.{i}.{name}_norm") for name in ("attention", "mlp")),
                *(affine(f"blocks.{i}.{name}") for name in ("qkv", "out", "up", "down")),
            )
            for i in range(self.config.layers)
        ]
        self._norm, self._head = norm("norm"), affine("head")

    def new_cache(self, lanes: int, length: int) -> Cache:
        """An empty cache; keys and values of a layer have shape (lanes, heads, length, head width)."""
        shape = (lanes, self.config.heads, length, self.config.width // self.config.heads)
        keys, values = ([torch.zeros(shape) for _ in range(self.config.layers)] for _ in range(2))
        return Cache(keys, values)

    def step(self, tokens: Tensor, cache: Cache) -> Tensor:
        """Probabilities (lanes, vocab_size), float32, after reading one token a lane; advances `cache`."""
        at = cache.position
        x = self._embed[tokens.numpy()]
        if self._published:
            x += self._positions[at]
        for (attention_norm, mlp_norm, qkv, out, up, down), keys, values in zip(
            self._blocks, cache.keys, cache.values, strict=True
        ):
            x += _product(self._attend(_product(self._normed(x, attention_norm), qkv), keys, values, at), out)
            x += _product(self._activated(_product(self._normed(x, mlp_norm), up)), down)
        cache.position += 1
        logits = _product(self._normed(x, self._norm), self._head)
        logits -= logits.max(axis=1, keepdims=True)
        np.exp(logits, out=logits)
        logits /= logits.sum(axis=1, keepdims=True)
        return torch.from_numpy(logits)

    def _attend(self, qkv: np.ndarray, keys: Tensor, values: Tensor, at: int) -> np.ndarray:
        """Values (lanes, width) mixed by attention; this position's keys and values go to the cache."""
        heads = qkv.reshape(len(qkv), 3, self.config.heads, -1)
        query_key = heads[:, :2]
        if not self._published:
            cos, sin = (table[at] for table in self._rotary)
            query_key = _rms_normed(query_key)
            first, second = np.split(query_key, 2, axis=-1)
            turned = np.concatenate([second, first], axis=-1)
            turned *= sin
            query_key *= cos
            query_key += turned
        keys.numpy()[:, :, at], values.numpy()[:, :, at] = query_key[:, 1], heads[:, 2]
        query = torch.from_numpy(np.ascontiguousarray(query_key[:, 0]))[:, :, None]
        mixed = F.scaled_dot_product_attention(query, keys[:, :, : at + 1], values[:, :, : at + 1])
        return mixed.numpy().reshape(len(qkv), -1)

    def _normed(self, x: np.ndarray, norm: tuple[Tensor | None, Tensor | None]) -> np.ndarray:
        if not self._published:
            return _rms_normed(x)
        return F.layer_norm(torch.from_numpy(x), x.shape[-1:], *norm).numpy()

    def _activated(self, x: np.ndarray) -> np.ndarray:
        if self._published:
            return F.gelu(torch.from_numpy(x)).numpy()
        np.maximum(x, 0, out=x)
        return np.multiply(x, x, out=x)


def _product(x: np.ndarray, affine: Affine) -> np.ndarray:
    matrix, bias = affine
    rows = torch.from_numpy(x)
    return (torch.mm(rows, matrix) if bias is None else torch.addmm(bias, rows, matrix)).numpy()


def _rms_normed(x: np.ndarray) -> np.ndarray:
    scale = np.einsum("...i,...i->...", x, x)[..., None]
    scale /= np.float32(x.shape[-1])
    scale += np.float32(EPSILON)
    return x / np.sqrt(scale, out=scale)
