"""Where runs and data lie: relative paths keep their meaning in other folders and where a whole tree was moved."""

import json
import resource
from pathlib import Path

import pytest

from harness.errors import RunFailure
from harness.files import replacing, write_file
from harness.run.directory import load_run_config, open_run_data
from launch.main import main

CONFIG = """
corpus: {kind: files, path: text.txt, heldout_bytes: 1000}
model: {width: 32, layers: 1, heads: 1}
train: {batch_sequences: 16, finetune_epochs: 0, precision: fp32}
eval: {lanes: 8, ideal: true}
"""


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """A folder with a text, data and a trained run; nothing in its configuration is an absolute path."""
    tree = tmp_path_factory.mktemp("here")
    (tree / "text.txt").write_bytes(bytes(range(97, 123)) * 300)
    (tree / "config.yaml").write_text(CONFIG)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tree)
        assert main(["train", "config.yaml"]) == 0
    return tree


def test_a_run_is_evaluated_from_another_folder(tree, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["eval", "--quiet", str(tree / "runs" / "run"), "eval.online=true"]) == 0, capsys.readouterr().err
    report = json.loads((tree / "runs" / "run" / "report.json").read_text())
    assert report["data"]["train_bytes"] == 6800 and report["online"]["verified"]
    assert list(tmp_path.iterdir()) == []


def test_a_tree_that_was_moved_is_found_again(tree, tmp_path, monkeypatch):
    moved = tree.rename(tmp_path / "there")
    monkeypatch.chdir(tmp_path)
    run_dir = Path("there/runs/run")
    data = open_run_data(run_dir, load_run_config(run_dir))
    assert data.directory.parent == moved / "data" and data.train.raw_bytes == 6800
    moved.rename(tree)


def test_a_file_that_is_larger_than_allowed_is_named(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"before")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large") as caught, replacing(path) as file:
            file.write(bytes(100_000))
        with pytest.raises(
            RunFailure, match=f"{path}: not written .File too large: raise it with .ulimit -f..; nothing was changed"
        ):
            write_file(path, bytes(2000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.filename == str(path)
    assert path.read_bytes() == b"before" and list(tmp_path.iterdir()) == [path]
