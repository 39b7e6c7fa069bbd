"""The compiled portable model: the integers of `eval.portable`, several times as fast on a processor.

Keys and values are kept as 16-bit integers where float32 sums of their products are exact: there they are at most
2^12. Others are below 2^24, and float32 holds them.
"""

import numpy as np
import torch
from torch import Tensor

from eval.kernels import integer_steps as kernel
from eval.kernels.attention import embed
from eval.kernels.products import Matrix, Room
from eval.kernels.vectors import WIDTH
from eval.predict.exact_products import NormedProduct, Product
from eval.predict.portable import EXP_STEPS, ModernAttention, Perceptron, PortableModel, PublishedAttention
from eval.predict.stepping import Cache, smeared_symbols, tiles_of

_NONE = np.zeros(0)


class CompiledPortableModel:
    """The transformer in integers as compiled loops, token by token; computes what `PortableModel` does."""

    def __init__(self, model: PortableModel):
        self.config, self.vocab_size, self.begin = model.config, model.vocab_size, model.begin
        self._embed, self._limit = model.embed.numpy(), float(model.limit)
        self._smeared = [table.numpy() for table in model.smeared]
        self._positions = None if model.positions is None else model.positions.numpy()
        attention = _Published if self.config.architecture == "published" else _Modern
        self._blocks = [
            (attention(attend), _Perceptron(perceive, self._limit), _Output(attend.out, self._limit))
            for attend, perceive in model.blocks
        ]
        mixer = model.blocks[0][0].mixer
        self._cache_type = np.int16 if mixer.dtype == torch.float32 else np.float32
        self._head, self._exp = _NormedProduct(model.head), model.exp.numpy()
        self._factor = model.head.unit * EXP_STEPS

    def new_cache(self, lanes: int, length: int) -> Cache:
        """An empty cache of at least `lanes` lanes."""
        shape = (tiles_of(lanes), self.config.heads, length, self.config.width // self.config.heads, WIDTH)
        return Cache([tuple(np.zeros(shape, self._cache_type) for _ in range(2)) for _ in self._blocks])

    def step(self, tokens: np.ndarray, cache: Cache) -> np.ndarray:
        """Read `tokens` (lanes, count); returns weights of symbols (lanes, count, vocab_size), and advances `cache`.

        The lanes are a multiple of 16.
        """
        lanes, count = tokens.shape
        room = cache.room
        x = room.array("stream", (count, self.config.width, lanes), np.float64)
        embed(self._embed, tokens, x)
        if self._smeared:
            before = room.array("smeared", x.shape, np.float64)
            symbols = smeared_symbols(tokens, cache, self.begin, len(self._smeared))
            for table, own in zip(self._smeared, symbols, strict=True):
                embed(table, own, before)
                x += before
                np.clip(x, -self._limit, self._limit, out=x)
        if self._positions is not None:
            x += self._positions[cache.position : cache.position + count, :, None]
            np.clip(x, -self._limit, self._limit, out=x)
        for (attend, perceive, out), (keys, values) in zip(self._blocks, cache.layers, strict=True):
            out.add(attend(x, keys, values, cache.position, room), x, room)
            perceive(x, room)
        cache.position += count
        weights = np.empty((lanes, count, self.vocab_size))
        kernel.symbol_weights(self._head(x, room), self._factor, self._exp, weights)
        return weights


class _NormedProduct:
    """A norm and the product behind it."""

    def __init__(self, product: NormedProduct):
        self._matrix, self._norm = _matrix(product.matrix), (product.scale, product.epsilon)
        self._gain = _NONE if product.gain is None else product.gain.numpy()
        self._bias = _NONE if product.bias is None or product.gain is None else product.bias.numpy()

    def __call__(self, x: np.ndarray, room: Room) -> np.ndarray:
        """Exact sums (count, outputs, lanes) for the residual stream `x` (count, width, lanes)."""
        normal = room.array("normal", x.shape, self._matrix.dtype)
        kernel.normed(x, self._norm, self._gain, self._bias, normal)
        return self._matrix.times(normal, room)


class _Output:
    """A product of integers that is added to the residual stream."""

    def __init__(self, product: Product, limit: float):
        self._matrix, self._scale, self._limit = _matrix(product.matrix), product.scale, limit
        self._bias = _NONE if product.bias is None else product.bias.numpy()

    @property
    def dtype(self) -> np.dtype:
        """Type of the inputs."""
        return self._matrix.dtype

    def add(self, inputs: np.ndarray, x: np.ndarray, room: Room) -> None:
        """Add the product with `inputs` (count, inputs, lanes) to `x` (count, width, lanes)."""
        kernel.add_output(self._matrix.times(inputs, room), self._scale, self._bias, self._limit, x)


class _Attention:
    """Attention, given integers for queries, keys and values."""

    def __init__(self, attention: ModernAttention | PublishedAttention):
        self._product, mixer = _NormedProduct(attention.product), attention.mixer
        self._heads, self._out_type = (mixer.heads, mixer.head_width), _matrix(attention.out.matrix).dtype
        self._table = mixer.exp.numpy()
        number = self._table.dtype.type
        self._numbers = number(attention.unit * EXP_STEPS), number(mixer.levels.item()), self._table
        self._multiple = number(1 << attention.bits)

    def _mixed(self, qkv: np.ndarray, keys: np.ndarray, values: np.ndarray, start: int, room: Room) -> np.ndarray:
        count, _, heads, head_width, lanes = qkv.shape
        mixed = room.array("mixed", (count, heads * head_width, lanes), self._out_type)
        kernel.attend(qkv, keys, values, start, *self._numbers, self._multiple, mixed)
        return mixed


class _Modern(_Attention):
    def __init__(self, attention: ModernAttention):
        super().__init__(attention)
        scales, width = attention.scales.numpy(), attention.mixer.heads * attention.mixer.head_width
        self._scales, self._norm = scales[[0, 2 * width]], (attention.norm, attention.epsilon)
        self._circle = [table.numpy().astype(scales.dtype) for table in attention.circle]

    def __call__(self, x: np.ndarray, keys: np.ndarray, values: np.ndarray, start: int, room: Room) -> np.ndarray:
        """Mixed values (count, width, lanes) for the residual stream `x`; the cache is written from `start` on."""
        qkv = self._product(x, room).reshape(len(x), 3, *self._heads, -1)
        cos, sin = self._circle
        kernel.turn(qkv, self._scales, self._norm, cos, sin, start)
        return self._mixed(qkv, keys, values, start, room)


class _Published(_Attention):
    def __init__(self, attention: PublishedAttention):
        super().__init__(attention)
        self._affine = attention.scale, attention.bias.numpy(), float(attention.limit)

    def __call__(self, x: np.ndarray, keys: np.ndarray, values: np.ndarray, start: int, room: Room) -> np.ndarray:
        """As of `_Modern`."""
        sums = self._product(x, room)
        qkv = room.array("qkv", sums.shape, np.float64)
        kernel.biased(sums, *self._affine, qkv)
        return self._mixed(qkv.reshape(len(x), 3, *self._heads, -1), keys, values, start, room)


class _Perceptron:
    """The two-layer perceptron."""

    def __init__(self, perceptron: Perceptron, limit: float):
        self._up, self._down = _NormedProduct(perceptron.up), _Output(perceptron.down, limit)
        self._scale, self._limit = perceptron.scale, float(perceptron.limit)
        self._bias = None if perceptron.bias is None else perceptron.bias.numpy()
        self._phi = None if perceptron.phi is None else perceptron.phi.numpy()

    def __call__(self, x: np.ndarray, room: Room) -> None:
        """Add its output to the residual stream `x` (count, width, lanes)."""
        sums = self._up(x, room)
        hidden = room.array("hidden", sums.shape, np.float64)
        if self._phi is None:
            number = sums.dtype.type
            kernel.squared(sums, number(self._scale), number(self._limit), hidden)
        else:
            kernel.biased(sums, self._scale, self._bias, self._limit, hidden)
            kernel.multiply_phi(hidden, self._phi)
        self._down.add(hidden, x, room)


def _matrix(inputs_outputs: Tensor) -> Matrix:
    return Matrix(np.ascontiguousarray(inputs_outputs.numpy().T))
