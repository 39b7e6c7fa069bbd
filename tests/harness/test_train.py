"""Training as a user starts it: the ledger is the loss that trained, whatever the number of ranks and micro-batches."""

import json
import math
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from eval.report.record import flat_record, lengths
from eval.report.run_tables import render
from harness.backends.base import local_state
from harness.config.run import load_config
from harness.corpus.prepared import open_data
from harness.errors import RunFailure, UsageError
from harness.machine.ranks import Ranks
from harness.run.directory import charged_bytes
from harness.run.ledger import part_paths, read_online_code
from harness.train import train_run
from harness.trainer import Trainer
from launch.api.calls import evaluate
from tests.support.commands import ROOT, run_command
from tests.support.processes import python
from tests.support.ranks import rows

CONTEXT = 64
NUM_SEQUENCES, LAST_TOKENS = 40, 44
TEXT_BYTES = 39 * CONTEXT + LAST_TOKENS
CONFIG = f"""
corpus: {{kind: wiki-mini, subset_bytes: {TEXT_BYTES}, heldout_bytes: 3000}}
model: {{width: 32, layers: 1, heads: 1, context: {CONTEXT}}}
eval: {{chunk_bytes: {CONTEXT}}}
train: {{epochs: 2, finetune_epochs: 1, batch_sequences: 16, precision: fp32, log_every_steps: 1}}
optimizer: {{warmup_tokens: 32}}
rule: {{kind: rl1, alpha: 0.01}}
prune: {{kind: tamade, sample_sequences: 8, resolution: 1e-4}}
"""


@pytest.fixture(scope="session")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("train")
    (folder / "config.yaml").write_text(CONFIG + f"runs_dir: {folder}/runs\ndata_dir: {folder}/data\n")
    return folder


def train(place: Path, name: str, *overrides: str) -> Path:
    train_run(load_config(place / "config.yaml", [f"name={name}", *overrides]))
    return place / "runs" / name


@pytest.fixture(scope="session")
def one(place) -> Path:
    return train(place, "one")


@pytest.fixture(scope="session")
def four_micro_batches(place) -> Path:
    return train(place, "four-micro-batches", "train.micro_batch_sequences=4")


@pytest.fixture(scope="session")
def two_ranks(place) -> Path:
    command = f"torchrun --standalone --nproc-per-node 2 -m harness.train {place}/config.yaml name=two-ranks"
    done = run_command(command, ROOT)
    assert done.returncode == 0, done.stderr
    return place / "runs" / "two-ranks"


@pytest.fixture(params=["one", "four_micro_batches", "two_ranks"])
def run(request) -> Path:
    return request.getfixturevalue(request.param)


