"""Memory of one rank at the crowded moments of a run, in bytes, from what model, optimizer and backend keep.

tests/benchmarks/memory_model.py compares it with measured runs. On a GPU the tensors are the same as on a CPU; what
differs is the fixed part, and what the allocator reserves beyond them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from harness.backends.deepspeed import bucket_elements
from harness.config.run import RunConfig
from harness.model.transformer import ModelConfig, Transformer
from harness.optim.muon import ITERATIONS
from harness.optim.optimizer import mark_parameters, parameter_groups
from harness.pruning.random_gradient import POSITIONS_PER_PASS
from harness.run.preflight import kept_weights

FLOAT, HALF = 4, 2
# What PyTorch's allocator keeps of a GPU beyond the tensors: segments of 2 MB and more with free blocks in them.
RESERVED_BEYOND_ALLOCATED = 0.1


@dataclass(frozen=True, slots=True)
class Parameters:
    """Numbers of a model's parameters, by what is done to them."""

    embedding: int
    blocks: int
    head: int
    """Of the last norm and the output layer."""
    muon: int
    """Trained by Muon, part of `blocks`."""
    regularised: int
    """Touched by rules, masks and grids."""
    largest: int
    """Of the largest tensor."""
    flops_per_token: float
    """Floating-point operations of a forward and backward pass."""
    muon_flops: float
    """Floating-point operations with which Muon makes the matrices of a step orthogonal."""

    @property
    def total(self) -> int:
        """All parameters."""
        return self.embedding + self.blocks + self.head


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of one rank at one moment."""

    moment: str
    weights: float
    """Those that the forward pass reads."""
    gradients: float
    optimizer: float
    """State of the optimizer, with float32 weights of its own under ZeRO, what a rule keeps, mask and grid."""
    buffers: float
    """Copies that collectives and gathered weights need."""
    activations: float
    """Kept for the backward pass, with its working tensors."""
    fixed: float
    """Of process and driver."""
    on_host: float
    """Beside all this, in the memory of the host: what is offloaded."""
    reserved_beyond: float
    """What the allocator of a GPU keeps beyond the tensors, as a fraction of them."""

    @property
    def allocated(self) -> float:
        """All tensors."""
        return self.weights + self.gradients + self.optimizer + self.buffers + self.activations

    @property
    def reserved(self) -> float:
        """What the allocator holds for them."""
        return self.allocated * (1 + self.reserved_beyond)

    @property
    def total(self) -> float:
        """On the device, with what the process itself takes."""
        return self.reserved + self.fixed


def count_parameters(config: RunConfig, vocab_size: int) -> Parameters:
    """Count the parameters of a model, which is built without memory."""
    with torch.device("meta"):
        module = Transformer(config.model, vocab_size)
    mark_parameters(module, config.rule)
    groups = parameter_groups(module, config.optimizer)

    def count(key: str) -> int:
        return sum(p.numel() for group in groups if group[key] for p in group["params"])

    embedding, blocks = module.embed.weight.numel(), sum(p.numel() for p in module.blocks.parameters())
    head = module.num_parameters - embedding - blocks
    return Parameters(
        embedding=embedding,
        blocks=blocks,
        head=head,
        muon=count("muon"),
        regularised=count("regularised"),
        largest=max(p.numel() for p in module.parameters()),
        flops_per_token=module.flops_per_token(),
        muon_flops=sum(muon_flops(*p.shape) for group in groups if group["muon"] for p in group["params"]),
    )


def muon_flops(rows: int, columns: int) -> float:
    """Compute the FLOPs of Muon's iterations for one matrix in bf16 (`harness.optim.muon`)."""
    small, large = sorted((rows, columns))
    return ITERATIONS * (4 * small * small * large + 2 * small**3)


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """Bytes of a number in each kind of tensor."""

    product: int
    """Operands and results of matrix products."""
    weight: int
    """The module's weights, and with them the residual stream."""
    by_blocks: bool = False
    """Whether attention is `harness.model.attention`'s own, which keeps less than the fused kernel: on a CPU."""

    @property
    def casts(self) -> bool:
        """Whether autocast makes, and keeps, a copy of what enters a product, weights included."""
        return self.product != self.weight

    @property
    def normalised(self) -> int:
        """What `modern` keeps of a normalised residual stream: itself, and its cast."""
        return self.weight + (self.product if self.casts else 0)


def block_bytes(model: ModelConfig, kind: Arithmetic) -> int:
    """Compute what autograd keeps of one block, in bytes per token; fused attention keeps no scores.

    `modern`: both normalised inputs; queries, keys and values; normalised queries and keys and their rotation; mixed
    values; positive part and square of the 4 * width units. `published`: input (float32) and output of both norms;
    queries, keys and values; mixed values; the 4 * width units and their GELU.
    """
    width, heads = model.width, model.heads
    log_sums = 0 if kind.by_blocks else FLOAT * heads
    if model.architecture == "published":
        return (2 * (FLOAT + kind.product) + 12 * kind.product) * width + 4 * FLOAT + log_sums
    products = 14 if kind.by_blocks else 16  # two copies of queries and keys less
    return (2 * kind.normalised + products * kind.product) * width + 2 * FLOAT + 2 * heads * kind.product + log_sums


