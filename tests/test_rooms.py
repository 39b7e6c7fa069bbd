"""The walls of the house: who may import whom, and how large a room, a file and a function may be.

`python tests/test_rooms.py` prints the table of docs/architecture.md.
"""

import ast
import tomllib
from collections import Counter, defaultdict
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = ("harness", "eval", "launch")
MOST_FILES, MOST_LINES, MOST_LINES_OF_A_FUNCTION = 9, 320, 55


def sources() -> dict[str, ast.Module]:
    """Every module of the three packages, by dotted name; packages themselves are left out."""
    paths = [path for floor in FLOORS for path in sorted((ROOT / floor).rglob("*.py")) if path.name != "__init__.py"]
    return {".".join(path.relative_to(ROOT).with_suffix("").parts): ast.parse(path.read_text()) for path in paths}


MODULES = sources()


def room(module: str) -> str:
    """A module's folder; a module beside the rooms is one by itself."""
    parts = module.split(".")
    return ".".join(parts[:-1]) if len(parts) > 2 else module


def imported(module: str) -> set[str]:
    """Modules of this project that a module imports anywhere, also inside of functions."""
    found = set()
    for node in ast.walk(MODULES[module]):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found & MODULES.keys()


def arrows() -> dict[str, set[str]]:
    """Rooms that each room imports."""
    found = defaultdict(set)
    for module in MODULES:
        found[room(module)] |= {room(other) for other in imported(module)} - {room(module)}
    return found


def length(node: ast.AST) -> int:
    return node.end_lineno - node.lineno + 1


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
    product = {"codelength", "codelength.configs", "codelength.configs.sweeps", "codelength.slurm"}
    rooms = {path.parent for floor in FLOORS for path in (ROOT / floor).rglob("__init__.py")} - {
        ROOT / "launch" / "api"
    }
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    assert sorted(listed) == sorted(product | {".".join(path.relative_to(ROOT).parts) for path in rooms})


def test_the_page_says_what_is_counted():
    page = (ROOT / "docs" / "architecture.md").read_text()
    assert table() in page


def table() -> str:
    """Markdown: of each package the rooms, files, arrows, and how many of these point up."""
    lines = ["| package | rooms | files | arrows between rooms | of these up |", "| :--- | ---: | ---: | ---: | ---: |"]
    for floor in FLOORS:
        own = {name: others for name, others in arrows().items() if name.split(".")[0] == floor}
        rooms = {name for name in own if any(m.startswith(f"{name}.") for m in MODULES)}
        inner = sum(other.split(".")[0] == floor for others in own.values() for other in others)
        up = sum(FLOORS.index(other.split(".")[0]) > FLOORS.index(floor) for others in own.values() for other in others)
        files = sum(module.split(".")[0] == floor for module in MODULES)
        lines.append(f"| {floor} | {len(rooms)} | {files} | {inner} | {up} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
