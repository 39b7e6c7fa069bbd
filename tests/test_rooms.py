"""The walls of the house: who may import whom, and how large a room, a file and a function may be."""

import ast
import tomllib
from collections import Counter
from graphlib import TopologicalSorter

import pytest

from tests.support.commands import ROOT
from tests.support.rooms import FLOORS, MODULES, arrows, imported, length

MOST_FILES, MOST_LINES, MOST_LINES_OF_A_FUNCTION = 9, 320, 55


def test_no_arrow_points_up():
    floors = {floor: number for number, floor in enumerate(FLOORS)}
    for module in MODULES:
        up = [other for other in imported(module) if floors[other.split(".")[0]] > floors[module.split(".")[0]]]
        assert not up, f"{module} imports {up}"


def test_rooms_import_one_another_in_no_circle():
    order = list(TopologicalSorter(arrows()).static_order())
    assert order.index("harness.errors") < order.index("harness.train") < order.index("launch.main")


@pytest.mark.parametrize("module", MODULES)
def test_no_file_and_no_function_is_long(module):
    assert MODULES[module].body[-1].end_lineno <= MOST_LINES
    for node in ast.walk(MODULES[module]):
        if isinstance(node, ast.FunctionDef):
            assert length(node) <= MOST_LINES_OF_A_FUNCTION, node.name


def test_no_room_is_crowded():
    files = Counter(module.rpartition(".")[0] for module in MODULES)
    assert {name: count for name, count in files.items() if count > MOST_FILES} == {}


def test_every_room_is_installed():
    configs = {"codelength.configs", "codelength.configs.studies", "codelength.configs.sweeps"}
    product = configs | {"codelength", "codelength.slurm"}
    rooms = {path.parent for floor in FLOORS for path in (ROOT / floor).rglob("__init__.py")} - {
        ROOT / "launch" / "api"
    }
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    assert sorted(listed) == sorted(product | {".".join(path.relative_to(ROOT).parts) for path in rooms})
