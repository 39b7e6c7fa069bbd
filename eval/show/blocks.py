"""Titled tables of finished cells for a terminal, Markdown and LaTeX, and their records for programs."""

import csv
import io
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness.errors import UsageError

FORMATS = ("rich", "md", "csv", "json", "latex")
_WIDEST_COLUMNS = 10_000


@dataclass(kw_only=True, slots=True)
class Block:
    """One titled table of finished cells."""

    title: str
    header: list[str]
    is_number: list[bool]
    """For every column whether it stands right."""
    rows: list[list[str]]
    emphasised_rows: list[bool] = field(default_factory=list)
    """Empty: none."""
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.emphasised_rows = self.emphasised_rows or [False] * len(self.rows)


def check_format(fmt: str, known: Sequence[str] = FORMATS) -> None:
    """Raises UsageError for a format that is none of `known`."""
    if fmt not in known:
        raise UsageError(f"--format {fmt}: is unknown; choose one of {', '.join(known)}")


def render(
    blocks: list[Block], record: dict[str, Any] | list[dict[str, Any]], fmt: str, width: int | None = None
) -> str:
    """Tables for people, or for programs what they say in full, unrounded values; a text that ends in a newline.

    `width` is in characters (default: the terminal) and only for `rich`. Raises UsageError for a format that is not one
    of `FORMATS`.
    """
    check_format(fmt)
    renderers: dict[str, Callable[[], str]] = {
        "rich": lambda: _to_rich(blocks, width),
        "md": lambda: _to_markdown(blocks),
        "latex": lambda: _to_latex(blocks),
        "csv": lambda: _to_csv(record if isinstance(record, list) else [record]),
        "json": lambda: json.dumps(record, indent=2) + "\n",
    }
    return renderers[fmt]()


def _to_csv(records: Sequence[dict[str, Any]]) -> str:
    """A header and a line a record, full numbers; all records have the keys of the first."""
    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=list(records[0]) if records else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return out.getvalue()


def _to_rich(blocks: list[Block], width: int | None) -> str:
    """Text for a terminal of `width` characters (default: this one); no digit is cut where they do not fit."""
    columns = width or shutil.get_terminal_size((120, 24)).columns
    written = io.StringIO()
    console = Console(file=written, force_terminal=sys.stdout.isatty(), highlight=False)
    for block in blocks:
        title = Text(block.title, style="bold")
        table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
        for name, is_number in zip(block.header, block.is_number, strict=True):
            # Numbers are narrow: their headers take a line a word.
            heading = Text(name.replace(" ", "\n") if is_number else name)
            table.add_column(heading, justify="right" if is_number else "left", no_wrap=True, vertical="bottom")
        for row, is_emphasised in zip(block.rows, block.emphasised_rows, strict=True):
            table.add_row(*map(Text, row), style="bold" if is_emphasised else None)
        # In too narrow a terminal the lines wrap; a table cut to fit would lose digits.
        console.width = _WIDEST_COLUMNS
        console.width = max(columns, console.measure(table).maximum)
        console.print(table)
        for note in block.notes:
            console.print(Text(note, style="dim"))
        console.print()
    return "\n".join(line.rstrip() for line in written.getvalue().splitlines()).rstrip() + "\n"


def _to_markdown(blocks: list[Block]) -> str:
    """GitHub's tables."""
    lines = []
    for block in blocks:
        rule = ["---:" if is_number else ":---" for is_number in block.is_number]
        lines += [f"**{_escape_markdown(block.title)}**", "", _row_markdown(block.header), f"| {' | '.join(rule)} |"]
        lines += map(_row_markdown, block.rows, block.emphasised_rows)
        lines += ["", *(f"- {_escape_markdown(note)}" for note in block.notes)] + [""] * bool(block.notes)
    return "\n".join(lines).rstrip("\n") + "\n"


def _row_markdown(cells: list[str], bold: bool = False) -> str:
    escaped = [_escape_markdown(cell) for cell in cells]
    return f"| {' | '.join(f'**{cell}**' if bold and cell else cell for cell in escaped)} |"


def _escape_markdown(text: str) -> str:
    return "".join(f"\\{c}" if c in "\\`*_[]<>|#~$&" else c for c in text)


def _to_latex(blocks: list[Block]) -> str:
    """Tables of the package booktabs."""
    lines = ["% needs \\usepackage{booktabs}"]
    for block in blocks:
        columns = "".join("r" if is_number else "l" for is_number in block.is_number)
        lines += ["\\begin{table}", "\\centering\\small", f"\\caption{{{_escape_latex(block.title)}}}"]
        lines += [f"\\begin{{tabular}}{{{columns}}}", "\\toprule", _row_latex(block.header), "\\midrule"]
        lines += map(_row_latex, block.rows, block.emphasised_rows)
        lines += ["\\bottomrule", "\\end{tabular}"]
        lines += [f"\\par {_escape_latex(note)}" for note in block.notes]
        lines += ["\\end{table}"]
    return "\n".join(lines) + "\n"


def _row_latex(cells: list[str], bold: bool = False) -> str:
    escaped = [_escape_latex(cell) for cell in cells]
    return " & ".join(f"\\textbf{{{cell}}}" if bold and cell else cell for cell in escaped) + r" \\"


def _escape_latex(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    special |= {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"}
    special |= {c: f"\\{c}" for c in "&%$#_{}"}
    # A row that starts with a bracket would be an option of the line break before it; two hyphens would be a dash.
    special |= {c: f"{{{c}}}" for c in "[]-"}
    return "".join(special.get(c, c) for c in text)
