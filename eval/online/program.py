"""The program that a receiver of an online code needs: a part of the code's length, and what must not change.

Counted is what receiving can run: the definitions and methods that it reaches, without docstrings, comments and
annotations of functions, packed by xz. Python and the installed packages are not counted, as with other compressors.
"""

import ast
import lzma
import sys
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from modulefinder import ModuleFinder
from pathlib import Path
from typing import Any, TypeGuard

from harness.errors import RunFailure
from harness.files import user_cache, write_file
from harness.machine.hardware import code_sha256

ROOT = Path(__file__).parents[2]
RECEIVER = ROOT / "eval" / "online" / "receive.py"
# What a program that receives calls: it joins the ranks and rebuilds the text.
_ENTRIES = (
    ("harness.train", "joined_job"),
    ("eval.online.file", "read_online_file"),
    ("eval.online.receive", "receive"),
)


def receiver_sources() -> list[Path]:
    """All modules of this project that receiving imports, directly or through others, in alphabetical order."""
    finder = ModuleFinder(path=[str(ROOT)])
    finder.run_script(str(RECEIVER))
    return sorted(set(_files(finder).values()))


@cache
def receiver_sha256() -> str:
    """Digest of these sources, which sender and receiver must share."""
    return code_sha256(receiver_sources())


def program_bytes(backend: str = "ddp") -> int:
    """Bytes of the program that receives what `backend` has sent, each file after its name, as `xz -9e` packs them.

    They are counted once for all sources that may be part of it, and kept in the user's cache: counting takes seconds.
    """
    sources = [path for package in ("harness", "eval") for path in (ROOT / package).rglob("*.py")]
    # Versions of Python write the same program differently.
    python = ".".join(map(str, sys.version_info[:3]))
    kept = user_cache() / f"program-{backend}-{python}-{code_sha256(sources)[:32]}"
    with suppress(OSError, ValueError):
        return int(kept.read_text())
    size = _counted_bytes(backend)
    with suppress(OSError, RunFailure):
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_file(kept, str(size).encode())
    return size


def _counted_bytes(backend: str) -> int:
    content = "".join(f"{name}\n{text}\n" for name, text in receiver_program(backend).items())
    return len(lzma.compress(content.encode(), preset=9 | lzma.PRESET_EXTREME))


def receiver_program(backend: str = "ddp") -> dict[str, str]:
    """The sources of a program that receives what `backend` has sent with this version, by path; it runs as it is."""
    reached = _Reached({module for other, module in _OF_ONE_BACKEND.items() if other != backend})
    for module, name in _ENTRIES:
        reached.need(module, name)
    program = reached.sources()
    # The program has other bytes than the sources whose digest a file names.
    own = str(Path(__file__).relative_to(ROOT))
    return program | {own: f"def {receiver_sha256.__name__}():\n    return {receiver_sha256()!r}\n"}


# Imported where it is needed.
_OF_ONE_BACKEND = {"deepspeed": "harness.backends.deepspeed"}
# Methods that libraries call by name: context managers that close, and objects in place of files.
_CALLED_BY_LIBRARIES = {"close", "flush", "read", "readinto", "seek", "tell", "write"}
# Bases that call none of the methods that are added to them.
_QUIET_BASES = {"NamedTuple", "Protocol", "Exception", "ABC", "Generic", "object"}
_PLAIN_DECORATORS = {"property", "staticmethod", "classmethod", "cached_property", "abstractmethod", "contextmanager"}


def _files(finder: ModuleFinder) -> dict[str, Path]:
    """Sources of the modules that were found, by their names."""
    files = {name: vars(module)["__file__"] for name, module in finder.modules.items()}
    return {name: Path(file) for name, file in files.items() if file}


class _Module:
    """One module: which statements define its names, and which are run for their effects."""

    def __init__(self, path: Path):
        self.path = path
        self.body = ast.parse(path.read_text(encoding="utf-8")).body
        self.definitions: dict[str, list[ast.stmt]] = {}
        self.imports: dict[str, tuple[str, str | None]] = {}
        self.effects: list[ast.stmt] = []
        for statement in self.body:
            if isinstance(statement, ast.Import | ast.ImportFrom):
                self.imports |= dict(_imported(statement))
                continue
            names = _defined(statement)
            for name in names:
                self.definitions.setdefault(name, []).append(statement)
            if _registers(statement) or not (names or _is_idle(statement)):
                self.effects.append(statement)


