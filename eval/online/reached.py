"""Which definitions of this project running some functions can reach."""

import ast
from collections.abc import Iterator
from modulefinder import ModuleFinder
from pathlib import Path
from typing import TypeGuard

ROOT = Path(__file__).parents[2]
# Methods that libraries call by name: context managers that close, and objects in place of files.
_CALLED_BY_LIBRARIES = {"close", "flush", "read", "readinto", "seek", "tell", "write"}
# Bases that call none of the methods that are added to them.
_QUIET_BASES = {"NamedTuple", "Protocol", "Exception", "ABC", "Generic", "object"}
_PLAIN_DECORATORS = {"property", "staticmethod", "classmethod", "cached_property", "abstractmethod", "contextmanager"}


def module_files(finder: ModuleFinder) -> dict[str, Path]:
    """Map the names of the modules found to their files."""
    files = {name: vars(module)["__file__"] for name, module in finder.modules.items()}
    return {name: Path(file) for name, file in files.items() if file}


class _Module:
    """One module: which statements define its names, and which are run for their effects."""

    def __init__(self, path: Path, left_out: set[str]):
        self.path = path
        self.body = _Wordless().visit(ast.parse(path.read_text(encoding="utf-8"))).body
        _cut_after_imports(self.body, left_out)
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


class Reached:
    """Finds the code that some functions can reach, leaving out some modules: by names, so rather more than less."""

    def __init__(self, entries: tuple[tuple[str, str], ...], left_out: set[str]):
        """Reach the `entries`, a module and a name in it each."""
        finder = ModuleFinder(path=[str(ROOT)])
        for module, _ in entries:
            finder.import_hook(module)
        self._modules = {name: _Module(path, left_out) for name, path in module_files(finder).items()}
        for module in left_out:
            del self._modules[module]
        self._needed: set[tuple[str, str]] = set()
        self._touched: set[str] = set()
        # Attributes that something reached speaks of, and methods by the attribute that would reach them.
        self._attributes: set[str] = set(_CALLED_BY_LIBRARIES)
        self._unreached: dict[str, list[tuple[str, ast.stmt]]] = {}
        for entry in entries:
            self.need(*entry)

    def need(self, module: str, name: str) -> None:
        """Mark a name of a module, and all that it names, as reached."""
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
        """Write the sources that were reached, by path."""
        texts = {}
        for name in sorted(self._touched):
            module = self._modules[name]
            kept = [part for statement in module.body for part in self._kept(name, statement)]
            unreached = {id(method) for methods in self._unreached.values() for _, method in methods}
            texts[str(module.path.relative_to(ROOT))] = ast.unparse(_Without(unreached).visit(ast.Module(kept, [])))
        return texts

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


class _Wordless(ast.NodeTransformer):
    """Empties the words of errors, and what looks for problems in settings: a right file leads to none."""

    def visit_Raise(self, node: ast.Raise) -> ast.Raise:
        if isinstance(node.exc, ast.Call):
            node.exc.args = [ast.Constant("") if _is_text(argument) else argument for argument in node.exc.args]
        return node

    def visit_Call(self, node: ast.Call) -> ast.Call:
        self.generic_visit(node)
        if isinstance(node.func, ast.Name) and node.func.id == "bounded":
            node.keywords = [keyword for keyword in node.keywords if keyword.arg != "words"]
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        self.generic_visit(node)
        if node.name.endswith("problems"):
            node.body = [ast.Return(ast.List([], ast.Load()))]
        return node


class _Without(ast.NodeTransformer):
    """Drops nodes by their identity; what is left of a class has at least a `pass`."""

    def __init__(self, dropped: set[int]):
        self._dropped = dropped

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef | None:
        return None if id(node) in self._dropped else node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.ClassDef:
        self.generic_visit(node)
        node.body = node.body or [ast.Pass()]
        return node


def _cut_after_imports(body: list[ast.stmt], left_out: set[str]) -> None:
    """Drop what follows the import of a module that is left out, in functions: with these settings it never runs."""
    for function in ast.walk(ast.Module(body, [])):
        for node in ast.walk(function) if isinstance(function, ast.FunctionDef) else ():
            for statements in (getattr(node, "body", None), getattr(node, "orelse", None)):
                if not isinstance(statements, list):
                    continue
                for index, statement in enumerate(statements):
                    if isinstance(statement, ast.ImportFrom) and statement.module in left_out:
                        statements[index:] = [] if index else [ast.Pass()]
                        break


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


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
