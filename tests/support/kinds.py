"""Whether every code length in printed tables says what it is worth."""

import re

from eval.length import KINDS

NO_CODES = ("raw bytes", "dataset bytes", "bytes/non-zero")
"""Columns of bytes that are no code lengths."""
NO_CODE_TABLES = ("Model: ", "Online code of ")
"""Titles of tables that take a length apart whose kind stands elsewhere, or in their last row."""
_IN_WORDS = re.compile(rf"\((?:{'|'.join(KINDS)})\)")


def tables(text: str) -> dict[str, list[dict[str, str]]]:
    """Tables in Markdown by title: a row as its cells by header, the first of two alike."""
    found = {}
    for title, body in re.findall(r"^\*\*(.+)\*\*\n\n((?:\|.*\n?)+)", text, re.MULTILINE):
        header, _, *rows = (
            [cell.strip(" *").replace("\\", "") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            for line in body.splitlines()
        )
        found[title.replace("\\", "")] = [dict(reversed(list(zip(header, row, strict=True)))) for row in rows]
    return found


def unlabelled(text: str) -> list[str]:
    """Cells of code lengths in Markdown tables that no kind stands beside: title, header and first cell."""
    found = []
    for title, rows in tables(text).items():
        if title.startswith(NO_CODE_TABLES):
            continue
        for row in rows:
            for header, cell in row.items():
                quantity = f"{header} {next(reversed(row.values()))}" if "quantity" in row else header
                is_length = header not in (*NO_CODES, "quantity") and re.search(r"\b(bytes|bits|kB)\b", quantity)
                is_said = row.get("kind") in KINDS or any(map(_IN_WORDS.search, (title, header, cell)))
                if is_length and cell and not is_said and "raw text" not in row.values() and "law" not in quantity:
                    found.append(f"{title}: {header}: {next(reversed(row.values()))}")
    return found
