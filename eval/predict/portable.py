"""The transformer in integers: the same weights of symbols on every machine, in whatever order it sums.

Here are the proofs and the model in torch's operations, for any device; on processors, `eval.predict.portable_steps`
computes the same integers several times as fast. Why they are the same is told in docs/offline.md ("Who predicts").
"""

import math
from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from eval.predict.exact_products import (
    EXACT_BITS,
    STREAM_BITS,
    Grid,
    Grids,
    NormedProduct,
    Product,
    inverse_norm,
    square_root,
)
from eval.predict.exact_tables import circle_tables, exp_table, normal_table
from eval.predict.stepping import Cache, smeared_symbols
from harness.model.functions import EPSILON
from harness.model.transformer import ModelConfig

# Units are powers of two: of hidden activations, and of the published architecture's queries, keys and values.
HIDDEN_BITS, PUBLISHED_BITS = 8, 12
# Mixed values are finer than a value's unit by as many bits as float32 sums allow.
MIXED_BITS = (4, 3, 2, 1, 0)
# Where hidden activations saturate: never below 32, else a trained model might reach it.
SMALLEST_HIDDEN_LIMIT, LARGEST_HIDDEN_LIMIT = 32 << HIDDEN_BITS, 1 << 20
# Where the values of float64 caches saturate: 1024 in the published architecture.
WIDE_LIMIT = 1024 << PUBLISHED_BITS
# Attention weights add up to 2^12 in float32, which is too coarse for more tokens than this, and to 2^20 in float64.
LONGEST_FLOAT32, FLOAT32_LEVELS, FLOAT64_LEVELS = 1024, 1 << 12, 1 << 20
# Normalised queries and keys have this root mean square at most.
LARGEST_QUERY = 1 << 12
CIRCLE_BITS, PHI_BITS, PHI_REACH = 15, 14, 6
# Scores and logits are cut to 1/256 nat: at most 0.4 % of a probability, about 1e-6 nats a symbol.
EXP_STEPS, SYMBOL_BITS = 256, 32


def cache_dtype(config: ModelConfig, length: int) -> torch.dtype:
    """Choose the type of keys and values: float32, which is fast, for normalised queries and short sequences."""
    narrow = config.architecture == "modern" and length <= LONGEST_FLOAT32
    return torch.float32 if narrow else torch.float64