def ends_bytes(model: ModelConfig, vocab_size: int, kind: Arithmetic) -> int:
    """Compute what autograd keeps of the last norm, the loss and the token ids, in bytes per token."""
    norm = FLOAT + kind.product if model.architecture == "published" else kind.normalised
    return norm * model.width + FLOAT * vocab_size + 24


def activation_bytes(
    config: RunConfig, parameters: Parameters, vocab_size: int, micro_batch: int, kind: Arithmetic
) -> tuple[float, float]:
    """Compute bytes of activations at the start and end of the backward pass; `micro_batch` counts sequences."""
    model, tokens = config.model, micro_batch * config.model.places
    block = block_bytes(model, kind) * tokens
    if model.architecture == "modern" and kind.product != FLOAT:
        # Rotary tables, cast.
        block += kind.product * model.places * model.width // model.heads
    copies = kind.product * parameters.blocks if kind.casts else 0
    # Gradients of the residual stream, and of the 4 * width units while those are still there.
    working = tokens * model.width * (kind.normalised + 4 * kind.product)
    loss = tokens * ends_bytes(model, vocab_size, kind) + (kind.product * parameters.head if kind.casts else 0)
    loss_working = 2 * FLOAT * vocab_size * tokens
    inside = block + copies / model.layers + working
    if config.train.activation_checkpointing:
        # Casts of all weights live until the forward pass ends; then those of one block at a time.
        inputs = model.layers * kind.weight * model.width * tokens
        return inputs + max(copies + loss, loss + loss_working, inside), inside
    return model.layers * block + copies + max(loss + loss_working, working), inside


def moments(
    config: RunConfig, parameters: Parameters, vocab_size: int, ranks: int, is_bf16: bool, fixed: float, on_gpu: bool
) -> Iterator[Memory]:
    """Compute the memory of each moment of a run: dry step, training, update, logging, pruning and fine-tuning.

    `fixed` is in bytes; `on_gpu` decides which working tensors PyTorch and DeepSpeed allocate, and whether offloading
    leaves the device. Raises UsageError where the batch cannot be shared among `ranks`.
    """
    backend, total = config.backend, parameters.total
    stage = backend.zero_stage
    fraction = 1 / ranks if stage else 1.0
    width, full = HALF if backend.bf16_weights else FLOAT, FLOAT * total
    weights = width * total * (fraction if stage == 3 else 1)
    master = full * fraction if stage else 0.0
    state = FLOAT * fraction * (2 * total - parameters.muon)
    regularised = FLOAT * fraction * parameters.regularised
    ruled, extra = regularised * config.rule.tensors_kept, regularised * (3 if config.prune.grid else 1)
    gathered = full if stage else 0.0
    held, working = _held(config, parameters, ranks, on_gpu), _update_bytes(config, parameters, ranks, on_gpu, is_bf16)
    micro_batch = config.train.micro_batch(ranks)
    accumulated = held.backward if config.train.batch_sequences > micro_batch * ranks else held.always
    kind = Arithmetic(HALF if is_bf16 else FLOAT, width, by_blocks=not on_gpu)
    beyond = RESERVED_BEYOND_ALLOCATED if on_gpu else 0.0
    at_start, at_end = activation_bytes(config, parameters, vocab_size, micro_batch, kind)

    def memory(moment: str, gradients: float, optimizer: float, buffers: float, activations: float) -> Memory:
        kept, on_host = master + optimizer, 0.0
        if backend.offload_optimizer and on_gpu:
            kept, on_host = 0.0, kept + full * fraction
        return Memory(moment, weights, gradients, kept, buffers, activations, fixed, on_host, beyond)

    def step(name: str, before: float, after: float, copies: float) -> Iterator[Memory]:
        yield memory(name, accumulated, before, held.start_buffers + copies, at_start)
        yield memory(name, held.backward, before, held.end_buffers + copies, at_end)
        yield memory(f"{name}, update", held.update, after, copies + held.update_buffers + working, 0.0)

    yield from step("dry step", 0.0, state, 0.0)
    yield memory("reset after it", held.always, state, full, 0.0)
    yield from step("training", state + ruled, state + ruled, 0.0)
    yield memory("logging", held.always, state + ruled, FLOAT * parameters.largest if stage else 0.0, 0.0)
    if config.prune.kind != "none":
        for added, copies, activations in _pruning(config, parameters, vocab_size, fraction):
            copies += gathered
            yield memory("pruning", held.always, state + (max(ruled, extra) if added else ruled), copies, activations)
        if config.train.finetune_epochs:
            yield from step("fine-tuning", state + extra, state + extra, 0.0)


