"""`codelength plan`: the numbers of a plan as tables, or as JSON."""

from dataclasses import asdict

import torch

from eval.show.blocks import Block, render
from harness.config.run import load_config
from harness.errors import UsageError
from harness.machine.hardware import processor_name
from harness.run.preflight import LEDGER_BYTES_PER_TOKEN
from launch.plan.duration import REACHED
from launch.plan.memory import RESERVED_BEYOND_ALLOCATED, Memory
from launch.plan.plan import Plan, Question


def print_plan(path: str, overrides: list[str], question: Question, as_json: bool) -> None:
    """Print the plan of a configuration.

    Raises UsageError where the configuration is wrong or cannot run on these devices.
    """
    plan = Plan(load_config(path, overrides), question)
    print(render(blocks(plan), record(plan), "json" if as_json else "rich"), end="")
    if refusal := plan.refusal():
        raise UsageError(refusal)


def record(plan: Plan) -> dict:
    """Collect all numbers of a plan for programs; sizes in bytes."""
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
            name: {"configured": is_own} | {"training": _memory_record(training), "peak": _memory_record(peak)}
            for name, is_own, training, peak in plan.memory_rows()
        },
        "total_flops": plan.total_flops,
        "muon_flops_per_update": parameters.muon_flops,
        "rates": [asdict(rate) for rate in plan.rates],
        "implied_mfu": plan.implied_mfu() if plan.question.gpu_hours else None,
        "disk_bytes": plan.disk_bytes(),
        "refusal": plan.refusal() or None,
    }


def _memory_record(memory: Memory) -> dict:
    sums = {"allocated": memory.allocated, "reserved": memory.reserved, "total": memory.total}
    return asdict(memory) | sums


def blocks(plan: Plan) -> list[Block]:
    """Show all numbers of a plan as tables."""
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
    )


def _memory_block(plan: Plan) -> Block:
    rows, is_configured = [], []
    limit, on_host = plan.device.memory_bytes, 0.0
    for name, is_own, m, peak in plan.memory_rows():
        parts = (m.weights, m.gradients, m.optimizer, m.buffers, m.activations, m.allocated, m.reserved, m.fixed)
        rows.append([name, *map(_gb, (*parts, peak.total)), f"{peak.total / limit:.0%}", peak.moment])
        is_configured.append(is_own)
        on_host = peak.on_host if is_own else on_host
    backend = plan.config.backend
    settings = [f"backend.{key}=true" for key in ("bf16_weights", "offload_optimizer") if getattr(backend, key)]
    notes = [
        f"{plan.arithmetic} products. Parts: a training step when it holds most; peak: of the whole run, with fixed."
    ]
    notes += [f"{' '.join(settings)} at stages 1 to 3."] if settings else []
    notes += [f"Each rank also takes {_gb(on_host)} GB of the host."] if on_host else []
    if plan.device.is_gpu:
        notes.append(
            f"Reserved: {1 + RESERVED_BEYOND_ALLOCATED:g} x allocated, what PyTorch holds, and fixed: CUDA context and "
            "libraries; both assumed."
        )
    else:
        notes.append("Fixed: Python, measured.")
    header = ["backend", "weights", "gradients", "optimizer state", "buffers", "activations", "allocated", "reserved"]
    return Block(
        title=f"Memory of a rank, GB (10^9 bytes), of {_gb(limit)}",
        header=[*header, "fixed", "peak", "of memory", "peak at"],
        is_number=[False, *[True] * 10, False],
        rows=rows,
        emphasised_rows=is_configured,
        notes=notes,
    )


def _time_block(plan: Plan) -> Block:
    rates, is_gpu = plan.rates, plan.device.is_gpu
    notes = _gpu_notes(plan) if is_gpu else [_cpu_note(plan)]
    if plan.config.train.activation_checkpointing:
        notes.append("Hours include the third that activation checkpointing computes again.")
    if plan.question.gpu_hours:
        implied = ", ".join(f"{mfu:.2%} of the peak in {name}" for name, mfu in plan.implied_mfu().items())
        notes.append(f"{plan.question.gpu_hours:g} GPU-hours would be {implied}.")
    header = ["hours", "GPU-hours" if is_gpu else "process-hours", "seconds/step", "tokens/s"]
    rows = [
        [f"{r.hours:.3g}", f"{r.gpu_hours:.3g}", f"{r.step_seconds:.3g}", _whole(r.tokens_per_second)] for r in rates
    ]
    if is_gpu:
        header = ["peak TFLOP/s", "MFU", *header]
        rows = [
            [f"{(r.peak_flops or 0.0) / 1e12:.3g}", f"{r.mfu:.3g}", *row] for r, row in zip(rates, rows, strict=True)
        ]
    return Block(
        title=f"Time of {plan.total_flops:.3g} FLOPs, {plan.parameters.flops_per_token:.3g} a token",
        header=["products", *header, "bound by"],
        is_number=[False, *[True] * len(header), False],
        rows=[[r.arithmetic, *row, r.bound_by] for r, row in zip(rates, rows, strict=True)],
        emphasised_rows=[r.arithmetic == plan.arithmetic and r.mfu in (None, plan.mfu) for r in rates],
        notes=notes,
    )


def _gpu_notes(plan: Plan) -> list[str]:
    """What the hours on GPUs assume."""
    device, seconds = plan.device, plan.bounds
    assert device.memory_bytes_per_second and device.link_bytes_per_second
    notes = ["fp32 counts the peak without tensor cores: PyTorch leaves TF32 off."]
    if device.bf16_flops is None:
        notes.append(f"{device.name}: no bf16; tensor cores of fp16, which nothing here uses.")
    notes.append(
        f"A step takes its operations at the MFU, or at least {seconds['update']:.3g} s to update the weights at "
        f"{REACHED * device.memory_bytes_per_second / 1e9:,.0f} GB/s of memory"
        + (
            f" and {seconds['exchange']:.3g} s for what ranks exchange at "
            f"{REACHED * device.link_bytes_per_second / 1e9:,.0f} GB/s ({device.link}; network assumed as fast)."
            if plan.question.gpus > 1
            else "."
        )
    )
    notes.append(f"These rates are {REACHED:.0%} of the data sheet's, assumed.")
    return notes


def _cpu_note(plan: Plan) -> str:
    """What the hours on a CPU rest on."""
    threads = f"{torch.get_num_threads()} thread(s)" if plan.question.gpus == 1 else f"{plan.question.gpus} processes"
    return (
        f"Measured now on {processor_name()} with {threads}: steps of this model, or of less of it where they are long."
    )


def _disk_block(plan: Plan) -> Block:
    sizes = plan.disk_bytes()
    kept = plan.config.train.keep_checkpoints
    return Block(
        title="On disk",
        header=["what", "GB"],
        is_number=[False, True],
        rows=[[name, _gb(size)] for name, size in sizes.items()],
        notes=[
            f"ledger: about {LEDGER_BYTES_PER_TOKEN} bytes a token of the first epoch, as measured.",
            f"checkpoint: weights and state of all ranks; checkpoints: {kept} kept and one being written.",
        ],
    )


def _whole(number: float) -> str:
    return f"{number:,.0f}"


def _gb(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:,.3f}" if num_bytes < 1e9 else f"{num_bytes / 1e9:,.2f}"