class PortableModel:
    """The transformer in integers, token by token: each symbol gets an integer weight of at least 1."""

    def __init__(
        self,
        config: ModelConfig,
        vocab_size: int,
        integers: Mapping[str, np.ndarray],
        steps: Mapping[str, np.float32],
        length: int,
    ):
        """Sequences have at most `length` tokens. Raises UsageError where integers are too large for exact sums."""
        self.config, self.vocab_size, self.begin = config, vocab_size, vocab_size
        grids = {name: Grid(name, integers[name], steps[name]) for name in integers}
        # A centred row has at most twice the magnitude, and its squares must add up exactly.
        self.limit = math.isqrt((1 << 53) // (4 * config.width)) - 1
        self.embed = self._saturated(grids["embed.weight"].values(STREAM_BITS).round_())
        factors = (grids["smear.weight"].values(0) if config.smear else torch.zeros(0)).view(-1, config.width)
        # One product of two numbers is rounded once, alike everywhere.
        products = [(grids["embed.weight"].values(STREAM_BITS) * each).round_() for each in factors]
        self.smeared = [F.pad(self._saturated(product), (0, 0, 0, 1)) for product in products]
        self.positions = None
        if config.architecture == "published":
            cos, sin = circle_tables(length, config.width // 2, STREAM_BITS)
            self.positions = torch.from_numpy(np.stack([sin, cos], axis=-1).reshape(length, -1))
        self.blocks = _blocks(grids, config, length)
        self.head = NormedProduct(grids, "norm", "head.weight", config.width)
        self.exp = torch.from_numpy(exp_table(SYMBOL_BITS, EXP_STEPS))
        self.device = torch.device("cpu")

    def to(self, device: str) -> "PortableModel":
        """Move all tensors of the model to a device."""
        self.device = torch.device(device)
        _move(self, self.device)
        return self

    def new_cache(self, lanes: int, length: int) -> Cache:
        """An empty cache; keys and values of a layer have shape (lanes * heads, length, head width)."""
        heads, dtype = self.config.heads, cache_dtype(self.config, length)
        shape = (lanes * heads, length, self.config.width // heads)
        return Cache(
            [tuple(torch.zeros(shape, dtype=dtype, device=self.device) for _ in range(2)) for _ in self.blocks]
        )

    def step(self, tokens: np.ndarray, cache: Cache) -> np.ndarray:
        """Read `tokens` (lanes, count); returns weights of symbols (lanes, count, vocab_size), and advances `cache`."""
        before = smeared_symbols(tokens, cache, self.begin, self.config.smear)
        read, smeared = (torch.from_numpy(symbols).to(self.device) for symbols in (tokens, before))
        steps = [self._step(read[:, t], smeared[:, :, t], cache) for t in range(tokens.shape[1])]
        return torch.stack(steps, dim=1).cpu().numpy()

    def _step(self, tokens: Tensor, before: Tensor, cache: Cache) -> Tensor:
        at = cache.position
        x = self.embed[tokens]
        for table, symbols in zip(self.smeared, before, strict=True):
            x = self._saturated(x.add_(table[symbols]))
        if self.positions is not None:
            x = self._saturated(x.add_(self.positions[at]))
        for (attend, perceive), (keys, values) in zip(self.blocks, cache.layers, strict=True):
            x = self._saturated(x.add_(attend(x, keys, values, at)))
            x = self._saturated(x.add_(perceive(x)))
        cache.position += 1
        return _exp(self.head(x).double(), self.head.unit, self.exp)

    def _saturated(self, x: Tensor) -> Tensor:
        return x.clamp_(-self.limit, self.limit)


class Mixer:
    """Attention over a cache: exact scores, weights from a table, an exact weighted sum, one division."""

    def __init__(self, config: ModelConfig, length: int):
        self.dtype = cache_dtype(config, length)
        self.heads, self.head_width = config.heads, config.width // config.heads
        exact_bits = EXACT_BITS[self.dtype]
        levels = FLOAT32_LEVELS if self.dtype == torch.float32 else FLOAT64_LEVELS
        self.levels = torch.tensor(levels, dtype=self.dtype)
        # Weights add up to `levels` and 1/2 for the rounding of each, at most.
        self.value_limit = min(((1 << exact_bits) - 1) // (levels + length // 2 + 2), WIDE_LIMIT)
        """Values may be this large."""
        self.score_limit = math.isqrt((1 << exact_bits) // self.head_width)
        """Queries and keys may have norm score_limit * sqrt(head width)."""
        table = exp_table(min(SYMBOL_BITS, exact_bits - length.bit_length()), EXP_STEPS)
        self.exp = torch.from_numpy(table).to(self.dtype)

    def __call__(self, qkv: Tensor, keys: Tensor, values: Tensor, at: int, unit: float, bits: int) -> Tensor:
        """Mixed values (lanes, width) in 2^-bits of their unit; `qkv` has shape (lanes, 3, heads, head width)."""
        query, keys[:, at], values[:, at] = (part.flatten(0, 1) for part in qkv.to(self.dtype).unbind(1))
        scores = torch.bmm(query.unsqueeze(1), keys[:, : at + 1].transpose(1, 2)).squeeze(1)
        weights = _exp(scores, unit, self.exp)
        total = weights.sum(dim=1, keepdim=True)
        weights = weights.mul_(torch.div(self.levels, total)).round_()
        mixed = torch.bmm(weights.unsqueeze(1), values[:, : at + 1]).squeeze(1)
        mixed = mixed.mul_(float(1 << bits)).div_(weights.sum(dim=1, keepdim=True)).round_()
        return mixed.view(len(qkv), -1)


class ModernAttention:
    """Attention of the modern architecture: queries and keys are normalised and rotated."""

    def __init__(self, grids: Grids, block: str, config: ModelConfig, mixer: Mixer, circle: tuple[Tensor, Tensor]):
        self.mixer, self.circle = mixer, circle
        self.product = product = NormedProduct(grids, f"{block}attention_norm", f"{block}qkv.weight", config.width)
        whole = grids[f"{block}qkv.weight"]
        parts = np.split(whole.integers, [2 * config.width])
        query_key, value = (Grid(whole.name, part, whole.step) for part in parts)
        # The norm takes any scale: queries and keys are shifted only as far as their squares need to add up exactly.
        head_width, bound = mixer.head_width, math.isqrt(query_key.row_norm2() * product.row_norm2) + 1
        shift = next(k for k in range(53) if head_width * ((bound >> k) + 2) ** 2 < 1 << 53)
        # Values fill what the mixer allows; the 1 is for rounding.
        value_bound = math.isqrt(value.row_norm2() * product.row_norm2) + 1
        value_scale = (mixer.value_limit - 1) / value_bound
        shifted = math.ldexp(1.0, -shift)
        scales = np.repeat([shifted, shifted, value_scale], config.width)
        self.scales = torch.from_numpy(scales).to(product.dtype)
        # With rows of norm `scale` * sqrt(head width), rounding (1/2) and the rotation's table (2^-15 of the norm, less
        # than 1/4 here) leave scores below score_limit^2 * head width, which is exact.
        scale = min(mixer.score_limit - 1, LARGEST_QUERY)
        self.norm = math.ldexp(scale * square_root(head_width), -CIRCLE_BITS)
        per_unit = shifted / product.unit
        # Sums of squares are 0 or at least 1: 2^-40 is as good as less, and its inverse a finite float32.
        self.epsilon = max(head_width * EPSILON * per_unit * per_unit, math.ldexp(1.0, -40))
        self.unit = 1.0 / (scale * scale * square_root(head_width))
        self.bits, self.out = _output(grids, block, mixer, product.unit / value_scale)

    def __call__(self, x: Tensor, keys: Tensor, values: Tensor, at: int) -> Tensor:
        """What to add to the residual stream `x` (lanes, width); keys and values are written at position `at`."""
        qkv = self.product(x).mul_(self.scales).round_().view(len(x), 3, self.mixer.heads, -1)
        query_key = qkv[:, :2]
        inverse = inverse_norm(query_key.double(), self.norm, self.epsilon).to(qkv.dtype)
        first, second = query_key.chunk(2, dim=-1)
        cos, sin = (table[at].to(qkv.dtype) for table in self.circle)
        turned = torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)
        qkv[:, :2] = turned.mul_(inverse).round_()
        return self.out(self.mixer(qkv, keys, values, at, self.unit, self.bits))


class PublishedAttention:
    """Attention of the published architecture: queries, keys and values have biases, in units of 2^-12."""

    def __init__(self, grids: Grids, block: str, config: ModelConfig, mixer: Mixer):
        self.mixer = mixer
        self.product = NormedProduct(grids, f"{block}attention_norm", f"{block}qkv.weight", config.width)
        self.scale = math.ldexp(self.product.unit, PUBLISHED_BITS)
        self.bias = grids[f"{block}qkv.bias"].values(PUBLISHED_BITS)
        self.limit = min(mixer.score_limit - 1, mixer.value_limit)
        self.unit = math.ldexp(1.0, -2 * PUBLISHED_BITS) / square_root(mixer.head_width)
        self.bits, self.out = _output(grids, block, mixer, math.ldexp(1.0, -PUBLISHED_BITS))

    def __call__(self, x: Tensor, keys: Tensor, values: Tensor, at: int) -> Tensor:
        """What to add to the residual stream `x` (lanes, width); keys and values are written at position `at`."""
        qkv = self.product(x).double().mul_(self.scale).add_(self.bias).round_().clamp_(-self.limit, self.limit)
        qkv = qkv.view(len(x), 3, self.mixer.heads, -1)
        return self.out(self.mixer(qkv, keys, values, at, self.unit, self.bits))


class Perceptron:
    """The two-layer perceptron; hidden activations saturate where the second product would not be exact."""

    def __init__(self, grids: Grids, block: str, config: ModelConfig, phi: Tensor | None):
        self.phi = phi
        self.up = NormedProduct(grids, f"{block}mlp_norm", f"{block}up.weight", config.width)
        down = grids[f"{block}down.weight"]
        room = ((1 << 53) - 1) // down.row_sum()
        self.limit = limit = min(math.isqrt(room) if phi is None else room >> PHI_BITS, LARGEST_HIDDEN_LIMIT)
        if limit < SMALLEST_HIDDEN_LIMIT:
            raise down.too_large()
        self.scale = math.ldexp(self.up.unit, HIDDEN_BITS)
        self.bias = None if phi is None else grids[f"{block}up.bias"].values(HIDDEN_BITS)
        largest, bits = (limit * limit, HIDDEN_BITS) if phi is None else (limit << PHI_BITS, PHI_BITS)
        unit = math.ldexp(1.0, -HIDDEN_BITS - bits)
        self.down = Product(grids, f"{block}down", largest, unit, (torch.float64,))

    def __call__(self, x: Tensor) -> Tensor:
        """What to add to the residual stream `x` (lanes, width)."""
        sums = self.up(x)
        if self.phi is None or self.bias is None:
            hidden = _scaled(sums, self.scale).round_().clamp_(0, self.limit).double()
            return self.down(hidden.mul_(hidden))
        hidden = sums.double().mul_(self.scale).add_(self.bias).round_().clamp_(-self.limit, self.limit)
        reach = PHI_REACH << HIDDEN_BITS
        return self.down(hidden.mul_(_looked_up(self.phi, hidden.clamp(-reach, reach).add_(reach))))


_MOVED = (PortableModel, Mixer, ModernAttention, PublishedAttention, Perceptron, NormedProduct, Product)


def _blocks(grids: Grids, config: ModelConfig, length: int) -> list[tuple]:
    """Attention and perceptron of each block; all share their tables."""
    mixer, names = Mixer(config, length), [f"blocks.{i}." for i in range(config.layers)]
    if config.architecture == "published":
        phi = torch.from_numpy(normal_table(PHI_BITS, 1 << HIDDEN_BITS, PHI_REACH))
        return [(PublishedAttention(grids, n, config, mixer), Perceptron(grids, n, config, phi)) for n in names]
    cos, sin = map(torch.from_numpy, circle_tables(length, mixer.head_width // 2, CIRCLE_BITS))
    return [(ModernAttention(grids, n, config, mixer, (cos, sin)), Perceptron(grids, n, config, None)) for n in names]


def _move(part: object, device: torch.device) -> object:
    """`part` on a device: a tensor, a tuple or list of parts, or an object of this module's, whose parts are moved."""
    if isinstance(part, Tensor):
        return part.to(device)
    if isinstance(part, tuple | list):
        return type(part)(_move(item, device) for item in part)
    if isinstance(part, _MOVED):
        for name, value in vars(part).items():
            setattr(part, name, _move(value, device))
    return part


def _output(grids: Grids, block: str, mixer: Mixer, value_unit: float) -> tuple[int, Product]:
    """How many bits finer than values mixed values are, as many as float32 sums allow, and the product behind them."""
    row_sum, limit = grids[f"{block}out.weight"].row_sum(), mixer.value_limit
    bits = next((bits for bits in MIXED_BITS if row_sum * (limit << bits) < 1 << 24), 0)
    unit = math.ldexp(value_unit, -bits)
    return bits, Product(grids, f"{block}out", limit << bits, unit, (torch.float32, torch.float64))


def _exp(scores: Tensor, unit: float, table: Tensor) -> Tensor:
    """Table entries of the distance to a row's largest score, in 1/EXP_STEPS nats; what is far gets the last entry."""
    distances = _scaled(scores.amax(dim=1, keepdim=True) - scores, unit * EXP_STEPS)
    return _looked_up(table, distances.clamp_(max=len(table) - 1))


def _scaled(x: Tensor, factor: float) -> Tensor:
    """`x` times `factor` rounded to its type, in place."""
    return x.mul_(torch.tensor(factor, dtype=x.dtype))


def _looked_up(table: Tensor, indices: Tensor) -> Tensor:
    return torch.index_select(table, 0, indices.to(torch.int32).flatten()).view_as(indices)
