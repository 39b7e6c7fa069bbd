"""`import codelength` does what the commands do, with names that stay."""

import re
import subprocess
import sys

import codelength as cl
import numpy as np
import pytest
import torch

from tests.support.commands import ROOT

TINY = (
    "model.width=32",
    "model.layers=1",
    "model.heads=1",
    "model.context=64",
    "train.batch_sequences=4",
    "train.epochs=1",
    "train.finetune_epochs=0",
    "prune.kind=none",
    "eval.chunk_bytes=64",
    "corpus.subset_bytes=8000",
    "corpus.heldout_bytes=1000",
)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("api")
    return cl.load_config(ROOT / "configs" / "demo.yaml", [*TINY, f"runs_dir={folder}/runs", f"data_dir={folder}/data"])


@pytest.fixture(scope="module")
def run(config):
    return cl.train(config)


def test_every_promised_name_is_there_and_nothing_heavy_is_imported_before_it_is_used():
    program = "import sys, codelength; print('torch' in sys.modules, codelength.__version__, len(dir(codelength)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", cl.__version__, str(len(cl.__all__))]
    for name in cl.__all__:
        assert getattr(cl, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        _ = cl.nonsense


def test_a_run_holds_its_ledger_its_weights_and_the_length_of_its_codes(run):
    nats = sum(table["nats_sum"].to_numpy().sum() for table in run.ledger(["nats_sum"]))
    assert nats / np.log(2) == pytest.approx(run.online.aulc_bits, rel=1e-12)
    assert run.online.raw_bytes == 8000 and run.config.model.width == 32
    assert all(weights.dtype == np.float32 for weights in run.weights().values())
    with pytest.raises(cl.UsageError, match="codelength eval"):
        _ = run.report
    report = cl.evaluate(run.directory, ["eval.lanes=8"], threads=2)
    # Another run, trained in this process, would else be another one.
    assert torch.get_num_threads() == 1
    lengths = run.lengths()
    assert lengths["offline"].total_bytes == report["offline"]["total_bytes"]
    assert (lengths["offline"].kind, lengths["online"].kind, lengths["projected"].kind) == (
        "decoded",
        "ideal",
        "projected",
    )
    assert lengths["online"].total_bytes == pytest.approx(run.online.ideal_bits / 8)
    assert lengths["lzma2_whole"].kind == "decoded"


@pytest.mark.parametrize("page", ["README.md", "docs/guide.md"])
def test_the_lines_of_a_page_work(config, run, capsys, page):
    program = (ROOT / page).read_text().split("```python\n")[1].split("```")[0]
    small = [*TINY, f"runs_dir={config.runs_dir}", f"data_dir={config.data_dir}"]
    program = re.sub(r'load_config\("[^"]+", \[.+?\]\)', f'load_config("demo", {small!r})', program)
    exec(compile(program, page, "exec"), {})
    printed = capsys.readouterr().out
    wanted = ("offline decoded", "online ideal", "lzma2_whole decoded") if page == "README.md" else ("decoded",)
    assert all(words in printed for words in wanted)


def test_texts_go_into_files_and_come_back(run, config, tmp_path):
    text = (ROOT / "LICENSE").read_bytes()[:3000]
    length = cl.compress(run.directory, text, tmp_path / "text.cl", threads=1)
    assert length.total_bytes == (tmp_path / "text.cl").stat().st_size and length.kind == "coded"
    assert cl.decompress(tmp_path / "text.cl", threads=1) == text
    (tmp_path / "text").write_bytes(text)
    report = cl.send(config, tmp_path / "text.clo", tmp_path / "text")
    assert report["file_bytes"] == (tmp_path / "text.clo").stat().st_size
    assert cl.receive(tmp_path / "text.clo") == text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["text", "text.cl", "text.clo"]


def test_points_of_a_loss_curve_have_a_length():
    tokens = np.array([1, 10, 100, 1000])
    length = cl.online_length(tokens, 2 + tokens**-0.5, num_tokens=1000)
    assert length.total.estimate_nats > length.plotted.estimate_nats > 0
    with pytest.raises(cl.UsageError, match="give two lists of equal length"):
        cl.online_length([1, 2, 3], [1.0, 2.0])
    with pytest.raises(cl.UsageError, match="must increase"):
        cl.online_length([1, 3, 2], [1.0, 2.0, 3.0])


def test_a_kind_that_says_nothing_is_refused():
    with pytest.raises(ValueError, match="use one of decoded, coded, ideal, projected"):
        cl.Length(0, 1, "measured")
