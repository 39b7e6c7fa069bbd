"""Pages that are made from the sources: `python -m tests.support.pages` writes them anew, and a test compares.

Made are the reference of all settings in docs/settings.md and docs/settings-codes.md, that of the teacher-student
experiment in docs/offline.md, of other studies in docs/studies.md, and the count of rooms in docs/architecture.md.
"""

import ast
import inspect
import itertools
import json
import textwrap
from collections.abc import Callable
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path

from eval.studies.config import OrderConfig, PolicyConfig
from eval.teacher.experiment import TeacherConfig
from harness.config.run import RunConfig, decides_training
from tests.support.rooms import counted

DOCS = Path(__file__).parents[2] / "docs"
BEGIN, END = "<!-- made by python -m tests.support.pages -->", "<!-- end of what is made -->"


def settings(is_here: Callable[[str], bool]) -> str:
    """Markdown: a table for each section of a run's configuration that is on a page, a row a setting."""
    plain = [setting for setting in fields(RunConfig) if not is_dataclass(setting.type)]
    parts = [section("A run", "", RunConfig, plain)] if is_here("") else []
    for setting in fields(RunConfig):
        if is_dataclass(setting.type) and is_here(setting.name):
            parts.append(section(f"`{setting.name}`", f"{setting.name}.", setting.type, fields(setting.type)))
    return "\n\n".join(parts)


def teacher_settings() -> str:
    """Markdown: the table of the teacher-student experiment's settings."""
    return section("", "", TeacherConfig, fields(TeacherConfig))


def study_settings() -> str:
    """Markdown: tables of the settings of learnt policies and orders; sections are those of a run."""
    kinds = {"`kind: policy`": PolicyConfig, "`kind: order`": OrderConfig}
    plain = {title: [s for s in fields(kind) if s.name not in ("model", "corpus")] for title, kind in kinds.items()}
    return "\n\n".join(section(title, "", kind, plain[title]) for title, kind in kinds.items())


def section(title: str, prefix: str, kind: type, settings: tuple[Field, ...] | list[Field]) -> str:
    """One heading, the first line of the class's docstring, and its table."""
    words = docstrings(kind)
    lines = [f"## {title}", inspect.getdoc(kind).splitlines()[0], ""] if title else []
    lines += ["| setting | default | what |", "|---|---|---|"]
    for setting in settings:
        key = f"{prefix}{setting.name}"
        mark = "" if kind in (TeacherConfig, PolicyConfig, OrderConfig) or decides_training(key) else " *"
        lines.append(f"| `{key}`{mark} | {default(setting)} | {words[setting.name]} |")
    return "\n".join(lines)


def docstrings(kind: type) -> dict[str, str]:
    """What stands beneath each field of a dataclass, as one line of Markdown that a table can hold."""
    body = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0].body
    found = {}
    for field, text in itertools.pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
            found[field.target.id] = " ".join(ast.literal_eval(text.value).split()).replace("|", "\\|")
    return found


def default(setting: Field) -> str:
    """A field's default as it is written on the command line."""
    value = setting.default if setting.default is not MISSING else setting.default_factory()
    return f"`{value if isinstance(value, str) and value else json.dumps(value)}`"


def with_made(page: str, made: str) -> str:
    """`page` with `made` between its two marks."""
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}\n{made}\n{END}{rest.partition(END)[2]}"


AFTER_TRAINING = {"rule", "prune", "eval", "online"}
MADE: dict[str, Callable[[], str]] = {
    "settings.md": lambda: settings(lambda name: name not in AFTER_TRAINING),
    "settings-codes.md": lambda: settings(lambda name: name in AFTER_TRAINING),
    "offline.md": teacher_settings,
    "studies.md": study_settings,
    "architecture.md": counted,
}
"""Pages, and what writes the part between their marks."""


if __name__ == "__main__":
    for name, maker in MADE.items():
        path = DOCS / name
        path.write_text(with_made(path.read_text(), maker()))
