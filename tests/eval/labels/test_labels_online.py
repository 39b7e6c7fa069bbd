"""Online codes of labels: their length, round trips, and what is refused before the first label."""

import numpy as np
import pytest

from harness.config.run import load_config
from harness.errors import UsageError
from harness.run.ledger import read_online_code
from tests.support.archives import repacked
from tests.support.labels import coded_labels, labelled_set, settings
from tests.support.online import command, ended, refused, run

EVERYTHING = ("online.ema=0.9", "online.calibrate=true", "online.checkpoints=2", "online.checkpoint_steps=3")
SWITCH = ("online.models=[softmax,mlp-8x8]",)


@pytest.fixture(scope="module")
def labels(tmp_path_factory):
    return labelled_set(tmp_path_factory.mktemp("set") / "set.npz")


@pytest.mark.parametrize(
    "more", [(), EVERYTHING, SWITCH, ("train.retrain_at=[0.1,0.3]", "train.replays=0"), ("model.subspace=20",)]
)
def test_labels_come_back_from_their_code_and_the_inputs(labels, tmp_path, more):
    file, output = tmp_path / "labels.clo", tmp_path / "labels"
    assert run("send", *settings(tmp_path, labels, *more), "-o", file, "--quiet") == 0
    bare = tmp_path / "bare.npz"
    # A receiver has the inputs, and no label.
    np.savez(bare, x=np.load(labels)["x"])
    assert run("receive", file, "-o", output, "--inputs", bare, "--quiet") == 0
    assert output.read_bytes() == coded_labels(labels)


def test_two_processes_send_and_receive(labels, tmp_path):
    file, output = tmp_path / "labels.clo", tmp_path / "labels"
    assert ended(command("send", *settings(tmp_path, labels), "-o", file, "--quiet", "--processes", 2))[0] == 0
    status, _, error = ended(command("receive", file, "-o", output, "--inputs", labels, "--quiet"))
    assert status == 0, error
    assert output.read_bytes() == coded_labels(labels)


def test_labels_that_follow_from_inputs_are_short_and_fake_ones_are_not(labels, tmp_path):
    bits = {}
    for name in ("true", "fake"):
        more = (f"name={name}", f"corpus.shuffle={str(name == 'fake').lower()}")
        assert run("train", *settings(tmp_path, labels, *more)) == 0
        code = read_online_code(tmp_path / name, 200, 200)
        bits[name] = code.aulc_bits
    uniform = 200 * 2
    # No code can gain more than a few bits on labels that say nothing.
    assert bits["true"] < 0.6 * uniform < uniform - 20 < bits["fake"]


def test_other_inputs_are_refused_before_decoding(labels, tmp_path, capsys):
    file, output = tmp_path / "labels.clo", tmp_path / "labels"
    assert run("send", *settings(tmp_path, labels), "-o", file, "--quiet") == 0
    capsys.readouterr()
    other = labelled_set(tmp_path / "other.npz", seed=2)
    for given, words in (((), "name the set by --inputs"), (("--inputs", other), "not the inputs that the sender had")):
        assert run("receive", file, "-o", output, "--quiet", *given) == 2
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1 and not output.exists()

    def of_another_shape(head, sections):
        head["settings"]["model.inputs"] = "1x2x2"

    wrong = repacked(file.read_bytes(), tmp_path / "wrong.clo", of_another_shape)
    assert "model.inputs=1x2x2: the inputs of the labels are" in refused(capsys, wrong, output, "--inputs", str(other))


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("online.experts=[ngram]",), "online.experts=ngram: predicts text"),
        (("online.models=[64x2x1]",), "no other model of the same kind"),
        (("model.inputs=1x8",), "model.inputs=1x8: must look like"),
        (("model.architecture=lenet5",), "needs inputs of 16x16 pixels"),
        (("model.architecture=modern",), "use labels and a classifier together"),
        (("tokenizer.kind=bytes",), "use labels and a classifier together"),
        (("model.context=2",), "model.context=2: a label is a sequence of one token"),
        (("corpus.path=null",), "corpus.kind=labels needs it"),
    ],
)
def test_settings_that_do_not_fit_labels_are_refused(labels, tmp_path, more, words):
    with pytest.raises(UsageError) as refusal:
        load_config(*(lambda file, *rest: (file, rest))(*settings(tmp_path, labels, *more)))
    assert words in str(refusal.value)


def test_inputs_of_another_shape_are_refused_before_the_first_step(labels, tmp_path, capsys):
    assert run("train", *settings(tmp_path, labels, "model.inputs=1x4x16", "name=shape")) == 2
    assert "model.inputs=1x4x16: the inputs of the labels are 1x8x8" in capsys.readouterr().err
    assert not (tmp_path / "shape").exists()


def test_inputs_that_changed_after_preparation_are_refused(labels, tmp_path, capsys):
    assert run("data", *settings(tmp_path, labels)) == 0
    (file,) = (tmp_path / "data").glob("labels-*/train.inputs.npy")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    capsys.readouterr()
    assert run("send", *settings(tmp_path, labels), "-o", tmp_path / "x.clo", "--quiet") == 2
    assert "train.inputs.npy: not the inputs that the labels were prepared with" in capsys.readouterr().err
