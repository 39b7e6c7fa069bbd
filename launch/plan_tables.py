"""`codelength plan`: the numbers of a plan as tables, or as JSON."""

import json
from dataclasses import asdict

from eval.markup import Block, to_rich
from harness.config import load_config
from harness.errors import UsageError
from harness.summary import LEDGER_BYTES_PER_TOKEN
from launch.plan import Plan, Question


def print_plan(path: str, overrides: list[str], question: Question, as_json: bool) -> None:
    """Print the plan of a configuration.

    Raises UsageError where the configuration is wrong or cannot run on these devices.
    """
    plan = Plan(load_config(path, overrides), question)
    print(json.dumps(record(plan), indent=2) if as_json else to_rich(blocks(plan), None).rstrip())
    if refusal := plan.refusal():
        raise UsageError(refusal)


def record(plan: Plan) -> dict:
    """All numbers, for programs; sizes in bytes."""
    parameters = plan.parameters
    return {
        "run": plan.config.name,
        "gpus": plan.question.gpus,
        "gpu": plan.device.name,
        "gpu_memory_bytes": plan.device.memory_bytes,
        "arithmetic": plan.arithmetic,
        "parameters": asdict(parameters) | {"total": parameters.total},
        "corpus": asdict(plan.corpus),
        "micro_batch_sequences": plan.micro_batch,
        "tokens_per_step": plan.step_tokens,
        "steps": plan.phase_steps,
        "tokens": plan.phase_tokens,
        "memory": {
            name: {"configured": is_own}
            | {key: asdict(m) | {"total": m.total} for key, m in (("training", training), ("peak", peak))}
            for name, is_own, training, peak in plan.memory_rows()
        },
        "total_flops": plan.total_flops,
        "rates": [asdict(rate) for rate in plan.rates()],
        "implied_mfu": plan.implied_mfu() if plan.question.gpu_hours else None,
        "disk_bytes": plan.disk_bytes(),
        "refusal": plan.refusal() or None,
    }


def blocks(plan: Plan) -> list[Block]:
    """All numbers, for people."""
    return [_run_block(plan), _memory_block(plan), _time_block(plan), _disk_block(plan)]


def _run_block(plan: Plan) -> Block:
    p, gpus, context = plan.parameters, plan.question.gpus, plan.config.model.context
    phases = ", ".join(f"{name} {n:,} ({plan.phase_tokens[name]:,} tokens)" for name, n in plan.phase_steps.items())
    rounds = plan.config.prune.prunings
    phases += f" in {rounds} stretches, each after a pruning" if rounds > 1 else ""
    rows = [
        ["parameters", f"{p.total:,}: embedding {p.embedding:,}, blocks {p.blocks:,}, head {p.head:,}"],
        ["trained by Muon", f"{p.muon:,}"],
        ["corpus", f"{plan.corpus.raw_bytes:,} bytes = {plan.corpus.tokens:,} tokens ({plan.corpus.source})"],
        ["micro-batch", f"{plan.micro_batch} sequences = {plan.micro_batch * context:,} tokens"],
        ["step", f"{plan.step_tokens:,} tokens, {plan.step_tokens // gpus:,} on each of {gpus} ranks"],
        ["steps", phases],
    ]
    return Block(
        title=f"Plan of {plan.config.name} on {gpus} x {plan.device.name}",
        header=["what", "value"],
        is_number=[False, False],
        rows=rows,
        emphasised_rows=[False] * len(rows),
        notes=[],
    )


def _memory_block(plan: Plan) -> Block:
    rows, own = [], []
    limit, on_host = plan.device.memory_bytes, 0.0
    for name, is_own, m, peak in plan.memory_rows():
        parts = (m.weights, m.gradients, m.optimizer, m.buffers, m.activations, m.fixed, m.total, peak.total)
        rows.append([name, *map(_gb, parts), f"{peak.total / limit:.0%}", peak.moment])
        own.append(is_own)
        on_host = peak.on_host if is_own else on_host
    backend = plan.config.backend
    settings = [f"backend.{key}=true" for key in ("bf16_weights", "offload_optimizer") if getattr(backend, key)]
    notes = [f"{plan.arithmetic} products. Parts and sum: a training step when it holds most; peak: of the whole run."]
    notes += [f"{' '.join(settings)} at stages 1 to 3."] if settings else []
    notes += [f"Each rank also takes {_gb(on_host)} GB of the host."] if on_host else []
    notes += ["Fixed: CUDA context and libraries, assumed."] if plan.device.is_gpu else ["Fixed: Python, measured."]
    header = ["backend", "weights", "gradients", "optimizer state", "buffers", "activations", "fixed"]
    return Block(
        title=f"Memory of a rank, GB (10^9 bytes), of {_gb(limit)}",
        header=[*header, "sum", "peak", "of memory", "peak at"],
        is_number=[False, *[True] * 9, False],
        rows=rows,
        emphasised_rows=own,
        notes=notes,
    )


def _time_block(plan: Plan) -> Block:
    rates = list(plan.rates())
    notes = ["fp32 counts the peak without tensor cores: PyTorch leaves TF32 off."] if plan.device.is_gpu else []
    if plan.config.train.activation_checkpointing:
        notes.append("Hours include the third that activation checkpointing computes again.")
    if plan.question.gpu_hours:
        implied = ", ".join(f"{mfu:.2%} of the peak in {name}" for name, mfu in plan.implied_mfu().items())
        notes.append(f"{plan.question.gpu_hours:g} GPU-hours would be {implied}.")
    return Block(
        title=f"Time of {plan.total_flops:.3g} FLOPs, {plan.parameters.flops_per_token:.3g} a token",
        header=["products", "peak TFLOP/s", "MFU", "hours", "GPU-hours", "seconds/step"],
        is_number=[False, *[True] * 5],
        rows=[
            [r.arithmetic, *(f"{x:.3g}" for x in (r.peak_flops / 1e12, r.mfu, r.hours, r.gpu_hours, r.step_seconds))]
            for r in rates
        ],
        emphasised_rows=[r.arithmetic == plan.arithmetic and r.mfu == plan.question.mfu for r in rates],
        notes=notes,
    )


def _disk_block(plan: Plan) -> Block:
    sizes = plan.disk_bytes()
    kept = plan.config.train.keep_checkpoints
    return Block(
        title="On disk",
        header=["what", "GB"],
        is_number=[False, True],
        rows=[[name, _gb(size)] for name, size in sizes.items()],
        emphasised_rows=[False] * len(sizes),
        notes=[
            f"ledger: about {LEDGER_BYTES_PER_TOKEN} bytes a token of the first epoch, as measured.",
            f"checkpoint: weights and state of all ranks; checkpoints: {kept} kept and one being written.",
        ],
    )


def _gb(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:,.3f}" if num_bytes < 1e9 else f"{num_bytes / 1e9:,.2f}"
