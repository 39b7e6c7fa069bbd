"""Configurations: every mistake is named at once, and what is saved is what was read."""

from pathlib import Path

import pytest

from harness.config.run import changed_keys, config_from, dump_config, load_config
from harness.errors import UsageError
from harness.model.transformer import Transformer
from launch.sweeps.sweep_file import read_sweep
from tests.support.commands import ROOT

PRESETS = sorted((ROOT / "configs").glob("*.yaml"))


def refusal(path: Path, *overrides: str) -> list[str]:
    with pytest.raises(UsageError) as caught:
        load_config(path, overrides)
    return str(caught.value).splitlines()


def write(folder: Path, text: str) -> Path:
    path = folder / "config.yaml"
    path.write_text(text)
    return path


def test_three_mistakes_are_named_in_three_lines(tmp_path):
    path = write(tmp_path, "model: {widht: 64}\ntrain: {epochs: many}\nrule: {kind: rl1, alpha: -1}\n")
    lines = refusal(path)
    assert len(lines) == 3
    assert lines[0].startswith("model.widht=64: unknown key; known here: architecture, width")
    assert lines[1].startswith("train.epochs=many:") and lines[2].startswith("rule.alpha=-1.0: must be")


def test_tensors_that_the_model_does_not_have_are_refused(tmp_path):
    path = write(tmp_path, "rule: {kind: rl1, alpha: 0.1, tensors: [vectors]}\n")
    (line,) = refusal(path)
    assert line.startswith("rule.tensors=['vectors']: a modern model has none")
    load_config(path, ["model.architecture=published"])
    (line,) = refusal(write(tmp_path, "rule: {tensors: [embedding]}\nprune: {kind: layerwise}\n"))
    assert line.startswith("rule.tensors=['embedding']: prune.kind=layerwise prunes linear layers")


def test_a_mistake_on_the_command_line_stands_beside_those_of_the_file(tmp_path):
    lines = refusal(write(tmp_path, "modle: {width: 64}\n"), "optimizer.kind=sgd", "nonsense")
    assert [line.split(":")[0].split("=")[0] for line in lines] == ["nonsense", "modle.width", "optimizer.kind"]


@pytest.mark.parametrize("text", ["[1, 2]", "a: [", "\x00", "3"])
def test_what_is_not_a_mapping_is_one_line(tmp_path, text):
    assert len(refusal(write(tmp_path, text))) == 1


def test_a_missing_file_is_one_line(tmp_path):
    assert refusal(tmp_path / "none.yaml") == [
        f"{tmp_path}/none.yaml: no such configuration file; `codelength init` lists the presets"
    ]


def test_a_file_that_includes_itself_is_refused(tmp_path):
    assert "include itself" in refusal(write(tmp_path, "include: config.yaml\n"))[0]


def test_command_line_wins_over_file_and_file_over_what_it_includes(tmp_path):
    (tmp_path / "base.yaml").write_text("model: {width: 32, layers: 5}\nseed: 1\n")
    config = load_config(write(tmp_path, "include: base.yaml\nmodel: {layers: 6}\n"), ["seed=3"])
    assert (config.model.width, config.model.layers, config.seed) == (32, 6, 3)


def test_a_saved_configuration_reads_back_equal(tmp_path):
    config = load_config(ROOT / "configs" / "demo.yaml", ["corpus.subset_bytes=1000", "optimizer.clip_norm=0.5"])
    assert load_config(write(tmp_path, dump_config(config))) == config


def test_changed_keys_names_both_values():
    path = ROOT / "configs" / "demo.yaml"
    assert changed_keys(load_config(path), load_config(path, ["seed=7"])) == ["seed: 0 -> 7"]


def test_muon_refuses_the_adam_coupling():
    lines = refusal(ROOT / "configs" / "demo.yaml", "rule.coupling=adam")
    assert len(lines) == 1 and lines[0].startswith("rule.coupling=adam: Muon orthogonalises")


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_every_preset_is_valid(path):
    load_config(path)


@pytest.mark.parametrize(("name", "millions"), [("ut308", 308.2), ("ut25", 24.9), ("ut4", 3.9)])
def test_published_sizes_have_the_published_parameters(name, millions):
    import torch

    config = load_config(ROOT / "configs" / f"wiki40b-{name}.yaml")
    with torch.device("meta"):
        model = Transformer(config.model, 256)
    assert model.num_parameters / 1e6 == pytest.approx(millions, abs=0.06)


def test_published_schedules():
    table = {"300MB": (299_958_272, 20, 3), "1232MB": (1_231_945_728, 4, 1), "6160MB": (6_159_990_784, 1, 0.15)}
    for run in read_sweep(ROOT / "configs" / "sweeps" / "wiki40b.yaml").runs:
        config = run.config
        chosen = config.corpus.subset_bytes, config.train.epochs, config.train.finetune_epochs
        assert chosen == table[run.name.partition("_")[0]]
        assert (config.train.batch_sequences, config.optimizer.learning_rate) == (128, 3e-4)
    assert (chosen, load_config("wiki40b-ut4").train.epochs) == (table["6160MB"], 1)


WITHOUT_MEASURE = {
    "seed": [2**70, -(2**70), 10**400],
    "optimizer.learning_rate": [1e300, "nan", "inf", 10**400],
    "optimizer.warmup_tokens": [2**62],
    "train.epochs": [1e300, "inf"],
    "train.retrain_epochs": [1e300],
    "rule.alpha": [1e300, "nan"],
    "model.width": [2**62],
    "eval.max_cache_bytes": [2**63],
    "train.retrain_at": [["nan"]],
}


@pytest.mark.parametrize("key", WITHOUT_MEASURE)
def test_numbers_without_measure_are_refused_in_a_line_each(key):
    for value in WITHOUT_MEASURE[key]:
        value = float(value) if isinstance(value, str) else value
        value = [float(entry) for entry in value] if isinstance(value, list) else value
        with pytest.raises(UsageError) as caught:
            config_from({key: value})
        assert any(line.startswith(f"{key}=") for line in str(caught.value).splitlines())