class _Reached:
    """What running some functions can reach, without some modules: by names, so rather more than less."""

    def __init__(self, left_out: set[str]):
        finder = ModuleFinder(path=[str(ROOT)])
        for module, _ in _ENTRIES:
            finder.import_hook(module)
        self._modules = {name: _Module(path) for name, path in _files(finder).items()}
        for module in left_out:
            del self._modules[module]
        self._needed: set[tuple[str, str]] = set()
        self._touched: set[str] = set()
        # Attributes that something reached speaks of, and methods by the attribute that would reach them.
        self._attributes: set[str] = set(_CALLED_BY_LIBRARIES)
        self._unreached: dict[str, list[tuple[str, ast.stmt]]] = {}

    def need(self, module: str, name: str) -> None:
        """Reach a name of a module."""
        self._touch(module)
        if module not in self._modules or (module, name) in self._needed:
            return
        self._needed.add((module, name))
        self._touch(f"{module}.{name}")
        for statement in self._modules[module].definitions.get(name, []):
            self._visit(module, statement)
        if name in self._modules[module].imports:
            self._import(*self._modules[module].imports[name])

    def sources(self) -> dict[str, str]:
        """What was reached, by path."""
        found = {}
        for name in sorted(self._touched):
            module = self._modules[name]
            kept = [part for statement in module.body for part in self._kept(name, statement)]
            unreached = {id(method) for methods in self._unreached.values() for _, method in methods}
            text = ast.unparse(_Bare(unreached).visit(ast.Module(kept, type_ignores=[])))
            found[str(module.path.relative_to(ROOT))] = f"{text}\n" if text else ""
        return found

    def _touch(self, module: str) -> None:
        """Reach what importing a module runs."""
        if module not in self._modules or module in self._touched:
            return
        self._touched.add(module)
        self._touch(module.rpartition(".")[0])
        for statement in self._modules[module].effects:
            self._visit(module, statement)

    def _import(self, module: str, name: str | None) -> None:
        self._touch(module)
        if name:
            self.need(module, name)

    def _visit(self, module: str, statement: ast.stmt) -> None:
        imports = self._modules[module].imports
        for node in self._walked(module, statement):
            if isinstance(node, ast.Name):
                self._mention(node.id)
                self.need(module, node.id)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                # As in getattr(object, "name").
                self._mention(node.value)
            elif isinstance(node, ast.Import | ast.ImportFrom):
                for _, imported in _imported(node):
                    self._import(*imported)
            elif isinstance(node, ast.Attribute):
                self._mention(node.attr)
                if isinstance(node.value, ast.Name) and node.value.id in imports:
                    of_module, name = imports[node.value.id]
                    self.need(f"{of_module}.{name}" if name else of_module, node.attr)

    def _walked(self, module: str, statement: ast.AST) -> Iterator[ast.AST]:
        """The nodes of a statement, without annotations of functions and methods that nothing reaches yet."""
        yield statement
        if isinstance(statement, ast.ClassDef) and self._is_quiet(module, statement):
            for part in statement.body:
                if _is_plain_method(part) and part.name not in self._attributes:
                    self._unreached.setdefault(part.name, []).append((module, part))
                else:
                    yield from self._walked(module, part)
            parts: list[ast.AST] = [*statement.bases, *statement.keywords, *statement.decorator_list]
        else:
            parts = list(_unannotated(statement))
        for child in parts:
            yield from self._walked(module, child)

    def _mention(self, attribute: str) -> None:
        """Reach every method of that name."""
        self._attributes.add(attribute)
        for module, method in self._unreached.pop(attribute, []):
            self._visit(module, method)

    def _is_quiet(self, module: str, node: ast.ClassDef) -> bool:
        """Whether no library calls its methods: all its bases are of this project, or call nothing."""
        known = self._modules[module]
        for base in node.bases:
            name = base.id if isinstance(base, ast.Name) else ""
            of_module, of_name = known.imports.get(name, (module, name))
            if of_name in _QUIET_BASES:
                continue
            bases = self._modules[of_module].definitions.get(of_name or "", []) if of_module in self._modules else []
            if not bases or not all(isinstance(b, ast.ClassDef) and self._is_quiet(of_module, b) for b in bases):
                return False
        return True

    def _kept(self, module: str, statement: ast.stmt) -> Iterator[ast.stmt]:
        """The statement, or what is left of an import, or nothing."""
        if isinstance(statement, ast.Import | ast.ImportFrom):
            kept = [alias for alias in statement.names if (module, _bound(alias)) in self._needed]
            if kept:
                statement.names = kept
                yield statement
            return
        names = {(module, name) for name in _defined(statement)}
        if names & self._needed or statement in self._modules[module].effects:
            yield statement


