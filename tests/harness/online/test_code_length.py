"""The online code of a run by its ledger, under every setting: its bounds, its parts, its way through a stop."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from harness.config.run import RunConfig, load_config
from harness.corpus.prepared import open_data
from harness.data.order import Sequences
from harness.machine.ranks import joined_ranks
from harness.online.combiner import Combiner
from harness.run.checkpoint import committed_checkpoints
from harness.run.ledger import OnlineCode, part_paths, read_online_code
from harness.units import bits_from_nats
from launch.main import main
from launch.plan.plan import Plan, Question
from tests.support.commands import ROOT
from tests.support.ranks import Ranks, finish, finish_all, rows

CONFIG = """
corpus: {kind: files, heldout_bytes: 512}
model: {width: 16, layers: 1, heads: 1, context: 64}
train: {batch_sequences: 4, precision: fp32, log_every_steps: 100, order: sequential}
optimizer: {warmup_tokens: 512, kind: adamw}
eval: {chunk_bytes: 64}
"""
TEXT = (ROOT / "LICENSE").read_bytes()[:6000]
EVERYTHING = (
    "train.replays=1",
    "train.replay=streams",
    "online.experts=[uniform,frequencies,ngram,network]",
    "online.models=[8x1x1]",
    "online.ema=0.9",
    "online.calibrate=true",
    "online.checkpoints=3",
    "online.checkpoint_steps=2",
)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("prequential")
    content = yaml.safe_load(CONFIG) | {"runs_dir": f"{folder}/runs", "data_dir": f"{folder}/data"}
    for name, text in (("text", TEXT), ("random", np.random.default_rng(0).bytes(4000))):
        (folder / name).write_bytes(text)
        content["corpus"]["path"] = str(folder / name)
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(content))
    return folder


def train(place: Path, text: str, name: str, *settings: str) -> tuple[RunConfig, OnlineCode]:
    arguments = [str(place / f"{text}.yaml"), f"name={name}", *settings]
    assert main(["train", *arguments]) == 0
    config = load_config(arguments[0], arguments[1:])
    shard = open_data(config).train
    sequences = Sequences(shard, config.model.context)
    return config, read_online_code(config.run_dir, sequences.num_sequences, shard.num_tokens)


@pytest.fixture(scope="module")
def plain(place) -> tuple[RunConfig, OnlineCode]:
    return train(place, "text", "plain")


def test_a_plain_code_is_the_sum_of_the_losses(plain):
    config, code = plain
    assert code.ideal_bits == code.aulc_bits
    assert not (config.run_dir / "members.json").exists()


def test_replays_are_never_counted_and_shorten_what_follows(place, plain):
    config, code = train(place, "text", "replays", "train.replays=3")
    assert code.tokens == plain[1].tokens and code.ideal_bits == code.aulc_bits
    # The first batch is coded before anything was learnt.
    assert code.step_bits[0] == plain[1].step_bits[0]
    assert code.ideal_bits < 0.97 * plain[1].ideal_bits
    assert len(rows(config.run_dir)) == len(rows(plain[0].run_dir))


def test_the_mixture_of_a_run_is_at_most_its_prior_longer_than_each_member(place, plain):
    config, code = train(place, "text", "mixture", "online.experts=[uniform,frequencies,ngram,network]")
    members = json.loads((config.run_dir / "members.json").read_text())
    assert list(members) == ["model", "uniform", "frequencies", "ngram", "network"]
    prior_bits = config.train.batch_sequences * (1 + math.log2(len(members)))
    assert code.ideal_bits <= min(members.values()) + prior_bits + 0.1
    assert members["uniform"] == pytest.approx(8 * code.raw_bytes, rel=1e-6)
    # What predicts must not change what is trained.
    assert code.aulc_bits == plain[1].aulc_bits and members["model"] == pytest.approx(code.aulc_bits, rel=1e-4)
    assert members["network"] < members["ngram"] < code.aulc_bits


def test_ranks_learn_what_the_others_have_coded(place):
    settings = ("online.experts=[ngram,network]",)
    config, alone = train(place, "text", "one-rank", *settings)
    finish_all(2, place / "text.yaml", {"two-ranks": settings})
    sequences = Sequences(open_data(config).train, config.model.context)
    together = read_online_code(config.run_dir.with_name("two-ranks"), sequences.num_sequences, alone.tokens)
    assert together.aulc_bits == pytest.approx(alone.aulc_bits, rel=1e-5)
    # Half of the text would take about a fifth more.
    assert together.ideal_bits < 1.05 * alone.ideal_bits


def test_random_bytes_are_never_shorter_than_themselves(place):
    _, code = train(place, "random", "random", *EVERYTHING)
    assert code.ideal_bits >= 8 * code.raw_bytes - 20


def test_a_self_switch_is_at_most_the_names_of_its_choices_longer_than_the_last_weights(place, plain):
    settings = ("online.checkpoints=4", "online.checkpoint_steps=1")
    _config, code = train(place, "text", "self-switch", *settings)
    batches = len(code.step_bits)
    assert code.aulc_bits == plain[1].aulc_bits
    assert code.ideal_bits <= code.aulc_bits + batches * math.log2(4) + 0.01
    # A learning rate that is far too high makes older weights worth their name.
    hasty = "optimizer.learning_rate=0.3"
    _, code = train(place, "text", "self-switch-hasty", *settings, hasty)
    assert code.ideal_bits < code.aulc_bits


def test_the_names_of_choices_are_charged_where_they_help_nothing(place):
    settings = ("online.checkpoints=4", "online.checkpoint_steps=1", "optimizer.learning_rate=1.0e-12")
    _, code = train(place, "text", "self-switch-idle", *settings)
    names_bits = sum(math.log2(min(4, 1 + batch)) for batch in range(len(code.step_bits)))
    assert code.ideal_bits == pytest.approx(code.aulc_bits + names_bits, abs=0.01)


def test_the_first_block_of_a_block_code_is_uniform_and_nothing_is_learnt_inside_a_block(place):
    settings = ("train.retrain_at=[0.25,0.5]", "train.retrain_epochs=3")
    _config, code = train(place, "text", "blocks", *settings)
    steps = len(code.step_bits)
    first = math.ceil(0.25 * steps)
    assert code.step_bits[:first] == pytest.approx(8 * code.step_raw_bytes[:first], rel=1e-6)
    rates = code.step_bits / code.step_raw_bytes
    second = math.ceil(0.5 * steps)
    assert rates[first:second].max() < 7.5 and rates[second:].mean() < rates[first:second].mean()
    _, shorter = train(place, "text", "first-block", "train.retrain_at=[0.25]", "train.retrain_epochs=3")
    assert np.array_equal(shorter.step_bits[:second], code.step_bits[:second])


def test_the_area_of_a_block_code_is_that_of_its_transformer_whoever_else_predicts(place):
    blocks = ("train.retrain_at=[0.25,0.5]", "train.retrain_epochs=3")
    _, alone = train(place, "text", "blocks-alone", *blocks)
    _, mixed = train(place, "text", "blocks-mixed", *blocks, "online.experts=[ngram]", "online.calibrate=true")
    assert alone.ideal_bits == pytest.approx(alone.aulc_bits, rel=1e-6)
    assert mixed.aulc_bits == pytest.approx(alone.aulc_bits, rel=1e-6) and mixed.ideal_bits < 0.9 * mixed.aulc_bits


def test_running_means_predict_in_place_of_the_weights(place, plain):
    _, code = train(place, "text", "ema", "online.ema=0.99")
    assert code.aulc_bits == plain[1].aulc_bits and code.ideal_bits != code.aulc_bits
    assert code.step_bits[0] == pytest.approx(plain[1].step_bits[0], rel=1e-6)


def test_every_setting_goes_on_after_a_stop_as_if_there_had_been_none(place):
    config, _ = train(place, "text", "whole", *EVERYTHING)
    stopped = config.run_dir.with_name("stopped")
    arguments = [str(place / "text.yaml"), "name=stopped", *EVERYTHING, "train.checkpoint_minutes=1.0e-6"]
    with Ranks(1, Path(arguments[0]), *arguments[1:]) as ranks:
        ranks.wait_until(lambda: any(int(path.name[5:]) >= 6 for path in committed_checkpoints(stopped)))
        ranks.kill()
    assert main(["train", *arguments]) == 0
    assert rows(stopped).equals(rows(config.run_dir))
    assert (stopped / "members.json").read_text() == (config.run_dir / "members.json").read_text()


def test_a_checkpoint_holds_what_was_announced_and_what_ranks_share_only_once(place):
    settings = ("online.models=[32x1x1]", "online.ema=0.9", "online.checkpoints=4", "online.checkpoint_steps=1")
    settings += ("model.width=64", "name=announced", "train.checkpoint_minutes=1.0e-6")
    (_, said, _), _ = finish(2, place / "text.yaml", *settings)
    announced = float(re.search(r"checkpoint about ([0-9.]+) MB", said)[1]) * 1e6
    config = load_config(place / "text.yaml", settings)
    files = {path.name: path.stat().st_size for path in committed_checkpoints(config.run_dir)[-1].iterdir()}
    assert sum(files.values()) == pytest.approx(announced, rel=0.15)
    assert files["rank-00001.pt"] < files["rank-00000.pt"] / 20
    question = Question(gpus=2, gpu="cpu", mfu=None, train_bytes=None, tokens=None, gpu_hours=None)
    assert Plan(config, question).disk_bytes()["checkpoint"] == pytest.approx(announced, rel=0.1)


def test_the_ledger_has_the_code_length_of_every_token(place):
    config, code = train(place, "text", "tokens", "online.experts=[uniform,ngram]")
    found = [pq.read_table(path) for path in part_paths(config.run_dir)]
    nats = sum(sum(map(sum, table["code_nats"].to_pylist())) for table in found)
    assert bits_from_nats(nats) == pytest.approx(code.ideal_bits, rel=1e-6)


def test_a_temperature_is_learnt_from_what_was_coded():
    rng, config = np.random.default_rng(0), load_config_defaults("online.calibrate=true").online
    with joined_ranks(60) as ranks:
        combiner = Combiner(config, 8, 0, lanes=1, length=1, ranks=ranks)
        truth = rng.dirichlet(np.full(8, 0.5), size=500)
        tokens = np.array([rng.choice(8, p=row) for row in truth])
        # Over-confident: logits twice as large as they should be.
        tables = (truth**2 / (truth**2).sum(axis=1, keepdims=True)).astype(np.float32)[None]
        for _ in range(20):
            combiner.observe(tables, tokens)
            combiner.end_step()
        assert combiner.sharpness[0] == pytest.approx(0.5, abs=0.1)
        chosen = [table[0, np.arange(500), tokens] for table in (combiner.sharpened(tables), tables)]
        assert -np.log2(chosen[0]).sum() < -np.log2(chosen[1]).sum()


def load_config_defaults(*overrides: str) -> RunConfig:
    return load_config(ROOT / "configs" / "wiki-mini.yaml", overrides)


@pytest.mark.parametrize(
    "setting",
    [
        "online.experts=[oracle]",
        "online.experts=[ngram,ngram]",
        "online.experts=[network]",
        "online.models=[64x2]",
        "online.models=[63x2x2]",
        "online.ngram_order=7",
        "online.ema=1.0",
        "online.checkpoints=0",
        "online.checkpoint_steps=0",
    ],
)
def test_bad_settings_are_refused_in_a_line(setting, capsys):
    assert main(["train", str(ROOT / "configs" / "wiki-mini.yaml"), setting, "dry_run=true"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(setting.split("=")[0]) or f"codelength: {setting.split('=')[0]}" in error
    assert error.count("\n") == 1
