"""Studies of policies and orders: small ones from end to end, closed forms, and what is refused."""

import csv
import json
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch

from eval.online.file import read_online_file
from eval.studies.config import OrderConfig, PolicyConfig
from eval.studies.figures import similarity_fit
from eval.studies.order import hardened, measure_order, point_path, read_points, sinkhorn
from eval.studies.ordered import make_ordered, read_table
from eval.studies.policy import PolicyPoint, measure_policy
from eval.studies.policy import point_path as policy_path
from eval.studies.sets import corrupt, make_sets, memory_lines
from harness.config.run import load_config
from harness.config.written import load_settings
from harness.corpus.prepared import open_data
from harness.errors import RunFailure, UsageError
from harness.machine.ranks import Ranks
from harness.policy.weights import Policy, load_policy, read_policy
from launch.main import main
from tests.support.commands import ROOT

ALONE = Ranks(0, 1, torch.device("cpu"))
PRESETS = ROOT / "configs" / "studies"
SMALL = {"examples": [64], "steps": [40], "desired": 128, "test": 256, "width": 8, "epochs": 4, "similarity_every": 2}


def small(folder: Path, **changes) -> PolicyConfig:
    return PolicyConfig(runs_dir=str(folder), **(SMALL | changes))


def transformer(folder: Path, **changes) -> PolicyConfig:
    text = folder / "text.txt"
    text.write_text("".join(f"Sentence {i * i} of {i} has words. " for i in range(60)))
    config = small(folder, learner="transformer", examples=[12], steps=[3], desired=8, test=8, corrupted=0.5, epochs=1)
    config.model.context, config.corpus.kind, config.corpus.path = 16, "files", str(text)
    config.corpus.subset_bytes, config.corpus.heldout_bytes = None, 100
    for key, value in changes.items():
        setattr(config, key, value)
    return config


def refusal(work) -> str:
    with pytest.raises((UsageError, RunFailure)) as caught:
        work()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_policy_leaves_out_wrong_labels_and_helps_on_examples_that_it_was_not_learnt_on(tmp_path):
    config = small(tmp_path)
    measure_policy(config, ALONE, 64, 40, 0)
    point = PolicyPoint(**json.loads(policy_path(config, 64, 40, 0).read_text()))
    assert point.corrupted_weights[-1] < 0.6 * point.corrupted_weights[0]
    assert point.test_nats[-1] < 0.9 * point.test_nats[0] and point.desired_nats == sorted(point.desired_nats)[::-1]
    assert point.acceleration > 1.5 and point.similarities[-1][1] > 1.5 * point.similarities[0][1]
    assert len(point.constant_curve) == len(point.learnt_curve) == len(point.corrupted_by_step) == 40
    assert np.mean(point.learnt_curve) == pytest.approx(point.test_nats[-1], rel=1e-9)
    policy = load_policy(str(config.directory / "policies" / "n64_t40_s0.policy"), 64)
    assert policy.weights(0.5).mean() == pytest.approx(1, rel=1e-6)


def test_it_ends_where_no_change_of_the_policy_lowers_the_loss_and_says_what_else_that_can_mean(tmp_path, capsys):
    # A single example has all the weight whatever happens.
    measure_policy(small(tmp_path, examples=[1], steps=[2]), ALONE, 1, 2, 0)
    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith("epoch 0: ") and last.startswith("epoch 1: no change of at least 0.001 of the mean weight")
    assert last.endswith("the gradient through 2 steps says nothing any more: lower learning_rate=0.1")


def test_a_study_that_was_stopped_goes_on_to_the_same_policy(tmp_path, monkeypatch):
    whole, parts = small(tmp_path, name="whole"), small(tmp_path, name="parts", recompute=True)
    measure_policy(whole, ALONE, 64, 40, 0)
    # Stopped after the second epoch, before any result was written.
    monkeypatch.setattr("eval.studies.policy._write", lambda *_: (_ for _ in ()).throw(RunFailure("stopped")))
    parts.epochs = 2
    assert refusal(lambda: measure_policy(parts, ALONE, 64, 40, 0)) == "stopped"
    monkeypatch.undo()
    parts.epochs = 4
    measure_policy(parts, ALONE, 64, 40, 0)
    files = [config.directory / "policies" / "n64_t40_s0.policy" for config in (whole, parts)]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert not list((parts.directory / "work").iterdir())


def test_a_transformer_learns_from_the_sentences_of_a_corpus(tmp_path):
    config = transformer(tmp_path)
    measure_policy(config, ALONE, 12, 3, 0)
    point = PolicyPoint(**json.loads(policy_path(config, 12, 3, 0).read_text()))
    assert point.desired_nats[-1] < point.desired_nats[0] and point.symbols == 256
    text = (config.directory / "policies" / "n12_t3_s0.txt").read_bytes()
    assert len(text) == 12 * 16 and sum(text[i : i + 9] == b"Sentence " for i in range(0, len(text), 16)) >= 6


def test_corrupted_texts_keep_their_length():
    generator, row = np.random.default_rng(0), np.arange(65, 81, dtype=np.uint8)
    changed = [corrupt(row, 20, generator) for _ in range(50)]
    assert all(len(one) == 16 and (one != row).any() for one in changed)
    assert (corrupt(row, 0, generator) == row).all()


