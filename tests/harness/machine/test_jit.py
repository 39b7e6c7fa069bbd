"""Compiled functions are kept on disk by what their sources say, not by where these lie."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.support.commands import ROOT

USE = """
from harness.machine import jit
import kernel
assert kernel.doubled(2) == {value}
print(sum(kernel.doubled.stats.cache_hits.values()))
"""


def hits(clone: Path, cache: Path, value: int) -> int:
    """How many functions a fresh process in `clone` had not to compile."""
    env = os.environ | {"PYTHONPATH": str(clone), "XDG_CACHE_HOME": str(cache)}
    done = subprocess.run([sys.executable, "-c", USE.format(value=value)], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_another_clone_compiles_nothing_again_and_other_sources_do(tmp_path):
    clones = []
    for name, factor in (("first", 2), ("second", 2), ("changed", 3)):
        clone = tmp_path / name
        shutil.copytree(ROOT / "harness", clone / "harness", ignore=shutil.ignore_patterns("__pycache__"))
        source = f"from harness.machine.jit import compiled\n\n\n@compiled\ndef doubled(x):\n    return {factor} * x\n"
        (clone / "kernel").mkdir()
        (clone / "kernel/__init__.py").write_text(source)
        clones.append(clone)
    cache = tmp_path / "cache"
    assert [hits(clone, cache, value) for clone, value in zip(clones, (4, 4, 6), strict=True)] == [0, 1, 0]
