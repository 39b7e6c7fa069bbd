"""The plan of a run: its memory against real runs and autograd, its time, its sizes, and what it refuses."""

import json
from pathlib import Path

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from harness.config.run import load_config
from harness.machine.ranks import Ranks
from harness.model.transformer import ModelConfig, Transformer, token_nats
from harness.run.checkpoint import committed_checkpoints
from launch.main import main
from launch.plan import pace
from launch.plan.memory import FLOAT, HALF, Arithmetic, block_bytes, ends_bytes
from launch.plan.plan import WIKI_MINI_BYTES
from tests.benchmarks.memory_model import FP32, PUBLISHED, SMALL, measured_bytes, predicted_bytes
from tests.support.commands import ROOT

UT308, RL1 = (str(ROOT / f"configs/wiki40b-{name}.yaml") for name in ("ut308", "rl1"))
A100 = ("--gpus", "16", "--gpu", "a100-80g")


@pytest.fixture
def steps_of_a_second(monkeypatch):
    """Steps on this machine are not measured, which takes seconds."""
    monkeypatch.setattr("launch.plan.plan.measured_step_seconds", lambda *_: 1.0)


def answer(capsys, *arguments: str) -> tuple[int, dict, str]:
    """Exit status, the JSON printed, and stderr."""
    status = main(["plan", "--json", *arguments])
    out, err = capsys.readouterr()
    return status, json.loads(out) if out else {}, err


