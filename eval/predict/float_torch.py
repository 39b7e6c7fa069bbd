"""The float model in torch's operations, for a GPU: one token a lane at a time, and other last bits than the CPU's."""

from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from eval.predict.stepping import Cache, smeared_symbols
from harness.model.functions import rms_norm, squared_relu
from harness.model.transformer import ModelConfig, rotary_tables, sinusoidal_positions


class TorchFloatModel:
    """The transformer in PyTorch's operations, token by token on a device."""

    def __init__(self, config: ModelConfig, vocab_size: int, weights: Iterable[tuple[str, Tensor]], device: str):
        """`weights` are names and tensors of a `Transformer`, all of them."""
        self.config, self.vocab_size, self.begin, self.device = config, vocab_size, vocab_size, device
        self._weights = {name: tensor.detach().float().to(device) for name, tensor in weights}
        head_width = config.width // config.heads
        self._published = config.architecture == "published"
        self._positions = sinusoidal_positions(config.places, config.width).to(device)
        self._circle = [table.to(device) for table in rotary_tables(config.places, head_width)]

    def new_cache(self, lanes: int, length: int) -> Cache:
        """An empty cache; keys and values of a layer have shape (lanes, heads, length, head width)."""
        shape = (lanes, self.config.heads, length, self.config.width // self.config.heads)
        layers = range(self.config.layers)
        return Cache([tuple(torch.zeros(shape, device=self.device) for _ in range(2)) for _ in layers])

    def step(self, tokens: np.ndarray, cache: Cache) -> np.ndarray:
        """Read `tokens` (lanes, count) into `cache`; returns probabilities (lanes, count, vocab_size), float32."""
        before = smeared_symbols(tokens, cache, self.begin, self.config.smear)
        read, smeared = (torch.from_numpy(symbols).to(self.device) for symbols in (tokens, before))
        steps = [self._step(read[:, t], smeared[:, :, t], cache) for t in range(tokens.shape[1])]
        return torch.stack(steps, dim=1).cpu().numpy()

    def _step(self, tokens: Tensor, before: Tensor, cache: Cache) -> Tensor:
        at, embed = cache.position, self._weights["embed.weight"]
        x = embed[tokens]
        if self.config.smear:
            factors, table = self._weights["smear.weight"].view(-1, 1, self.config.width), F.pad(embed, (0, 0, 0, 1))
            x = x + (factors * table[before]).sum(0)
        if self._published:
            x = x + self._positions[at]
        for index, (keys, values) in enumerate(cache.layers):
            block = f"blocks.{index}."
            normal = self._normed(x, f"{block}attention_norm")
            x = x + self._affine(self._attend(self._affine(normal, f"{block}qkv"), keys, values, at), f"{block}out")
            hidden = self._affine(self._normed(x, f"{block}mlp_norm"), f"{block}up")
            x = x + self._affine(F.gelu(hidden) if self._published else squared_relu(hidden), f"{block}down")
        cache.position += 1
        return torch.softmax(self._affine(self._normed(x, "norm"), "head"), dim=1)

    def _attend(self, qkv: Tensor, keys: Tensor, values: Tensor, at: int) -> Tensor:
        """Values (lanes, width) mixed by attention; this position's keys and values go to the cache."""
        heads = qkv.view(len(qkv), 3, self.config.heads, -1)
        query_key = heads[:, :2]
        if not self._published:
            first, second = rms_norm(query_key).chunk(2, dim=-1)
            cos, sin = (table[at] for table in self._circle)
            query_key = torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)
        keys[:, :, at], values[:, :, at] = query_key[:, 1], heads[:, 2]
        query = query_key[:, 0, :, None] / query_key.shape[-1] ** 0.5
        weights = torch.softmax(query @ keys[:, :, : at + 1].transpose(2, 3), dim=-1)
        return (weights @ values[:, :, : at + 1]).flatten(1)

    def _normed(self, x: Tensor, name: str) -> Tensor:
        if not self._published:
            return rms_norm(x)
        return F.layer_norm(x, x.shape[-1:], self._weights[f"{name}.weight"], self._weights[f"{name}.bias"])

    def _affine(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self._weights[f"{name}.weight"], self._weights.get(f"{name}.bias"))
