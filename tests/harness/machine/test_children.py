import os
import subprocess
import sys

from harness.machine.children import child_environment
from tests.support.commands import ROOT


def path_of_a_child(folder) -> list[str]:
    command = [sys.executable, "-c", "import sys; print(sys.path)"]
    done = subprocess.run(command, cwd=folder, env=child_environment(), capture_output=True, text=True, check=True)
    return [os.path.realpath(entry) for entry in eval(done.stdout)[1:]]


def test_packages_that_a_cluster_names_are_found_after_our_own(monkeypatch, tmp_path):
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "module"))
    assert path_of_a_child(tmp_path)[:2] == [str(ROOT), str(tmp_path / "module")]


def test_the_folder_of_a_child_is_not_searched_for_packages(monkeypatch, tmp_path):
    monkeypatch.delenv("PYTHONPATH", raising=False)
    found = path_of_a_child(tmp_path)
    assert found[0] == str(ROOT) and str(tmp_path) not in found
