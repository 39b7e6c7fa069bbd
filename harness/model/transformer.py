"""The decoder-only transformer that trains; `eval.predict.float_model` steps it one token a lane.

Two architectures share one skeleton. `modern` has rotary positions (Su et al. 2021), RMS norm without gains, normalised
queries and keys, squared ReLU (So et al. 2021) and zero-initialised output projections. `published` is the reference of
the sparsity literature: sinusoidal positions, LayerNorm, GELU and biases, as in GPT-2.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from harness.bounds import bound_problems, bounded
from harness.model.attention import causal_attention
from harness.model.functions import rms_norm, rotated, squared_relu

TRANSFORMERS = ("modern", "published")
CLASSIFIERS = ("softmax", "mlp", "lenet5", "vgg8", "resnet18")
ARCHITECTURES = (*TRANSFORMERS, *CLASSIFIERS)


@dataclass(kw_only=True, slots=True)
class ModelConfig:
    """Shape of the model: a transformer, or a classifier for labels given inputs."""

    architecture: str = bounded("modern", choices=ARCHITECTURES)
    """`modern` or `published`: transformers; `softmax`, `mlp`, `lenet5`, `vgg8` or `resnet18`: classifiers."""
    width: int = bounded(128, least=1)
    """Width of the residual stream, a multiple of `heads`."""
    layers: int = bounded(4, least=1)
    """Number of blocks."""
    heads: int = bounded(2, least=1)
    """Attention heads per block."""
    smear: int = bounded(0, least=0, most=8)
    """How many symbols before each add their embeddings to its own, each times a number a channel that is learnt."""
    context: int = bounded(512, least=1)
    """Longest sequence in tokens; a training sequence has exactly this length. Labels: 1."""
    overlap: int = bounded(0, least=0, most=1 << 16)
    """Tokens before a sequence that it is given, where they were read at an earlier step: see `train.order`."""
    inputs: str = "1x28x28"
    """Classifiers: shape of an input, as CHANNELSxROWSxCOLUMNS."""
    hidden: str = "300x100"
    """mlp: units of its hidden layers, the one behind the inputs first."""
    subspace: int = bounded(0, least=0, most=1 << 24)
    """Classifiers: train so many coordinates of a random affine subspace of the weights; 0 trains all weights."""

    @property
    def places(self) -> int:
        """Tokens of the longest row: a sequence, and what it is given."""
        return self.context + self.overlap

    @property
    def is_classifier(self) -> bool:
        """Whether the model predicts labels from inputs."""
        return self.architecture in CLASSIFIERS

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Channels, rows and columns of an input of a classifier."""
        channels, rows, columns = (int(size) for size in self.inputs.split("x"))
        return channels, rows, columns

    @property
    def all_weights(self) -> "ModelConfig":
        """The same model without a subspace."""
        return replace(self, subspace=0)

    @property
    def hidden_units(self) -> list[int]:
        """Units of the hidden layers of an mlp."""
        return [int(size) for size in self.hidden.split("x")]

    def problems(self) -> list[str]:
        """Every bad value, a line each."""
        problems = bound_problems(self, "model.")
        if self.is_classifier:
            # Texts need none of it.
            from harness.model.classifiers import classifier_problems

            return problems + classifier_problems(self)
        if min(self.width, self.heads) >= 1 and self.width % (2 * self.heads):
            problems.append(f"model.width={self.width}: must be a multiple of 2 * model.heads ({2 * self.heads})")
        return problems


def make_model(config: ModelConfig, vocab_size: int, seed: int) -> "Transformer":
    """Make the model of a configuration with the weights of torch's present seed; `seed` is that of a subspace.

    A classifier, which has the attributes of a transformer but its blocks, is called with inputs in place of tokens.
    """
    if not config.is_classifier:
        model = Transformer(config, vocab_size)
        if not config.subspace:
            return model
        from harness.model.subspace import Subspace

        return cast("Transformer", Subspace(model, config.subspace, seed))
    from harness.model.classifiers import make_classifier

    return cast("Transformer", make_classifier(config, vocab_size, seed))


