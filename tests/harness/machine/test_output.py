"""What commands print on stdout of any encoding: everything, and nothing that ends them."""

import io
import json
import sys

import pytest

from harness.train import main as train
from launch.main import main
from tests.support.reports import report

CURVE = ["curve", "docs/results/llama-65b.csv", "--unit", "nats", "--tokens", "1.4e12"]
# A name of Latin-1, one beyond it, and one that is no text at all, as paths can be.
NAMES = {"latin": "caf\u00e9", "chinese": "\u4e2d\u6587", "bytes": "caf\udce9"}


@pytest.fixture
def printed(monkeypatch):
    """`printed(encoding, main, arguments)` is the exit status and what came out on stdout of that encoding."""

    def run(encoding: str, program, arguments: list[str]) -> tuple[int, str]:
        raw = io.BytesIO()
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding, errors="strict"))
            status = program(arguments)
            sys.stdout.flush()
            return status, raw.getvalue().decode(encoding)

    return run


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "koi8-r", "utf-8"])
@pytest.mark.parametrize("fmt", ["rich", "md", "csv", "json", "latex"])
@pytest.mark.parametrize("name", NAMES)
def test_tables_are_printed_whole_in_any_encoding(printed, tmp_path, encoding, fmt, name):
    run = tmp_path / "run"
    run.mkdir()
    (run / "report.json").write_text(json.dumps(report(run=NAMES[name])))
    status, text = printed(encoding, main, ["table", str(run), str(run), "--format", fmt])
    assert status == 0 and len(text.splitlines()) >= 3
    if fmt == "json":
        assert json.loads(text)[0]["run"] == NAMES[name]
    elif encoding == "ascii":
        # What cannot be shown is told by its number, so that two names stay two.
        assert NAMES[name].encode("ascii", "backslashreplace").decode() in text
        assert ("----" in text) == (fmt == "rich")
    if fmt == "rich":
        assert ("\u2500\u2500" in text) == (encoding in ("utf-8", "koi8-r"))


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_curve_is_printed_in_any_encoding(printed, encoding):
    status, text = printed(encoding, main, CURVE)
    assert status == 0 and "Code lengths of 1,400,000,000,000 tokens" in text and "-----" in text
    assert "?" not in text


def test_training_names_its_run_in_any_encoding(printed, tmp_path):
    settings = ["corpus.subset_bytes=2000", "corpus.heldout_bytes=300", "train.batch_sequences=4", "prune.kind=none"]
    settings += ["model.width=16", "model.layers=1", "model.heads=1", "model.context=64", "eval.chunk_bytes=64"]
    settings += [f"runs_dir={tmp_path}/caf\u00e9", f"data_dir={tmp_path}/\u4e2d"]
    status, text = printed("ascii", train, ["configs/demo.yaml", *settings])
    assert status == 0 and "weights, ledger and metrics are in" in text and "caf\\xe9/demo" in text