def metrics(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def test_the_ledger_is_the_loss_that_trained(run):
    trained_nats_sum = sum(line["loss_nats_sum"] for line in metrics(run))
    ledger_nats_sum = rows(run)["nats_sum"].to_numpy().sum()
    assert ledger_nats_sum == pytest.approx(trained_nats_sum, rel=1e-9)


def test_every_token_is_coded_exactly_once(run):
    first = rows(run).filter(pa.compute.equal(rows(run)["epoch"], 0))
    ids = [
        sequence * CONTEXT + position
        for sequence, nats in zip(first["sequence"].to_pylist(), first["nats"].to_pylist(), strict=True)
        for position in range(len(nats))
    ]
    assert sorted(ids) == list(range(TEXT_BYTES))


def test_a_row_holds_its_tokens_and_their_sum(run):
    table = rows(run)
    assert set(table["num_tokens"].to_pylist()) == {CONTEXT, LAST_TOKENS}
    for epoch, nats, nats_sum in zip(*(table[c].to_pylist() for c in ("epoch", "nats", "nats_sum")), strict=True):
        assert (nats is None) == (epoch > 0)
        if epoch == 0:
            assert np.float32(nats).astype(np.float64).sum() == pytest.approx(nats_sum, rel=1e-12)


def test_later_epochs_do_not_count(run):
    online = read_online_code(run, NUM_SEQUENCES, TEXT_BYTES)
    assert (online.tokens, online.raw_bytes) == (TEXT_BYTES, TEXT_BYTES)
    assert online.aulc_bits == pytest.approx(metrics(run)[-1]["online_bits"], rel=1e-9)
    assert 3 < online.bits_per_byte < 8


@pytest.mark.parametrize("other", ["four_micro_batches", "two_ranks"])
def test_neither_ranks_nor_micro_batches_change_the_code_length(one, other, request):
    expected = read_online_code(one, NUM_SEQUENCES, TEXT_BYTES)
    found = read_online_code(request.getfixturevalue(other), NUM_SEQUENCES, TEXT_BYTES)
    assert found.aulc_bits == pytest.approx(expected.aulc_bits, rel=1e-5)
    assert np.array_equal(found.step_raw_bytes, expected.step_raw_bytes)


def test_ranks_read_the_order_that_one_process_reads(one, two_ranks):
    columns = ["step", "sequence", "epoch", "num_tokens"]
    assert rows(one).select(columns).equals(rows(two_ranks).select(columns))


def test_fine_tuning_keeps_the_zeros_of_pruning_and_moves_the_rest(place, one):
    tuned = load_file(one / "weights.safetensors")
    pruned = load_file(train(place, "pruned", "train.finetune_epochs=0") / "weights.safetensors")
    kept = {name: weights != 0 for name, weights in pruned.items()}
    assert 1000 < sum(int(k.sum()) for k in kept.values()) < sum(k.numel() for k in kept.values()) - 1000
    assert not any(weights[~kept[name]].any() for name, weights in tuned.items())
    moved = sum(int((weights != pruned[name]).sum()) for name, weights in tuned.items())
    assert moved > 0.9 * sum(int(k.sum()) for k in kept.values())
    last = metrics(one)[-1]
    assert last["phase"] == "finetune" and last["nonzeros"] == sum(int(w.count_nonzero()) for w in tuned.values())


def test_a_rule_works_without_pruning(place):
    """A proximal rule makes exact zeros while it trains."""
    rule = ("prune.kind=none", "rule.coupling=decoupled", "rule.alpha=0.5", "train.epochs=1")
    weights = load_file(train(place, "rule-alone", *rule) / "weights.safetensors")["embed.weight"]
    assert 0 < int((weights == 0).sum()) < weights.numel()


def test_weights_are_float32(one):
    assert {w.dtype for w in load_file(one / "weights.safetensors").values()} == {torch.float32}


def test_without_learning_the_code_is_uniform(place):
    run_dir = train(
        place, "uniform", "optimizer.learning_rate=1e-30", "optimizer.muon_learning_rate=1e-30", "rule.kind=none",
        "rule.alpha=0", "prune.kind=none", "train.epochs=1",
    )  # fmt: skip
    online = read_online_code(run_dir, NUM_SEQUENCES, TEXT_BYTES)
    assert online.aulc_bits == pytest.approx(8 * TEXT_BYTES, rel=1e-7)


def test_sentencepiece_is_charged_for_bytes(place):
    pieces = ("tokenizer.kind=sentencepiece", "tokenizer.vocab_size=400")
    run_dir = train(place, "pieces", *pieces, "train.epochs=1", "prune.kind=none")
    table = rows(run_dir)
    first = table.filter(pa.compute.equal(table["epoch"], 0))
    assert first["raw_bytes"].to_numpy().sum() == TEXT_BYTES
    assert first["num_tokens"].to_numpy().sum() < 0.8 * TEXT_BYTES
    # Nor are its merges free: what the online code takes has them beside the losses.
    data = open_data(load_config(run_dir / "config.yaml"))
    charged, online = charged_bytes(run_dir, data.tokenizer), first["nats_sum"].to_numpy().sum() / math.log(2)
    assert charged["tokenizer_bytes"] == len(data.tokenizer.model_bytes()) > 0
    report = evaluate(run_dir, ["eval.ideal=true"], threads=1)
    assert lengths(flat_record(report))["online"].total_bits == pytest.approx(8 * charged["tokenizer_bytes"] + online)
    assert f"holds the tokenizer, {charged['tokenizer_bytes']} bytes." in render([report], "md")


def test_a_complete_run_is_left_alone(place, one, capsys):
    before = (one / "weights.safetensors").stat().st_mtime_ns
    train(place, "one")
    assert "training is complete" in capsys.readouterr().out
    assert (one / "weights.safetensors").stat().st_mtime_ns == before


def test_another_configuration_under_the_same_name_is_refused(place, one):
    with pytest.raises(UsageError, match=r"model\.width: 32 -> 64") as caught:
        train(place, "one", "model.width=64")
    assert "\n" not in str(caught.value)


DIVERGING = ("optimizer.learning_rate=1e30", "optimizer.muon_learning_rate=1e30")


def test_a_loss_that_is_not_finite_stops_the_run(place):
    with pytest.raises(RunFailure, match=r"step \d+, rank 0: the loss is .*no checkpoint had been saved"):
        train(place, "diverged", *DIVERGING)
    assert not (place / "runs" / "diverged" / "DONE").exists()


def test_a_loss_that_is_not_finite_names_the_last_good_checkpoint(place):
    with pytest.raises(RunFailure, match=r"last good checkpoint is .*saved-and-diverged/checkpoints/step-0000000\d\)"):
        train(place, "saved-and-diverged", *DIVERGING, "train.checkpoint_minutes=1e-9", "optimizer.warmup_tokens=0")


def test_a_dry_run_prints_the_derived_numbers_and_leaves_nothing(place, capsys):
    train(place, "dry", "dry_run=true")
    printed = capsys.readouterr().out
    for text in ("28,704 parameters", "main 6, finetune 3 of 1,024 tokens", "ledger about", "dry step", "peak memory"):
        assert text in printed
    assert not (place / "runs" / "dry").exists()


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_the_dry_step_leaves_weights_and_optimizer_as_they_were(place, kind):
    config = load_config(place / "config.yaml", [f"optimizer.kind={kind}", "rule.kind=fpp", "rule.alpha=0.1"])
    trainer = Trainer(config, open_data(config), Ranks(0, 1, torch.device("cpu")), torch.float32)
    before = {name: tensor.clone() for name, tensor in trainer.backend.weights()}
    trainer.describe()
    assert all(torch.equal(tensor, before[name]) for name, tensor in trainer.backend.weights())
    states = local_state(trainer.backend, trainer.optimizer)["state"]
    assert states and not any(value.any() for state in states for value in state.values())


def test_the_dry_step_tries_the_rule_that_only_later_steps_will_use(place):
    digests = set()
    for settings in (["rule.kind=none"], ["rule.kind=rl1", "rule.alpha=0.5", "rule.warmup=0.9"]):
        config = load_config(place / "config.yaml", settings)
        trainer = Trainer(config, open_data(config), Ranks(0, 1, torch.device("cpu")), torch.float32)
        trainer.learner.dry_step()
        digests.add(trainer.learner.weights_digest())
        assert trainer.optimizer.rule is None
    assert len(digests) == 2


def test_a_batch_that_needs_too_much_memory_is_found_before_the_first_step(place):
    batch = "model.width=512 model.layers=8 model.context=512 train.batch_sequences=64"
    command = f"ulimit -v 3500000; {sys.executable} -m harness.train {place}/config.yaml name=big {batch}"
    done = run_command(command, ROOT)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1, done.stderr
    assert "rank 0: out of memory with micro-batches of 64 sequences; lower" in done.stderr
    assert not list((place / "runs" / "big").glob("ledger/*"))


def test_recomputed_activations_change_no_bit(place, one):
    again = train(place, "recomputed", "train.activation_checkpointing=true")
    assert rows(again).equals(rows(one))
    assert (again / "weights.safetensors").read_bytes() == (one / "weights.safetensors").read_bytes()


def test_processes_started_by_the_command_end_with_the_status_of_the_rank_that_failed(place):
    command = f"codelength train {place}/config.yaml --processes 2"
    done = run_command(f"{command} name=split {' '.join(DIVERGING)}", ROOT)
    lines = [line for line in done.stderr.splitlines() if "main  step" not in line]
    assert done.returncode == 1 and "the loss is nan" in done.stderr
    assert all("the loss is nan" in line or "lost the other ranks" in line for line in lines), done.stderr
    done = run_command(f"{command} name=one model.width=64", ROOT)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
    assert "model.width: 32 -> 64" in done.stderr


def test_a_batch_that_ranks_cannot_share_is_refused(place):
    command = f"codelength train --processes 3 {place}/config.yaml name=odd"
    done = run_command(command, ROOT)
    assert done.returncode == 2 and not (place / "runs" / "odd").exists()
    assert len(done.stderr.splitlines()) == 1 and "train.batch_sequences=16: must be a multiple" in done.stderr


def test_an_incomplete_ledger_is_refused(place):
    run_dir = train(place, "incomplete", "train.epochs=1", "prune.kind=none")
    part = part_paths(run_dir)[0]
    table = pq.read_table(part)
    pq.write_table(table.slice(1), part)
    with pytest.raises(UsageError, match="holds 39 of 40 sequences"):
        read_online_code(run_dir, NUM_SEQUENCES, TEXT_BYTES)
    part.write_bytes(part.read_bytes()[:-3])
    with pytest.raises(UsageError, match="damaged ledger part"):
        read_online_code(run_dir, NUM_SEQUENCES, TEXT_BYTES)


def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(place):
    # Steps that are long enough for the signal to come in the middle.
    longer = ("model.context=512", "corpus.subset_bytes=20300", "train.epochs=12", "train.log_every_steps=2")
    whole = train(place, "whole", *longer)
    process = python("-m", "harness.train", place / "config.yaml", "name=stopped", *longer, cwd=ROOT)
    log = place / "runs" / "stopped" / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (log.exists() and len(log.read_text().splitlines()) >= 3):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1 and "stopped after step" in errors and "Traceback" not in errors
    resumed = train(place, "stopped", *longer)
    assert rows(resumed).equals(rows(whole))
    ours, theirs = load_file(resumed / "weights.safetensors"), load_file(whole / "weights.safetensors")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    sums = [[line["loss_nats_sum"] for line in metrics(r)] for r in (resumed, whole)]
    assert sums[0] == sums[1]