def test_policies_are_read_back_and_others_are_refused(tmp_path):
    weights = np.array([[0.0, 1.0, 3.0], [1e-9, 0.0, 0.0]])
    policy = Policy.of_weights(weights)
    again = read_policy(policy.to_bytes(), 3)
    assert (again.units == policy.units).all() and again.weights(0.0) == pytest.approx([0, 0.75, 2.25])
    assert again.weights(0.5) == pytest.approx([3, 0, 0]) and again.weights(1.0) == pytest.approx([3, 0, 0])
    content, path = policy.to_bytes(), tmp_path / "a.policy"
    empty = Policy(np.zeros((1, 3), dtype=np.uint8)).to_bytes()
    for bad, words in (
        (b"", "no policy"),
        (b"X" + content[1:], "no policy"),
        (content[:-1], "damaged"),
        (content[:16] + b"\xff" + content[17:], "damaged"),
        (empty, "a stage without any weight"),
    ):
        path.write_bytes(bad)
        assert words in refusal(lambda: load_policy(str(path), 3))
    with path.open("wb") as file:
        # Of what is longer than any policy of three sequences no more is read.
        file.write(content)
        file.truncate(1 << 40)
    assert "damaged" in refusal(lambda: load_policy(str(path), 3))
    path.write_bytes(content)
    assert "a policy of 3 sequences, and the text has 4" in refusal(lambda: load_policy(str(path), 4))
    assert "cannot be read" in refusal(lambda: load_policy(str(tmp_path / "none"), 4))


def test_what_cannot_work_is_refused_in_one_line(tmp_path):
    line = refusal(lambda: memory_lines(small(tmp_path, max_memory_bytes=30_000), 1))
    assert line.startswith("steps=40: 0.0 MB a process") and "; 28 steps fit, or use recompute=true" in line, line
    assert "more than there are examples" in refusal(lambda: memory_lines(small(tmp_path), 65))
    diverging = small(tmp_path, learning_rate=1e30)
    line = refusal(lambda: measure_policy(diverging, ALONE, 64, 40, 0))
    assert line.startswith("learning_rate=1e+30: training diverges, the loss is") and line.endswith("steps; lower it")
    line = refusal(lambda: make_sets(transformer(tmp_path, desired=100), 12, 0, ALONE))
    assert "need 120 different sentences of 16 bytes, and the corpus has" in line
    with pytest.raises(UsageError) as caught:
        load_settings(PolicyConfig, None, ["desired=0", "test=0", "examples=[]", "steps=[0]", "learning_rate=-1"])
    keys = {line.partition("=")[0] for line in str(caught.value).splitlines()}
    assert keys == {"desired", "test", "examples", "steps", "learning_rate"}
    kept = small(tmp_path, name="damaged")
    (kept.directory / "work").mkdir(parents=True)
    (kept.directory / "work" / "n64_t40_s0.safetensors").write_bytes(b"no such thing")
    assert "damaged" in refusal(lambda: measure_policy(kept, ALONE, 64, 40, 0))


def test_the_fit_of_similarities_finds_its_numbers():
    point = PolicyPoint(examples=1, steps=1, seed=0, parameters=1, symbols=2)
    ratios = np.linspace(1.5, 3, 12)
    point.desired_nats = list(np.log(2) / ratios)
    point.similarities = [[epoch, float(np.log(1.3 / (4 - r) ** 0.2))] for epoch, r in enumerate(ratios)]
    assert similarity_fit(point) == pytest.approx((1.3, 4, 0.2), rel=1e-3)