class Transformer(nn.Module):
    """Next-token model over `vocab_size` symbols; the input symbol `vocab_size` means "begin"."""

    if TYPE_CHECKING:
        positions: Tensor
        cos: Tensor
        sin: Tensor

    def __init__(self, config: ModelConfig, vocab_size: int):
        super().__init__()
        self.config, self.vocab_size, self.begin = config, vocab_size, vocab_size
        self.checkpoint_activations = False
        """Whether a backward pass computes the inside of each block again instead of keeping it."""
        published = config.architecture == "published"
        weight = torch.empty(vocab_size + 1, config.width)
        _fill_normal(weight, 1.0)
        self.embed = nn.Embedding(vocab_size + 1, config.width, _weight=weight)
        self.smear = Smear(config.smear, config.width) if config.smear else nn.Identity()
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width) if published else RMSNorm()
        self.head = nn.Linear(config.width, vocab_size, bias=False)
        if published:
            self.register_buffer("positions", sinusoidal_positions(config.places, config.width), persistent=False)
            self.apply(_initialise_published)
        else:
            cos, sin = rotary_tables(config.places, config.width // config.heads)
            self.register_buffer("cos", cos, persistent=False)
            self.register_buffer("sin", sin, persistent=False)
            _fill_normal(self.embed.weight, 0.1)
            nn.init.zeros_(self.head.weight)

    @property
    def num_parameters(self) -> int:
        """Number of trained scalars."""
        return sum(p.numel() for p in self.parameters())

    def flops_per_token(self) -> float:
        """Floating-point operations of one forward and backward pass, per token of a sequence (PaLM, appendix B)."""
        matrices, places = self.num_parameters - self.embed.weight.numel(), self.config.places
        per_place = 6 * matrices + 12 * self.config.layers * self.config.width * places / 2
        return per_place * places / self.config.context

    def forward(self, targets: Tensor) -> Tensor:
        """Logits (batch, length, vocab_size) of each of `targets` (batch, length) given those before it."""
        begin = torch.full_like(targets[:, :1], self.begin)
        x = self.embed(torch.cat([begin, targets[:, :-1]], dim=1))
        x = self.smear(x)
        if self._published:
            x = x + self.positions[: x.shape[1]]
        rotary = None if self._published else (self.cos[: x.shape[1]], self.sin[: x.shape[1]])
        for block in self.blocks:
            recompute = self.checkpoint_activations and torch.is_grad_enabled()
            # There is no dropout: no random state has to be kept for the second pass.
            x = (
                checkpoint(block, x, rotary, use_reentrant=False, preserve_rng_state=False)
                if recompute
                else block(x, rotary)
            )
        return self.head(self.norm(x))

    @property
    def _published(self) -> bool:
        return self.config.architecture == "published"


class Block(nn.Module):
    """Attention and a two-layer perceptron, each behind a norm and added to the residual stream."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        width, self.heads = config.width, config.heads
        self.published = config.architecture == "published"
        bias = self.published
        self.attention_norm = nn.LayerNorm(width) if self.published else RMSNorm()
        self.qkv = nn.Linear(width, 3 * width, bias=bias)
        self.out = nn.Linear(width, width, bias=bias)
        self.mlp_norm = nn.LayerNorm(width) if self.published else RMSNorm()
        self.up = nn.Linear(width, 4 * width, bias=bias)
        self.down = nn.Linear(4 * width, width, bias=bias)
        if not self.published:
            nn.init.zeros_(self.out.weight)
            nn.init.zeros_(self.down.weight)

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor] | None) -> Tensor:
        """Whole sequences: `x` has shape (batch, length, width)."""
        batch, length, _ = x.shape
        q, k, v = self._heads(self.qkv(self.attention_norm(x)).view(batch, length, 3, self.heads, -1), rotary)
        x = x + self.out(causal_attention(q, k, v))
        return x + self.down(self._activate(self.up(self.mlp_norm(x))))

    def _heads(self, qkv: Tensor, rotary: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor, Tensor]:
        """Split (batch, length, 3, heads, head width) into queries, keys and values."""
        if rotary is None:
            q, k, v = qkv.unbind(2)
            return q, k, v
        query_key, value = qkv[:, :, :2], qkv[:, :, 2]
        q, k = rotate(rms_norm(query_key), *rotary).unbind(2)
        return q, k, value

    def _activate(self, x: Tensor) -> Tensor:
        return F.gelu(x) if self.published else squared_relu(x)


class Smear(nn.Module):
    """To each position of a sequence multiples of those before are added, channel by channel; at first none."""

    def __init__(self, distance: int, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(distance * width))

    def forward(self, x: Tensor) -> Tensor:
        """Of `x` (batch, length, width)."""
        y = x
        for distance, factors in enumerate(self.weight.view(-1, x.shape[-1]), start=1):
            y = y + factors * F.pad(x, (0, 0, distance, 0))[:, : x.shape[1]]
        return y


class RMSNorm(nn.Module):
    """`rms_norm` as a module."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension."""
        return rms_norm(x)


def token_nats(module: nn.Module, tokens: Tensor, dtype: torch.dtype, inputs: Tensor | None = None) -> Tensor:
    """Code length in nats (float32) of each of `tokens` (n, length) given those before it in its row.

    Labels (n, 1) are given `inputs` (n, channels, rows, columns).
    """
    with torch.autocast(tokens.device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        logits = module(tokens if inputs is None else inputs)
    return F.cross_entropy(logits.float().flatten(0, 1), tokens.flatten(), reduction="none").view_as(tokens)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions on `x` (batch, length, parts, heads, head width); `cos`, `sin` (length, half)."""
    cos, sin = (table.to(x.dtype)[:, None, None] for table in (cos, sin))
    return rotated(x, cos, sin)


def rotary_tables(length: int, head_width: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines (length, head_width / 2) of the rotary angles."""
    angle = _angles(length, head_width)
    return angle.cos().float(), angle.sin().float()


def sinusoidal_positions(length: int, width: int) -> Tensor:
    """Position vectors (length, width) of Vaswani et al. 2017, section 3.5."""
    angle = _angles(length, width)
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)[:, :width].float()


def _angles(length: int, width: int) -> Tensor:
    # Always of the CPU, also where a model is made on the meta device: there, arithmetic imports PyTorch's compiler,
    # which takes more than a second.
    frequency = 10000.0 ** (-torch.arange(0, width, 2, dtype=torch.float64, device="cpu") / width)
    return torch.arange(length, dtype=torch.float64, device="cpu")[:, None] * frequency


def _fill_normal(weight: Tensor, deviation: float) -> None:
    # As above: on the meta device there is nothing to fill.
    if not weight.is_meta:
        nn.init.normal_(weight, 0.0, deviation)


def _initialise_published(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        _fill_normal(module.weight, 0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
