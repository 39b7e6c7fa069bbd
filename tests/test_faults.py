"""A call of the file system that fails does no harm: a sample of what `python -m tests.faults.run` tries."""

import shutil
import subprocess
import sys

import pytest

from tests.support.commands import ROOT


@pytest.mark.skipif(shutil.which("cc") is None, reason="the calls are failed by a library that a C compiler makes")
def test_calls_that_fail_do_no_harm():
    command = [sys.executable, "-m", "tests.faults.run", "--share", "0.001", "--seed", "3", "train"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr + done.stdout
    assert done.stdout.splitlines()[-1] == "no wrong output, nothing lost, one line each"
