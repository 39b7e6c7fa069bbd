"""Types are those that the code says: mypy, as `make lint` runs it."""

import subprocess
import sys

from tests.support.commands import ROOT


def test_types_are_checked():
    done = subprocess.run([sys.executable, "-m", "mypy"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