def test_sinkhorn_is_doubly_stochastic_and_hungarian_finds_the_best_permutation():
    logits = torch.randn(5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    matrix = sinkhorn(logits, 1.0)
    assert matrix.sum(dim=1).numpy() == pytest.approx(1, abs=1e-12)
    assert matrix.sum(dim=0).numpy() == pytest.approx(1, abs=1e-4)
    best = max(permutations(range(5)), key=lambda order: float(matrix[range(5), list(order)].sum()))
    assert hardened(matrix).tolist() == list(best)


def table(folder: Path) -> Path:
    generator = np.random.default_rng(0)
    labels = np.arange(40) % 2
    inputs = np.clip(generator.normal(60 + 120 * labels[:, None], 30, size=(40, 4)), 0, 255).round()
    path = folder / "table.csv"
    np.savetxt(path, np.column_stack([inputs, labels]), delimiter=",", fmt="%d")
    return path


def test_a_learnt_order_is_shorter_and_its_name_costs_more(tmp_path):
    settings = {"examples": 12, "heldout": 20, "epochs": 12, "learning_rate": 0.5, "random_orders": 4}
    config = OrderConfig(runs_dir=str(tmp_path), table=str(table(tmp_path)), **settings)
    for labels in ("true", "shuffled"):
        measure_order(config, ALONE, labels, 0)
    for point in read_points(config):
        assert sorted(point.order) == list(range(12)) and point.area < np.mean(point.random_areas)
        assert point.area_bits + 28.835 == pytest.approx(point.total_bits, abs=1e-2)
    assert point_path(config, "true", 0).exists()


def test_the_area_is_that_of_single_steps(tmp_path):
    config = OrderConfig(runs_dir=str(tmp_path), table=str(table(tmp_path)), examples=6, heldout=2)
    learner = make_ordered(config, 0, is_shuffled=False).learner
    state, area = learner.start(), 0.0
    for row in range(6):
        area += float(learner.losses(state)[row])
        state = state - 0.1 * learner.gradient(state, torch.eye(6)[row])
    assert 0 < area < 6 * np.log(2) * 2


def test_an_order_of_documents_is_that_of_a_run_and_of_its_online_code(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    texts = [text * 3 for text in ("aaaa aaaa", "bb", "abab abab abab", "cccc")]
    for number, text in enumerate(texts):
        (folder / f"{number}.txt").write_text(text)
    config = OrderConfig(runs_dir=str(tmp_path), source="documents", epochs=2, random_orders=2, learning_rate=0.1)
    config.model.context, config.corpus.kind, config.corpus.path = 8, "files", str(folder)
    config.corpus.subset_bytes, config.corpus.heldout_bytes = None, 5
    measure_order(config, ALONE, "true", 0)
    found = config.directory / "order_s0.txt"
    order = [int(line) for line in found.read_text().split()]
    assert sorted(order) == [0, 1, 2, 3] and order != [0, 1, 2, 3]
    (tmp_path / "config.yaml").write_text(f"data_dir: {tmp_path}/data\nruns_dir: {tmp_path}/runs\n")
    corpus = ("corpus.kind=files", f"corpus.path={folder}", "corpus.heldout_bytes=5", f"corpus.documents={found}")
    shape = ("model.width=8", "model.layers=1", "model.heads=1", "model.context=8", "eval.chunk_bytes=8")
    settings = [str(tmp_path / "config.yaml"), *corpus, *shape, "rule.kind=none", "prune.kind=none"]
    assert main(["train", *settings, "name=ordered"]) == 0
    read = open_data(load_config(settings[0], [*settings[1:], "name=ordered"])).train
    whole = [text.encode() for text in [*texts[:-1], texts[-1][:-5]]]
    assert read.tokens.astype("u1").tobytes() == b"".join(whole[number] for number in order)
    file, output = tmp_path / "text.clo", tmp_path / "out"
    assert main(["send", *settings, "-o", str(file), "--quiet"]) == 0
    assert read_online_file(file)[0].order.order.tolist() == order
    assert main(["receive", str(file), "-o", str(output), "--quiet"]) == 0 and output.read_bytes() == b"".join(whole)


def test_tables_that_are_none_are_refused(tmp_path):
    path = tmp_path / "bad.csv"
    for text, words in (
        ("1,2\nx,3\n", "no table of numbers"),
        ("300,1\n", "from 0 to 255"),
        ("1\n", "a label in each"),
    ):
        path.write_text(text)
        assert words in refusal(lambda: read_table(path))
    (tmp_path / "bad.csv.gz").write_bytes(b"\x1f\x8bno")
    refusal(lambda: read_table(tmp_path / "bad.csv.gz"))
    assert "cannot be read" in refusal(lambda: read_table(tmp_path / "none.csv"))


@pytest.mark.parametrize(
    ("name", "kind"), [("perceptron", PolicyConfig), ("transformer", PolicyConfig), ("order", OrderConfig)]
)
def test_presets_are_read(name, kind):
    assert load_settings(kind, PRESETS / f"{name}.yaml", []).name == name


def test_the_command_shares_states_among_processes_writes_results_and_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    words = [f"{key}={value}" for key, value in (SMALL | {"epochs": 2}).items()]
    command = ["study", str(PRESETS / "perceptron.yaml"), f"runs_dir={tmp_path}", *words]
    assert main([*command, "--processes", "2"]) == 0
    folder = tmp_path / "perceptron"
    printed = capsys.readouterr().out
    assert "MB a process" in printed and "Learnt policies" in printed and "Learnt" in (folder / "table.md").read_text()
    with (folder / "points.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert {path.stem for path in folder.glob("*.png")} == {"epochs", "curves", "similarity", "weights"}
    alone = small(tmp_path, name="alone", epochs=2)
    measure_policy(alone, ALONE, 64, 40, 0)
    point = json.loads(policy_path(alone, 64, 40, 0).read_text())
    assert float(row["test_nats"]) == pytest.approx(point["test_nats"][-1], rel=1e-4)
    assert main(command) == 0
    assert "1 of 1 jobs are finished already" in capsys.readouterr().out
    assert main([*command, "name=gpu", "device=cuda"]) == 2
    assert capsys.readouterr().err.endswith("and 0 GPU(s); use device=cpu\n") and not (tmp_path / "gpu").exists()
    assert main([*command, "width=9"]) == 2
    assert "width: 8 -> 9" in capsys.readouterr().err
    assert main([*command, "kind=order"]) == 2 and main([*command, "kind=none"]) == 2
    assert "kind=none: unknown kind of study" in capsys.readouterr().err
