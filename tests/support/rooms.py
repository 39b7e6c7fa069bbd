"""The rooms of the house as their sources say: modules, who imports whom, and the count in docs/architecture.md."""

import ast
from collections import defaultdict

from tests.support.commands import ROOT

FLOORS = ("harness", "eval", "launch")


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


def counted() -> str:
    """Markdown: of each package the rooms, files, arrows, and how many of these point up; then every room."""
    lines = ["| package | rooms | files | arrows between rooms | of these up |", "| :--- | ---: | ---: | ---: | ---: |"]
    for floor in FLOORS:
        own = {name: others for name, others in arrows().items() if name.split(".")[0] == floor}
        rooms = {name for name in own if any(m.startswith(f"{name}.") for m in MODULES)}
        inner = sum(other.split(".")[0] == floor for others in own.values() for other in others)
        up = sum(FLOORS.index(other.split(".")[0]) > FLOORS.index(floor) for others in own.values() for other in others)
        files = sum(module.split(".")[0] == floor for module in MODULES)
        lines.append(f"| {floor} | {len(rooms)} | {files} | {inner} | {up} |")
    lines += ["", "| room | what it is for | files |", "| :--- | :--- | :--- |"]
    for path in sorted(path for floor in FLOORS for path in (ROOT / floor).glob("*/__init__.py")):
        charter = ast.get_docstring(ast.parse(path.read_text())).partition("\n")[0].partition(": only these")[0]
        files = ", ".join(sorted(other.stem for other in path.parent.glob("*.py") if other != path))
        lines.append(f"| `{path.parent.relative_to(ROOT)}/` | {charter.rstrip('.')} | {files} |")
    return "\n".join(lines)