def saved_bytes(architecture: str, layers: int, dtype: torch.dtype) -> int:
    """What autograd keeps between the passes besides parameters and buffers."""
    torch.manual_seed(0)
    model = Transformer(ModelConfig(architecture=architecture, width=64, layers=layers, heads=2, context=32), 50)
    own = {x.untyped_storage().data_ptr() for x in (*model.parameters(), *model.buffers())}
    seen: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        seen[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        nats = token_nats(model, torch.zeros(2, 32, dtype=torch.long), dtype)
    assert nats.requires_grad
    return sum(tensor.untyped_storage().nbytes() for key, tensor in seen.items() if key not in own)


@pytest.mark.parametrize(
    ("setting", "passes"),
    [
        ("train.replays=3", 4),
        (f"train.replays=3 train.replays_until={5_707_324 // 4}", 1.75),
        ("train.epochs=2", 2),
        # What is not the loss of a training step is predicted for itself, a third of a step.
        ("train.retrain_at=[0.25,0.5]", 3 + 1 / 3),
        ("online.experts=[uniform]", 1 + 1 / 3),
        ("online.checkpoints=4", 1 + 4 / 3),
        ("online.models=[128x3x1]", 2 + 2 / 3),
        ("online.ema=0.9", 1 + 1 / 3),
    ],
)
def test_all_work_of_the_online_code_counts(capsys, setting, passes):
    once = ("train.batch_schedule=[]", "train.replays=0", "train.replays_until=0", "online.ema=0")
    arguments = (str(ROOT / "configs/wiki-mini.yaml"), "--gpu", "a100-80g", *once)
    _, plain, _ = answer(capsys, *arguments)
    _, plan, _ = answer(capsys, *arguments, *setting.split())
    assert plan["total_flops"] == pytest.approx(passes * plain["total_flops"], rel=1e-6)


def test_the_tables_of_the_ngram_model_take_memory_and_a_place_in_every_checkpoint(capsys, steps_of_a_second):
    arguments = (str(ROOT / "configs/wiki-mini-online.yaml"), "--gpu", "cpu", "--gpus", "2")
    _, without, _ = answer(capsys, *arguments, "online.experts=[uniform]")
    _, plan, _ = answer(capsys, *arguments)
    # Ten contexts of 2^24 slots of 8 bytes.
    tables = 10 * 8 << 24
    assert plan["memory"]["ddp"]["peak"]["total"] - without["memory"]["ddp"]["peak"]["total"] > tables
    assert plan["disk_bytes"]["checkpoint"] - without["disk_bytes"]["checkpoint"] > 2 * tables


@pytest.mark.parametrize("architecture", ["modern", "published"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_activations_are_those_that_autograd_keeps(architecture, dtype, monkeypatch):
    monkeypatch.setattr("harness.model.attention.has_native_bf16", lambda device: True)
    two, three = (saved_bytes(architecture, layers, dtype) for layers in (2, 3))
    model = ModelConfig(architecture=architecture, width=64, heads=2, context=32)
    is_bf16, tokens = dtype == torch.bfloat16, 2 * 32
    kind = Arithmetic(product=HALF if is_bf16 else FLOAT, weight=FLOAT, by_blocks=True)
    block = tokens * block_bytes(model, kind)
    if is_bf16:
        # The casts of the weights and of the rotary tables.
        block += HALF * (12 * 64 * 64 + (32 * 32 if architecture == "modern" else 0))
    assert three - two == block
    ends = two - 2 * (three - two) - (HALF * 50 * 64 if is_bf16 else 0)
    assert ends == pytest.approx(tokens * ends_bytes(model, 50, kind), rel=0.03)


@pytest.mark.parametrize("settings", [(), (PUBLISHED, "optimizer.kind=adamw")])
def test_memory_of_a_real_run_is_as_predicted(settings):
    settings = (*SMALL, FP32, *settings, "corpus.subset_bytes=4096")
    assert predicted_bytes(1, settings) == pytest.approx(measured_bytes(1, settings), rel=0.15)


def test_the_published_run_in_bf16_takes_a_tenth_of_its_hours(capsys):
    status, plan, _ = answer(capsys, RL1, "train.batch_schedule=[]", *A100, "--gpu-hours", "292")
    assert status == 0 and plan["arithmetic"] == "bf16"
    assert plan["parameters"]["total"] == 308_232_000
    assert plan["steps"] == {"main": 93_994, "finetune": 14_100}
    assert plan["total_flops"] == pytest.approx(1.343e19, rel=1e-3)
    # 292 GPU-hours are two thirds of what fp32 without tensor cores can reach at most.
    assert plan["implied_mfu"] == pytest.approx({"fp32": 0.655, "bf16": 0.0410}, rel=2e-3)
    rates = {(rate["arithmetic"], rate["mfu"]): rate for rate in plan["rates"]}
    assert rates["bf16", 0.4]["gpu_hours"] == pytest.approx(29.9, abs=0.05)
    assert rates["bf16", 0.4]["hours"] == pytest.approx(1.87, abs=0.005)
    assert rates["fp32", 0.5]["gpu_hours"] == pytest.approx(382.7, abs=0.1)


def test_recomputed_activations_cost_time_and_save_memory(capsys):
    _, plain, _ = answer(capsys, UT308, *A100)
    _, recomputing, _ = answer(capsys, UT308, *A100, "train.activation_checkpointing=true")
    assert recomputing["rates"][0]["hours"] == pytest.approx(4 / 3 * plain["rates"][0]["hours"])
    kept = [p["memory"]["ddp"]["training"]["activations"] for p in (recomputing, plain)]
    assert kept[0] < kept[1] / 3


def test_each_stage_shares_out_more(capsys):
    _, plan, _ = answer(capsys, UT308, *A100)
    parts = {name: row["training"] for name, row in plan["memory"].items()}
    full = 4 * 308_232_000
    assert parts["ddp"]["optimizer"] == 2 * full and parts["ZeRO-0"]["optimizer"] == 2 * full
    # From stage 1 on, float32 weights of its own are part of the state.
    assert all(parts[f"ZeRO-{stage}"]["optimizer"] == pytest.approx(3 * full / 16) for stage in (1, 2, 3))
    assert parts["ZeRO-2"]["weights"] == full and parts["ZeRO-3"]["weights"] == pytest.approx(full / 16)
    assert [name for name, row in plan["memory"].items() if row["configured"]] == ["ddp"]


def test_bf16_weights_and_offloading_are_seen(capsys):
    zero = ("backend.name=deepspeed", "backend.zero_stage=2")
    _, plain, _ = answer(capsys, UT308, *A100, *zero)
    _, lean, _ = answer(capsys, UT308, *A100, *zero, "backend.bf16_weights=true", "backend.offload_optimizer=true")
    before, after = (p["memory"]["ZeRO-2"]["training"] for p in (plain, lean))
    assert after["weights"] == before["weights"] / 2
    assert after["optimizer"] == 0 and after["on_host"] > before["optimizer"]


@pytest.mark.parametrize(
    "settings",
    [
        ["--gpus", "2", "--gpu", "a10"],
        ["--gpus", "4", "--gpu", "a10", "model.width=3200", "model.heads=25"],
        ["--gpus", "4", "--gpu", "a100-40g", "model.width=6400", "train.micro_batch_sequences=1"],
    ],
)
def test_what_cannot_fit_is_refused_with_a_setting_that_does(capsys, settings):
    status, plan, err = answer(capsys, UT308, *settings)
    assert status == 2 and len(err.splitlines()) == 1 and plan["refusal"] in err
    words = err.split("it fits with ")[1].split()
    assert answer(capsys, UT308, *settings, *words)[0] == 0
    # The last word alone is not superfluous.
    assert answer(capsys, UT308, *settings, *words[:-1])[0] == 2


def test_what_fits_with_no_setting_is_told_what_does(capsys):
    settings = ["model.width=6400", "model.layers=24"]
    status, _, err = answer(capsys, UT308, *A100, "--gpu", "a100-40g", *settings)
    words = err.split("use ")[1].split()
    assert status == 2 and words[0] in ("--gpu", "--gpus")
    assert answer(capsys, UT308, *A100, "--gpu", "a100-40g", *settings, *words)[0] == 0


@pytest.mark.parametrize(
    ("arguments", "remedy"),
    [
        (["--gpus", "3", "--gpu", "a10"], "must be a multiple of"),
        (["--gpu", "b9"], "known are rtx2080ti"),
        (["--gpu", "v100-16g", "train.precision=bf16"], "use fp32 or auto"),
        (["--gpu", "a10", "corpus.subset_bytes=null"], "give --train-bytes N"),
        (["--gpu", "a10", "backend.device=cpu"], "leave one of them out"),
        (["--gpu", "cpu", "--mfu", "0.3"], "the rate of a CPU is measured"),
    ],
)
def test_questions_without_an_answer_are_refused_in_a_line(capsys, arguments, remedy):
    status, plan, err = answer(capsys, UT308, *arguments)
    assert status == 2 and not plan and len(err.splitlines()) == 1 and remedy in err


def test_sizes_and_steps_are_those_of_a_real_run(capsys, tmp_path, monkeypatch, steps_of_a_second):
    monkeypatch.chdir(tmp_path)
    config = str(ROOT / "configs/wiki-mini.yaml")
    settings = ["corpus.subset_bytes=12300", "train.checkpoint_minutes=1e-9", "name=x"]
    _, before, _ = answer(capsys, config, "--gpu", "cpu", *settings)
    assert main(["train", config, *settings]) == 0
    capsys.readouterr()
    _, plan, _ = answer(capsys, config, "--gpu", "cpu", *settings)
    assert before["corpus"]["source"] == "corpus.subset_bytes" and plan["corpus"]["source"] == "prepared data"
    assert before["steps"] == plan["steps"] == {"main": 49}
    run, sizes = tmp_path / "runs/x", plan["disk_bytes"]
    *_, newest = committed_checkpoints(run)
    assert newest.name.endswith(f"{plan['steps']['main']:08d}")
    found = {
        "checkpoint": _file_bytes(newest),
        "checkpoints": _file_bytes(run / "checkpoints") / 2 * 3,
        "weights": _file_bytes(run / "weights.safetensors"),
        "training shard": _file_bytes(next((tmp_path / "data").glob("*/train.shard"))),
    }
    for name, num_bytes in found.items():
        assert sizes[name] == pytest.approx(num_bytes, rel=0.05), name


def test_the_size_of_wiki_mini_is_known_before_it_is_prepared(capsys, tmp_path):
    config = str(ROOT / "configs/wiki-mini.yaml")
    _, plan, _ = answer(capsys, config, "--gpu", "a10", f"data_dir={tmp_path}")
    assert plan["corpus"]["tokens"] == WIKI_MINI_BYTES - 256_000 == 5_707_324
    _, plan, _ = answer(capsys, config, "--gpu", "a10", f"data_dir={tmp_path}", "tokenizer.kind=sentencepiece")
    assert "assuming" in plan["corpus"]["source"]
    arguments = ("--tokens", "1500000", "tokenizer.kind=sentencepiece")
    assert (
        answer(capsys, config, "--gpu", "a10", f"data_dir={tmp_path}", *arguments)[1]["corpus"]["tokens"] == 1_500_000
    )


def test_the_tables_say_what_they_assume(capsys):
    assert main(["plan", UT308, *A100]) == 0
    out = capsys.readouterr().out
    for words in ("308,232,000", "corpus.subset_bytes", "ZeRO-3", "assumed", "bf16 products", "GPU-hours"):
        assert words in out


def test_what_bounds_a_step_is_said(capsys):
    def bound_by(*arguments: str) -> str:
        _, plan, _ = answer(capsys, UT308, *arguments)
        return next(r["bound_by"] for r in plan["rates"] if (r["arithmetic"], r["mfu"]) == ("bf16", 0.4))

    assert bound_by(*A100) == "operations"
    # 4 bytes of 308 M gradients twice over 24 GB/s are 100 ms, more than the operations of one sequence.
    small = ("train.batch_sequences=16",)
    assert bound_by("--gpus", "16", "--gpu", "l40s", *small) == "exchange"
    assert bound_by("--gpu", "h100-80g", "train.batch_sequences=1") == "update"
    _, ddp, _ = answer(capsys, UT308, *A100, *small)
    _, zero, _ = answer(capsys, UT308, *A100, *small, "backend.name=deepspeed", "backend.zero_stage=3")
    assert zero["rates"][-1]["hours"] > 1.4 * ddp["rates"][-1]["hours"]


def test_reserved_and_fixed_memory_decide_what_fits(capsys):
    _, plan, _ = answer(capsys, UT308, *A100)
    peak = plan["memory"]["ddp"]["peak"]
    assert peak["reserved"] == pytest.approx(1.1 * peak["allocated"]) and peak["fixed"] == 2.5e9
    assert peak["total"] == peak["reserved"] + peak["fixed"]


def test_hours_on_a_cpu_are_those_of_real_steps(capsys, tmp_path):
    """All of a step tells about the same as half its sequences through two of its blocks."""
    config = str(ROOT / "configs/wiki-mini.yaml")
    common = ["--gpu", "cpu", f"data_dir={tmp_path}", "train.precision=fp32", "model.layers=4"]
    common += ["train.batch_sequences=8", "train.batch_schedule=[]", "train.replays=0"]
    _, whole, _ = answer(capsys, config, *common)
    (rate,) = whole["rates"]
    assert rate["bound_by"] == "measured" and rate["peak_flops"] is rate["mfu"] is None
    assert rate["hours"] * 3600 == pytest.approx(rate["step_seconds"] * whole["steps"]["main"])
    assert rate["tokens_per_second"] == pytest.approx(4096 / rate["step_seconds"], rel=0.01)
    loaded, ranks = load_config(config, common[2:]), Ranks(0, 1, torch.device("cpu"))
    part = pace.Extent(1, 4, 2, 128)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pace, "_shrinking", lambda _: [part])
        patch.setattr(pace, "SECONDS", 100.0)
        assert pace.step_seconds(loaded, 256, ranks) == pytest.approx(rate["step_seconds"], rel=0.6)


def _file_bytes(path: Path) -> int:
    return sum(p.stat().st_size for p in path.rglob("*") if p.is_file()) if path.is_dir() else path.stat().st_size