def online_memory_bytes(config: RunConfig, parameters: Sequence[Parameters], vocab_size: int, ranks: int) -> int:
    """Compute the bytes that an online code takes on a rank besides training the run's own model (`parameters[0]`).

    The other models with gradients and moments; running means and the states of a self-switch; a replica of each model
    that predicts; and the tables of a step: two of candidates, one of each other model, and the mixture's.
    """
    is_plain = config.online.trains_plainly and not config.train.retrain_at
    if is_plain:
        return 0
    totals = [each.total for each in parameters]
    weights = sum(4 * each.total - each.muon for each in parameters[1:]) + kept_weights(config, totals) + sum(totals)
    rows = config.train.batch_sequences // ranks
    tables = (3 + 2 * len(parameters)) * rows * config.model.places * vocab_size
    return FLOAT * (weights + tables)


def _pruning(
    config: RunConfig, parameters: Parameters, vocab_size: int, fraction: float
) -> Iterator[tuple[bool, float, float]]:
    """Moments of a pruning: whether masks and grids are there, bytes of whole tensors on every rank, activations."""
    prune, full, layer = config.prune, FLOAT * parameters.total, 4 * config.model.width**2
    # Second moments and a replica, while partitions hold the former.
    yield False, (2 + fraction) * full, 0.0
    if prune.random_gradient:
        double, rows = Arithmetic(2 * FLOAT, 2 * FLOAT), max(1, POSITIONS_PER_PASS // config.model.context)
        dead = 2 * parameters.regularised + double.weight * parameters.largest
        yield False, 2 * full + dead, max(activation_bytes(config, parameters, vocab_size, rows, double))
    if prune.kind == "layerwise":
        # Moments of the widest inputs (two in float64, one in float32); targets, weights, probabilities and what Adam
        # keeps and computes for both.
        yield False, full + (2 * 2 + 1) * FLOAT * 4 * layer + 14 * FLOAT * layer, 0.0
    else:
        yield False, 2 * full + FLOAT * parameters.largest, 0.0
    # A replica and masks, or steps of the grid and rounded weights.
    yield True, full * (3 if prune.grid else 2), 0.0


@dataclass(frozen=True, slots=True)
class _Held:
    """Bytes of gradients, and of the buffers of collectives."""

    always: float = 0.0
    """Gradients between steps."""
    backward: float = 0.0
    """Gradients at the end of a backward pass."""
    update: float = 0.0
    """Gradients during an update."""
    start_buffers: float = 0.0
    end_buffers: float = 0.0
    """At the start and the end of a backward pass."""
    update_buffers: float = 0.0


def _held(config: RunConfig, parameters: Parameters, ranks: int, on_gpu: bool) -> _Held:
    backend, total = config.backend, parameters.total
    full, partition, stage = FLOAT * total, FLOAT * total / ranks, backend.zero_stage
    elements = bucket_elements(total, parameters.blocks // config.model.layers)
    if backend.name == "ddp":
        # DDP's buckets outlive the step.
        return _Held(full, full, full) if ranks > 1 else _Held(0.0, full, full)
    if stage == 0:
        return _Held(0.0, full, full, update_buffers=FLOAT * elements)
    width = HALF if backend.bf16_weights else FLOAT
    # A GPU has the whole bucket at once; on a CPU its pages count when gradients are written to them.
    bucket = width * elements
    is_host = backend.offload_optimizer and on_gpu
    if stage == 3:
        # Gathered weights and the buffers of gathering stay as far as a bucket goes: twice its size, as measured. The
        # bucket is never freed.
        passing = bucket + (3 if on_gpu else 2) * width * elements
        kept = 0.0 if is_host else partition
        return _Held(kept, kept, 2 * kept, passing, passing, bucket)
    backward = width * total * (1 if stage == 1 else 1 / ranks)
    return _Held(0.0, backward, 0.0 if is_host else 2 * partition, bucket if on_gpu else 0.0, bucket, 0.0)


def _update_bytes(config: RunConfig, parameters: Parameters, ranks: int, on_gpu: bool, is_bf16: bool) -> float:
    """Working tensors of an update: none of AdamW's one kernel; of Muon all momenta and all updates, gathered."""
    stage, muon = config.backend.zero_stage, parameters.muon
    if config.backend.name == "ddp":
        width = HALF if is_bf16 and on_gpu else FLOAT
        # A rank's own updates, flat and filled up, beside those of all.
        return (FLOAT + width + (3 * width / ranks if ranks > 1 else 0)) * muon
    if not muon:
        return 0.0
    fraction = 1 / ranks if stage else 1.0  # DeepSpeed's Muon brings an AdamW of single operations
    together = fraction * (parameters.total - muon if stage or on_gpu else 0)
    return 2 * FLOAT * max(together, fraction * parameters.largest)
