"""The wheel is the whole product: presets, templates of jobs, types, and every room."""

import os
import shutil
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from harness.config.run import load_config
from launch.main import main
from tests.support.commands import ROOT

SMALL = (
    "model.width=16",
    "model.layers=1",
    "model.heads=1",
    "model.context=64",
    "eval.chunk_bytes=64",
    "train.epochs=1",
    "prune.kind=none",
    "train.finetune_epochs=0",
    "corpus.subset_bytes=4000",
    "corpus.heldout_bytes=500",
)


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A folder in which the unpacked wheel lies, as pip leaves it, and nothing else of a clone."""
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    for name in ("harness", "eval", "launch", "configs", "slurm"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    done = subprocess.run([*build, "-w", source, source], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = source.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder)
    return folder


@pytest.fixture(scope="module")
def bare(tmp_path_factory, installed) -> Path:
    """A folder of packages as `pip install` leaves it without extras: those that this one requires, and theirs."""
    folder, todo, seen = tmp_path_factory.mktemp("bare"), ["codelength"], set()
    while todo:
        name = todo.pop()
        found = metadata.distribution(name)
        wanted = metadata.PathDistribution(next(installed.glob("*.dist-info"))) if name == "codelength" else found
        seen.add(name)
        requirements = [Requirement(line) for line in wanted.requires or []]
        needed = {r.name for r in requirements if not r.marker or r.marker.evaluate({"extra": ""})}
        todo += sorted(needed - seen - {*todo})
        for part in {path.parts[0] for path in found.files or []} if name != "codelength" else ():
            if part not in ("..", "__pycache__") and not (folder / part).exists():
                (folder / part).symlink_to(found.locate_file(part))
    assert "omegaconf" not in seen and "pyarrow" not in seen
    return folder


def bare_command(installed: Path, bare: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    """A command of the wheel where nothing but what it requires is installed."""
    environment = os.environ | {"PYTHONPATH": f"{installed}{os.pathsep}{bare}"}
    command = [sys.executable, "-S", "-P", "-m", "launch", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def test_a_bare_environment_decodes_and_names_the_extra_for_the_rest(installed, bare, tmp_path):
    archive = str(ROOT / "tests" / "golden" / "portable.cl")
    done = bare_command(installed, bare, tmp_path, "decompress", archive, "-o", "text", "--quiet")
    assert (done.returncode, done.stderr) == (0, "")
    assert b"What is claimed decodes" in (tmp_path / "text").read_bytes()
    shape = [text for text in SMALL if text.startswith(("model", "eval"))]
    # The sources of the clone are those of the wheel.
    sent = tmp_path / "text.clo"
    assert main(["send", "wiki-mini", str(tmp_path / "text"), "-o", str(sent), "--quiet", *shape]) == 0
    done = bare_command(installed, bare, tmp_path, "receive", "text.clo", "-o", "received", "--quiet")
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "received").read_bytes() == (tmp_path / "text").read_bytes()
    for command in (("train", "demo"), ("table", "runs/demo")):
        done = bare_command(installed, bare, tmp_path, *command)
        assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
        assert "which is not installed; pip install 'codelength[train]'" in done.stderr


def codelength(installed: Path, folder: Path, *arguments: str) -> str:
    """A command of the unpacked wheel, which must not find the clone."""
    program = "import sys, harness, launch.main; print(harness.__file__, file=sys.stderr); sys.exit(launch.main.main())"
    command = [sys.executable, "-P", "-c", program, *arguments]
    done = subprocess.run(
        command, cwd=folder, env=os.environ | {"PYTHONPATH": str(installed)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[0] == str(installed / "harness" / "__init__.py")
    return done.stdout


def test_presets_are_found_by_name_and_written_to_be_edited(installed, tmp_path):
    # Folders of such a name are no files.
    (tmp_path / "wiki-mini").mkdir()
    program = (
        "import harness, sys\nfrom launch.main import main\nprint(harness.__file__)\n"
        "sys.exit(main(['init']) or main(['init', 'wiki40b-ut4', '-o', 'mine.yaml']) or main(['init', 'wiki-mini']))"
    )
    environment = os.environ | {"PYTHONPATH": str(installed)}
    command = [sys.executable, "-P", "-c", program]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    place, *printed = done.stdout.split()
    assert place == str(installed / "harness" / "__init__.py") and "wiki-mini" in printed
    assert load_config(tmp_path / "mine.yaml") == load_config(ROOT / "configs" / "wiki40b-ut4.yaml")
    assert (tmp_path / "wiki-mini.yaml").read_bytes() == (ROOT / "configs" / "wiki-mini.yaml").read_bytes()


def test_a_run_of_a_preset_is_trained_and_an_earlier_file_is_read(installed, tmp_path):
    program = (
        "import codelength as cl\n"
        f"run = cl.train(cl.load_config('demo', ['name=wheel', *{SMALL}]))\n"
        f"text = cl.decompress({str(ROOT / 'tests' / 'golden' / 'portable.cl')!r})\n"
        "print(cl.__file__, run.online.ideal_bits > 0, len(text) > 0)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(installed)}
    done = subprocess.run(
        [sys.executable, "-P", "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"{installed}/codelength/__init__.py True True"


def test_jobs_are_submitted_without_a_clone(installed, tmp_path):
    text = codelength(installed, tmp_path, "submit", "demo", "--dry-run")
    assert text.startswith("#!/bin/bash") and "harness.train" in text
