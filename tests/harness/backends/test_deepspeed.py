"""DeepSpeed's ZeRO gives the bits of one process; rules, masks and grids work at every stage."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file

from harness.config.run import load_config
from harness.errors import UsageError
from harness.machine.hardware import isa_limits
from harness.train import train_run
from tests.support.commands import ROOT
from tests.support.ranks import assert_same_run, finish_all, rows, write_config


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    path = write_config(tmp_path_factory.mktemp("zero"), subset_bytes=1540, epochs=1)
    content = yaml.safe_load(path.read_text())
    # Rounds of pruning are those of tests/harness/pruning/test_prune_phase.py.
    content["prune"] |= {"rounds": 1, "sample_sequences": 4}
    # Groups of weights with learning rates of their own.
    content["model"]["smear"] = 3
    content["optimizer"] |= {"embedding_factor": 3, "head_factor": 2, "vectors_factor": 4}
    path.write_text(yaml.safe_dump(content))
    return path


def train(config: Path, name: str, *overrides: str) -> Path:
    """On one rank, in this process."""
    train_run(load_config(config, [f"name={name}", *overrides]))
    return config.parent / "runs" / name


def zero(stage: int) -> tuple[str, str]:
    return "backend.name=deepspeed", f"backend.zero_stage={stage}"


def rule(kind: str) -> tuple[str, ...]:
    """Published coupling, warm-up and ramp; DRR with a strength for each layer."""
    per_layer = (f"rule.layer_normalisation={str(kind == 'drr').lower()}",)
    return f"rule.kind={kind}", "rule.coupling=adam", "rule.alpha=1e-4", "rule.warmup=0.2", "rule.ramp=0.3", *per_layer


ACCUMULATED = (
    "train.micro_batch_sequences=1",
    "backend.offload_optimizer=true",
    "train.activation_checkpointing=true",
)
MUON = ("optimizer.kind=muon", "rule.alpha=0.3", "train.finetune_epochs=0.5")
# Rules, each at a stage.
RULES = {"drr": 2, "fpp": 3}
BF16 = ("backend.bf16_weights=true", "train.precision=bf16")
LAYERS = ("prune.kind=layerwise", "prune.steps=30", "prune.alpha=0.01", "train.epochs=1", "train.finetune_epochs=0.4")
JOBS = (
    {"ddp": (), "ddp-four": ("train.micro_batch_sequences=1",)}
    | {f"zero-{stage}": zero(stage) for stage in range(4)}
    | {f"accumulated-{stage}": (*zero(stage), *ACCUMULATED) for stage in (1, 3)}
    | {f"muon-{stage}": (*zero(stage), *MUON) for stage in (1, 2, 3)}
    | {"muon-offload-3": (*zero(3), *MUON, "backend.offload_optimizer=true")}
    | {f"bf16-{stage}": (*zero(stage), *BF16) for stage in (1, 3)}
    | {"bf16-ddp": ("train.precision=bf16",), "clipped": (*zero(2), "optimizer.clip_norm=0.1")}
    | {"layers-ddp": LAYERS, "layers-2": (*zero(2), *LAYERS)}
    | {"clipped-ddp": ("optimizer.clip_norm=0.1",)}
    | {f"{kind}-ddp": rule(kind) for kind in RULES}
    | {f"{kind}-{stage}": (*zero(stage), *rule(kind)) for kind, stage in RULES.items()}
)


@pytest.fixture(scope="module")
def runs(config, alone) -> Path:
    """All jobs, on two ranks."""
    finish_all(2, config, JOBS)
    return config.parent / "runs"


@pytest.fixture(scope="module")
def alone(config) -> Path:
    return train(config, "alone", "train.micro_batch_sequences=2")


@pytest.mark.parametrize("name", ["ddp", "zero-0", "zero-1", "zero-2", "zero-3"])
def test_every_stage_gives_the_bits_of_one_process(runs, alone, name):
    assert_same_run(runs / name, alone)


def assert_close_run(run_dir: Path, other: Path, tolerance: float) -> None:
    ours, theirs = (load_file(r / "weights.safetensors") for r in (run_dir, other))
    for name, weights in theirs.items():
        torch.testing.assert_close(ours[name], weights, rtol=0, atol=tolerance)
    columns = ["step", "sequence", "epoch", "num_tokens"]
    assert rows(run_dir).select(columns).equals(rows(other).select(columns))
    sums = [rows(r)["nats_sum"].to_numpy() for r in (run_dir, other)]
    np.testing.assert_allclose(*sums, rtol=tolerance)


@pytest.mark.parametrize("stage", [1, 3])
def test_offload_and_recomputed_activations_change_nothing_when_gradients_accumulate(runs, stage):
    found = runs / f"accumulated-{stage}"
    if stage == 1:
        assert_same_run(found, runs / "ddp-four")
    # Stages 2 and 3 add up over ranks before they add up over micro-batches.
    assert_close_run(found, runs / "ddp-four", 1e-6)


@pytest.mark.parametrize("name", ["muon-2", "muon-3", "muon-offload-3"])
def test_muon_and_a_decoupled_rule_give_the_same_bits_at_every_stage(runs, name):
    assert_same_run(runs / name, runs / "muon-1")


def test_muon_learns_and_its_rule_makes_zeros(runs):
    nats = rows(runs / "muon-1")["nats_sum"].to_numpy()
    assert nats[-10:].mean() < 0.95 * nats[:10].mean()
    weights = load_file(runs / "muon-1" / "weights.safetensors")
    assert all(int(w.count_nonzero()) < w.numel() for name, w in weights.items() if "blocks" in name)


@pytest.mark.parametrize("kind", RULES)
def test_what_rules_keep_is_shared_out_without_changing_a_bit(runs, kind):
    assert_same_run(runs / f"{kind}-{RULES[kind]}", runs / f"{kind}-ddp")


@pytest.mark.parametrize("stage", [1, 3])
def test_bf16_weights_are_consolidated_from_their_float32_masters(runs, stage):
    weights = load_file(runs / f"bf16-{stage}" / "weights.safetensors")["embed.weight"]
    assert weights.dtype == torch.float32 and not torch.equal(weights, weights.bfloat16().float())
    ours, theirs = (rows(runs / name)["nats_sum"].to_numpy().sum() for name in (f"bf16-{stage}", "bf16-ddp"))
    assert ours == pytest.approx(theirs, rel=0.01)


def test_ranks_prune_layers_alike_whoever_holds_the_weights(runs):
    """Ranks that pruned differently would hold different replicas under DDP, and a mixture of them under ZeRO."""
    assert_same_run(runs / "layers-2", runs / "layers-ddp")


def test_clipping_is_the_same(runs):
    assert_close_run(runs / "clipped", runs / "clipped-ddp", 1e-6)
    assert not rows(runs / "clipped").equals(rows(runs / "zero-2"))


@pytest.mark.parametrize("name", ["zero-1", "zero-3", "muon-3", "bf16-3"])
def test_zeros_stay_zero_and_weights_stay_on_their_grid(runs, name):
    with safe_open(runs / name / "weights.safetensors", "pt") as file:
        steps = json.loads(file.metadata()["grid_steps"])
        for key, step in steps.items():
            multiples = file.get_tensor(key) / step
            torch.testing.assert_close(multiples, multiples.round(), rtol=0, atol=1e-3)
    lines = [json.loads(line) for line in (runs / name / "metrics.jsonl").read_text().splitlines()]
    tuned = [line["nonzeros"] for line in lines if line["phase"] == "finetune"]
    assert max(tuned) < [line["nonzeros"] for line in lines if line["phase"] == "main"][-1]


ONE_AFTER_ANOTHER = """
import os
import torch.distributed as dist
from harness.train import main
for job in jobs:
    assert main(job) == 0
    # Whoever trains from Python goes on to other work.
    assert not dist.is_initialized() and "LOCAL_RANK" not in os.environ
