"""Codes of labels: closed forms, files that decode, and one table with the kind of each."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from eval.labels.archive import read_label_archive
from eval.labels.evaluate import ARCHIVE_FILE, label_codes
from eval.labels.figures import draw, read_curve
from eval.labels.table import render_codes
from harness.errors import UsageError
from harness.rules.variational import bound_gradients, kl_nats
from tests.support.labels import coded_labels, labelled_set, settings
from tests.support.online import killed_now_and_then, run
from tests.support.ranks import assert_same_run

SPARSE = ("rule.kind=rl1", "rule.coupling=adam", "rule.alpha=1e-4", "prune.kind=tamade", "train.finetune_epochs=2")


@pytest.fixture(scope="module")
def labels(tmp_path_factory):
    return labelled_set(tmp_path_factory.mktemp("set") / "set.npz")


@pytest.fixture(scope="module")
def many_labels(tmp_path_factory):
    """As many as are worth a model."""
    return labelled_set(tmp_path_factory.mktemp("many") / "set.npz", num_rows=2040)


def trained(folder, labels, name, *more):
    settings_ = settings(folder, labels, f"name={name}", "train.epochs=4", "train.replays=0", *more)
    assert run("train", *settings_, "train.log_every_steps=100") == 0
    return folder / name


def test_all_codes_of_a_run_stand_in_one_table_and_the_files_decode(many_labels, tmp_path):
    sparse = trained(tmp_path, many_labels, "sparse", *SPARSE)
    small = trained(tmp_path, many_labels, "small", "model.subspace=40", "optimizer.learning_rate=0.05")
    codes = [code for path in (sparse, small) for code in label_codes(path)]
    lengths = {(code.run, code.code): code for code in codes}
    for name in ("sparse", "small"):
        uniform, online = lengths[name, "uniform"].length, lengths[name, "prequential"].length
        assert uniform.total_bits == pytest.approx(2000 * math.log2(4)) and online.total_bits < uniform.total_bits
    coded = lengths["sparse", "two-part, as coded (rl1)"]
    assert coded.length.kind == "decoded" and coded.accuracy > 0.9 and coded.compression_ratio > 2
    assert coded.length.total_bytes == (sparse / ARCHIVE_FILE).stat().st_size
    assert coded.length.total_bytes < lengths["sparse", "two-part, float32"].length.model_bytes / 4
    # 32 bits a coordinate are what makes a subspace look bad.
    floats, own = (lengths["small", f"subspace of 40, {kind}"].length for kind in ("float32", "as coded (none)"))
    assert floats.model_bytes == 160 and own.model_bytes < 80 and own.data_bytes < 1.2 * floats.data_bytes + 8
    shown = render_codes(codes, "md")
    assert "| decoded |" in shown and "| ideal |" in shown and shown.index("uniform") > shown.index("float32")
    assert len(json.loads((small / "labels" / "labels.json").read_text())["codes"]) == 4
    # A point for each size of a subspace, and a curve for each run.
    larger = [replace(code, subspace=2 * code.subspace) for code in codes if code.subspace]
    pictures = draw(tmp_path / "figures", [sparse, small], codes + larger)
    assert len(pictures) == 2 and all(path.stat().st_size for path in pictures)
    curve = read_curve(small)
    assert curve.bits.sum() == pytest.approx(lengths["small", "prequential"].length.total_bits, abs=8)
    assert len(curve.bits) == 2000 and curve.uniform_bits == 2


def test_archives_of_labels_refuse_other_inputs_and_damage(labels, tmp_path, capsys):
    path = trained(tmp_path, labels, "run", "model.architecture=softmax")
    label_codes(path)
    archive, output = path / ARCHIVE_FILE, tmp_path / "labels"
    other = labelled_set(tmp_path / "other.npz", seed=3)
    capsys.readouterr()
    assert run("decompress", archive, "-o", output, "--inputs", labels, "--quiet") == 0
    assert output.read_bytes() == coded_labels(labels)
    output.unlink()
    damaged = tmp_path / "damaged.cl"
    damaged.write_bytes(archive.read_bytes()[:-40])
    for arguments, words in (
        ((archive, "--inputs", other), "not the inputs that the sender had"),
        ((archive,), "name the set by --inputs"),
        ((damaged, "--inputs", labels), "fetch it again"),
    ):
        assert run("decompress", *arguments, "-o", output, "--quiet") == 2
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1 and not output.exists()
    with pytest.raises(UsageError, match="memory"):
        read_label_archive(archive, str(labels), max_memory_bytes=1000)
    assert run("eval", path) == 2 and "use `codelength labels" in capsys.readouterr().err


def gaussian_regression():
    """Orthogonal inputs, noise of variance 1, prior N(0, s0^2): the posterior is diagonal and known."""
    generator = np.random.default_rng(4)
    x = np.linalg.qr(generator.normal(size=(30, 3)))[0] * np.array([1.0, 2.0, 4.0])
    y, prior = x @ np.array([0.3, -0.2, 0.5]) + generator.normal(size=30), 0.7
    precision = (x**2).sum(0) + prior**-2
    return x, y, prior, (x.T @ y) / precision, precision**-0.5


def bound_nats(x, y, prior, mean, deviation):
    """Closed form of the variational bound of the regression, the KL by the subject."""
    kl = kl_nats(torch.tensor(mean), torch.tensor(deviation), prior)
    errors = ((y - x @ mean) ** 2).sum() + ((x**2) @ deviation**2).sum()
    return float(kl) + 0.5 * errors + 0.5 * len(y) * math.log(2 * math.pi)


def test_the_variational_bound_is_the_evidence_at_its_optimum_and_above_it_elsewhere():
    x, y, prior, mean, deviation = gaussian_regression()
    covariance = np.eye(len(y)) + prior**2 * x @ x.T
    evidence = 0.5 * (y @ np.linalg.solve(covariance, y) + np.linalg.slogdet(2 * np.pi * covariance)[1])
    assert abs(bound_nats(x, y, prior, mean, deviation) - evidence) < 1e-9
    for shift, factor in ((0.1, 1.0), (0.0, 1.3), (0.0, 0.8)):
        assert bound_nats(x, y, prior, mean + shift, deviation * factor) > evidence + 1e-3


def test_variational_gradients_are_central_differences():
    generator = torch.Generator().manual_seed(1)
    means, rhos, noise, target = (torch.randn(5, generator=generator, dtype=torch.float64) for _ in range(4))
    num_labels, prior = 40, 0.3

    def objective(m, r):
        deviation = torch.nn.functional.softplus(r)
        return (m + deviation * noise - target).pow(4).sum() + kl_nats(m, deviation, prior) / num_labels

    slope = 4 * (means + torch.nn.functional.softplus(rhos) * noise - target).pow(3)
    of_means, of_rhos = bound_gradients(torch.stack([means, rhos]), noise, slope, 1 / num_labels, prior)
    for index in range(5):
        step = torch.zeros(5, dtype=torch.float64)
        step[index] = 1e-5
        by_mean = (objective(means + step, rhos) - objective(means - step, rhos)) / 2e-5
        by_rho = (objective(means, rhos + step) - objective(means, rhos - step)) / 2e-5
        assert abs(by_mean - of_means[index]) < 1e-6 * max(1, abs(by_mean))
        assert abs(by_rho - of_rhos[index]) < 1e-6 * max(1, abs(by_rho))


def test_a_variational_run_is_shorter_than_uniform_and_goes_on_with_the_same_bits(labels, tmp_path, capsys):
    own = ("model.architecture=softmax", "rule.kind=variational", "rule.prior=0.5", "train.epochs=8")
    job = settings(tmp_path, labels, *own, "train.replays=0", "optimizer.learning_rate=0.05")
    assert run("train", *job, "name=whole") == 0
    often = [*job, "name=killed", "train.checkpoint_minutes=1e-9"]
    killed_now_and_then(["train", *often], tmp_path / "killed" / "checkpoints", 1, seed=3)
    assert_same_run(tmp_path / "killed", tmp_path / "whole")
    uniform, _, code = label_codes(tmp_path / "whole")
    assert code.code == "variational, prior 0.5" and code.length.kind == "ideal"
    assert code.length.model_bytes > 0 and code.length.data_bytes > 0 and code.accuracy > 0.9
    assert code.length.total_bits < uniform.length.total_bits
    assert run("train", *job, "name=bad", "rule.alpha=1", "optimizer.kind=muon") == 2
    error = capsys.readouterr().err
    assert "leave out rule.alpha" in error and "use optimizer.kind=adamw" in error


@pytest.mark.parametrize(
    ("own", "name"),
    [
        (("rule.kind=variational", "optimizer.learning_rate=0.003"), "variational, prior 0.1"),
        (("rule.kind=none", "model.subspace=400", "optimizer.learning_rate=0.2"), "subspace of 400, coordinates coded"),
    ],
)
def test_a_text_has_variational_and_subspace_codes_too(tmp_path, own, name):
    model = ("model.width=16", "model.layers=1", "model.heads=1", "model.context=64", "eval.chunk_bytes=64")
    corpus = ("corpus.subset_bytes=4000", "corpus.heldout_bytes=500", f"runs_dir={tmp_path}", f"data_dir={tmp_path}/d")
    plain = ("optimizer.kind=adamw", "prune.kind=none", "train.finetune_epochs=0", "rule.alpha=0", "rule.ramp=0")
    plain = (*plain, "online.ema=0")
    assert run("train", "demo", *model, *corpus, *plain, *own, "name=text", "train.epochs=3") == 0
    codes = {code.code: code.length for code in label_codes(tmp_path / "text")}
    assert codes["uniform"].total_bits == 8 * 4000 and codes[name].kind == "ideal"
    assert codes["prequential"].total_bits < 8 * 4000 and codes[name].model_bytes > 0
    assert codes[name].data_bytes < 4000
    if name.startswith("subspace"):
        assert run("eval", tmp_path / "text") == 2
        assert run("send", "demo", *model, *corpus, *plain, *own, "-o", tmp_path / "x.clo") == 2
        assert codes[name].total_bits < codes["subspace of 400, float32"].total_bits