class _Bare(ast.NodeTransformer):
    """Drops docstrings, annotations of functions, and methods by their identity; comments are in no tree."""

    def __init__(self, unreached: set[int]):
        self._unreached = unreached

    def visit(self, node: ast.AST) -> Any:
        if id(node) in self._unreached:
            return None
        self.generic_visit(node)
        if isinstance(node, ast.FunctionDef):
            node.returns = None
        if isinstance(node, ast.arg):
            node.annotation = None
        for field in ("body", "orelse", "finalbody"):
            statements = getattr(node, field, None)
            if isinstance(statements, list):
                kept = [statement for statement in statements if not _is_idle(statement)]
                is_empty = field == "body" and not kept and not isinstance(node, ast.Module)
                setattr(node, field, [ast.Pass()] if is_empty else kept)
        return node


def _is_plain_method(node: ast.AST) -> TypeGuard[ast.FunctionDef]:
    """Whether a part of a class is a method that only its name reaches."""
    if not isinstance(node, ast.FunctionDef) or node.name.startswith("__"):
        return False
    return all(isinstance(d, ast.Name) and d.id in _PLAIN_DECORATORS for d in node.decorator_list)


def _unannotated(node: ast.AST) -> Iterator[ast.AST]:
    """Children of a node that remain when annotations of functions are dropped."""
    for field, value in ast.iter_fields(node):
        if (isinstance(node, ast.FunctionDef) and field == "returns") or (
            isinstance(node, ast.arg) and field == "annotation"
        ):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield child


def _imported(statement: ast.Import | ast.ImportFrom) -> Iterator[tuple[str, tuple[str, str | None]]]:
    """Each name that an import binds, with the module and the name in it, if it is one of its names."""
    for alias in statement.names:
        if isinstance(statement, ast.ImportFrom):
            yield _bound(alias), (statement.module or "", alias.name)
        else:
            yield _bound(alias), (alias.name, None)


def _bound(alias: ast.alias) -> str:
    return alias.asname or alias.name.partition(".")[0]


def _defined(statement: ast.stmt) -> list[str]:
    """Names that a statement of a module defines, if defining is all that it does."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [statement.name]
    if not isinstance(statement, ast.Assign | ast.AnnAssign | ast.AugAssign):
        return []
    targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
    parts = [node for target in targets for node in ast.walk(target) if isinstance(node, ast.expr)]
    sets_others = any(isinstance(node, ast.Attribute | ast.Subscript) for node in parts)
    return [] if sets_others else [node.id for node in parts if isinstance(node, ast.Name)]


def _registers(statement: ast.stmt) -> bool:
    """Whether a decorator tells something else of a definition, as `@register(Other)` does."""
    return any(isinstance(call, ast.Call) and call.args for call in getattr(statement, "decorator_list", []))


def _is_idle(statement: ast.stmt) -> bool:
    """Whether a statement does nothing when it is imported: a docstring, or what is for type checkers or scripts."""
    if isinstance(statement, ast.If):
        return ast.unparse(statement.test) in ("TYPE_CHECKING", "__name__ == '__main__'")
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
