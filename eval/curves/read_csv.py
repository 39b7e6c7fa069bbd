"""Points of a curve in a text file: two columns of a CSV file, or two keys of JSON lines."""

import csv
import json
import math
import re
from dataclasses import dataclass
from pathlib import Path

from harness.errors import UsageError

MAX_CSV_BYTES = 64 * 1024 * 1024
_MAX_SHOWN, _MAX_CELL_SHOWN = 12, 40
_DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+([eE][+-]?\d+)?")


@dataclass(slots=True)
class Table:
    """Two columns of a file, row by row."""

    lines: list[int]
    x: list[float]
    losses: list[float]
    """NaN where the cell is empty and may be so."""
    num_blank: int = 0
    """Rows of other columns that have no loss."""


@dataclass(slots=True)
class _Rows:
    """The rows of a file as text, without comments and empty lines."""

    lines: list[int]
    cells: list[list[str]]
    """x and loss of each row."""
    is_wide: bool
    """Whether there are other columns, so that a row may have no loss of this one."""


def read_table(path: Path, columns: str | None, skip_nan: bool) -> Table:
    """Read x and loss of every row; `columns` names the two, "X,LOSS", where there are more.

    Raises UsageError for what cannot be read, with its line.
    """
    text = _text(path)
    rows = _json_rows(path, text, columns) if text.lstrip()[:1] == "{" else _csv_rows(path, text, columns)
    table = Table([], [], [])
    for line, (x, loss) in zip(rows.lines, rows.cells, strict=True):
        if not loss and rows.is_wide:
            table.num_blank += 1
            continue
        table.lines.append(line)
        table.x.append(_number(path, line, "x", x))
        table.losses.append(math.nan if not loss and skip_nan else _number(path, line, "loss", loss))
    return table


def is_number(cell: str) -> bool:
    """Whether Python reads a cell as a number."""
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _number(path: Path, line: int, name: str, cell: str) -> float:
    if is_number(cell):
        return float(cell)
    remedy = "write it like 1.54 or 2e9"
    if _DECIMAL_COMMA.fullmatch(cell):
        remedy = f"write {cell.replace(',', '.')}, and all others of the column with a decimal point"
    elif not cell and name == "loss":
        remedy = "remove the line, or add --skip-nan to leave such points out"
    raise UsageError(f"{path}: line {line}: {name} {cell[:_MAX_CELL_SHOWN]!r} is not a number; {remedy}")


def _csv_rows(path: Path, text: str, columns: str | None) -> _Rows:
    """A header is optional where there are two columns."""
    # Comments leave an empty line, so that others keep their numbers.
    lines = ["" if line.lstrip().startswith("#") else line for line in text.splitlines()]
    first = next((line for line in lines if line.strip()), "")
    delimiter = next((d for d in "\t;," if d in first), ",")
    reader = csv.reader(lines, delimiter=delimiter)
    try:
        rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader if any(map(str.strip, row))]
    except csv.Error as error:
        raise UsageError(f"{path}: line {reader.line_num}: not a CSV file ({error}); give two columns") from None
    if not rows:
        raise UsageError(f"{path}: the file is empty; give two columns, x and loss")
    header = rows[0][1]
    chosen = _chosen(path, header, columns, "the first line")
    if columns or not any(map(is_number, header)):
        rows = rows[1:]
    for line, row in rows:
        if len(row) != len(header):
            remedy = "mend the line"
            if delimiter == "," and len(row) > len(header):
                remedy += "; if numbers have a decimal comma, write a point, or part columns by ;"
            raise UsageError(f"{path}: line {line}: {len(row)} column(s) instead of {len(header)}; {remedy}")
    cells = [[row[column] for column in chosen] for _, row in rows]
    return _Rows([line for line, _ in rows], cells, is_wide=len(header) > 2)


def _json_rows(path: Path, text: str, columns: str | None) -> _Rows:
    """An object a line; what a line lacks is an empty cell."""
    rows: list[tuple[int, dict]] = []
    names: dict[str, None] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            remedy = "write an object a line, or two columns of a CSV file"
            raise UsageError(f"{path}: line {number}: not a JSON object; {remedy}")
        rows.append((number, row))
        names |= dict.fromkeys(row)
    header = list(names)
    chosen = [header[column] for column in _chosen(path, header, columns, "the keys")]
    # A null stands for a loss that is no number; other lines have no loss at all.
    cells = [
        ["nan" if (cell := row.get(name, "")) is None else str(cell).strip() for name in chosen] for _, row in rows
    ]
    return _Rows([number for number, _ in rows], cells, is_wide=True)


def _text(path: Path) -> str:
    remedy = "give the path of a CSV file or of a TensorBoard log"
    try:
        with path.open("rb") as file:
            content = file.read(MAX_CSV_BYTES + 1)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; {remedy}") from None
    if len(content) > MAX_CSV_BYTES:
        raise UsageError(f"{path}: larger than {MAX_CSV_BYTES >> 20} MB; keep fewer points (some thousands do)")
    try:
        # Spreadsheets put a byte-order mark first.
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UsageError(f"{path}: not a text file; {remedy}") from None
    if "\0" in text:
        raise UsageError(f"{path}: not a text file; {remedy}")
    return text


def _chosen(path: Path, header: list[str], columns: str | None, place: str) -> tuple[int, int]:
    """Indices of x and loss in a row."""
    shown = ", ".join(header[:_MAX_SHOWN])
    if columns is None:
        if len(header) < 2:
            raise UsageError(f"{path}: {len(header)} column(s); part x and loss by a comma, semicolon or tab")
        if len(header) != 2:
            remedy = f"choose two with --columns X,LOSS from {place}: {shown}"
            raise UsageError(f"{path}: {len(header)} column(s); {remedy}")
        return 0, 1
    names = [name.strip() for name in next(csv.reader([columns]), [])]
    if len(names) != 2:
        raise UsageError(f"--columns {columns}: must be two names, X,LOSS, from {place}: {shown}")
    for name in names:
        if header.count(name) != 1:
            problem = "is not in" if name not in header else "stands more than once in"
            raise UsageError(f"--columns {columns}: {name!r} {problem} {place} of {path}: {shown}")
    return header.index(names[0]), header.index(names[1])
