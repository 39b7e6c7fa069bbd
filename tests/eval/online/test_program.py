"""The program of a receiver: what is counted of it receives, and nothing but that is counted."""

import ast
import re

import pytest

from eval.online.program import program_bytes, receiver_program, receiver_sources
from harness.config.run import RunConfig, load_config
from launch.main import main
from tests.support.commands import ROOT
from tests.support.processes import python, result_of

# What the counted files leave open is how they are called.
RECEIVE = """
import sys
from pathlib import Path
from eval.online.file import read_online_file
from eval.online.receive import receive
from harness.job import joined_job
path, output = map(Path, sys.argv[1:])
with joined_job(read_online_file(path)[1]) as ranks:
    receive(path, output, ranks, lambda done, total: None)
root = Path.cwd()
print(*sorted(str(Path(m.__file__).relative_to(root)) for n, m in sys.modules.items() if n[:5] in ("harne", "eval.")))
"""
SHAPE = ("model.width=32", "model.layers=1", "model.heads=1", "model.context=64", "eval.chunk_bytes=64")
TRAINING = (
    "train.batch_sequences=4",
    "train.replays=1",
    "rule.kind=rl1",
    "rule.alpha=0.1",
    "optimizer.warmup_tokens=512",
)
# No experts: those that mix take half a minute to compile.
ONLINE = ("online.segment_steps=3", "online.calibrate=true")


def configured(*settings: str) -> RunConfig:
    return load_config("demo", [*SHAPE, *TRAINING, *ONLINE, *settings])


@pytest.fixture(scope="module")
def program() -> dict[str, str]:
    return receiver_program(configured())


def test_the_counted_files_alone_receive_in_a_fresh_process(program, tmp_path):
    text, file, output, folder = (tmp_path / name for name in ("text", "text.clo", "out", "program"))
    text.write_bytes((ROOT / "LICENSE").read_bytes()[:2000])
    assert main(["send", "configs/demo.yaml", str(text), *SHAPE, *TRAINING, *ONLINE, "-o", str(file), "--quiet"]) == 0
    for name, content in program.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    done = result_of(python("-P", "-c", RECEIVE, file, output, cwd=folder, env={"PYTHONPATH": str(folder)}))
    assert done.returncode == 0, done.stderr
    assert output.read_bytes() == text.read_bytes()
    used = set(done.stdout.split())
    assert {"eval/online/receive.py", "harness/learner.py"} < used <= program.keys()


def test_what_receiving_does_not_run_is_not_counted(program):
    text = "\n".join(program.values())
    for name in ("send", "open_input", "train_run", "prepare_data", "write_online_file", "tamade", "RangeEncoder"):
        assert not re.search(rf"(def|class) {name}\b", text), name
    for content in program.values():
        tree = ast.parse(content)
        assert " = " not in content and '"""' not in content
        nodes = [n for n in ast.walk(tree) if isinstance(n, ast.Module | ast.ClassDef | ast.FunctionDef)]
        assert not any(ast.get_docstring(node) for node in nodes)
    sources = {str(path.relative_to(ROOT)): path.read_text() for path in receiver_sources()}
    assert sum(map(len, program.values())) < 0.6 * sum(map(len, sources.values()))
    assert not any(re.search(r"raise \w+\(f['\"]", content) for content in program.values())


def test_a_code_is_charged_with_what_its_settings_need():
    plain, mixture = configured("rule.kind=none", "rule.alpha=0"), load_config("wiki-mini-online")
    assert 30_000 < program_bytes(plain) < program_bytes(configured()) < program_bytes(mixture) <= 45_500
    assert program_bytes(plain) < program_bytes(load_config("wiki-mini", ["backend.name=deepspeed"]))
    of_plain, of_mixture = receiver_program(plain), receiver_program(mixture)
    hybrid, needed = receiver_program(configured("online.start=first.cl")), "eval/weights/kernel.py"
    assert "def code_rows(" in hybrid[needed] and "def new_model(" in hybrid[needed]
    assert needed not in of_plain
    assert "harness/online/ngram.py" in of_mixture.keys() - of_plain.keys()


def test_a_method_that_nothing_names_is_not_counted_and_the_rest_of_its_class_is(program):
    text = "\n".join(program[f"harness/{name}.py"] for name in ("run/checkpoint", "config/run"))
    assert "def problems(" in program["harness/config/run.py"]
    assert "def describe(" not in text and "deepspeed.py" not in " ".join(program)
    functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)]
    assert functions and not any(node.returns for node in functions)


def test_a_registration_is_counted_though_nothing_names_it(program):
    """numba looks the data model of a type up by the type."""
    assert "@register_model(Vector)" in program["eval/kernels/vectors.py"]