os._exit(0)
"""


def test_one_process_needs_no_launcher_and_no_compiler(config, alone):
    plain, whole = (
        [str(config), f"name=plain-{stage}", "train.micro_batch_sequences=2", *zero(stage)] for stage in (2, 3)
    )
    muon = [str(config), "name=plain-muon", *zero(1), *MUON]
    command = [sys.executable, "-c", f"jobs = [{plain}, {whole}, {muon}]\n{ONE_AFTER_ANOTHER}"]
    # Nothing but Python can be found: no compiler, no ninja.
    environment = {"PATH": "/nonexistent", "OMP_NUM_THREADS": "1", "HOME": str(config.parent)} | isa_limits()
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "compil" not in done.stdout + done.stderr and not (config.parent / ".cache" / "torch_extensions").exists()
    for stage in (2, 3):
        assert_same_run(config.parent / "runs" / f"plain-{stage}", alone)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("backend.zero_stage=2",), "backend.zero_stage=2: needs backend.name=deepspeed"),
        ((*zero(4),), "backend.zero_stage=4: must be 0, 1, 2 or 3"),
        (("backend.name=fsdp",), "backend.name=fsdp: unknown; use one of ddp, deepspeed"),
        (("backend.offload_optimizer=true",), "backend.offload_optimizer=true: needs backend.name=deepspeed and a"),
        ((*zero(0), "backend.bf16_weights=true"), "backend.bf16_weights=true: needs"),
        ((*zero(1), "backend.bf16_weights=true"), "backend.bf16_weights=true: contradicts train.precision=fp32"),
        ((*zero(2), "optimizer.kind=muon", "optimizer.clip_norm=1"), "would clip the orthogonalised update"),
        ((*zero(2), "optimizer.kind=muon", "rule.coupling=adam"), "Muon orthogonalises whole matrices"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_made(config, settings, message):
    with pytest.raises(UsageError) as caught:
        load_config(config, settings)
    assert message in str(caught.value)
