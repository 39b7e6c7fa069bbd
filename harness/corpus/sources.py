"""Which files of a folder are text: known endings are taken, and what is left out is named with the reason."""

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from harness.corpus.readers import JSON, JSONL, PARQUET, TEXT, Source, format_of, reader_of_json
from harness.errors import UsageError

# What lies beside a corpus and tells about it.
ABOUT = {"README", "LICENSE", "LICENCE", "COPYING", "NOTICE", "CHANGELOG", "CONTRIBUTING", "CITATION", "AUTHORS"}
KNOWN_ENDINGS = ".txt .md .html .xml .tex .rst .wiki .jsonl .ndjson .json .parquet, also with .gz .bz2 .xz .zst"
_NAMES_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Listing:
    """The files of text in a folder, and what was left out."""

    taken: list[Source]
    """In the order in which they are read: sorted by their path in the folder."""
    left_out: list[tuple[str, str]]
    """Path in the folder and reason, of files and of folders that were not gone into."""
    is_plain: bool
    """Whether all of it is read as before there were rules: every file that is not hidden, known by exact endings."""


def list_sources(key: str, path: str, field: str) -> Listing:
    """List the files of text at a path or below it; links are followed, each file is taken once.

    A file that is named itself is plain text where its ending says nothing else. Raises UsageError naming `key` where
    there is no text, or a link to a text leads nowhere.
    """
    root = Path(path)
    if root.is_file():
        reader, packing = format_of(root.name)
        if reader == JSON:
            reader = reader_of_json(root, packing, field)
            if reader is None:
                raise UsageError(
                    f"{root}: JSON, but neither an array nor lines that begin with an object with corpus.text_field="
                    f"{field}; make it such lines, for example with jq, or give it the ending .txt"
                )
        source = Source(root, path, reader or TEXT, packing)
        return Listing([source], [], _is_unchanged(source))
    if not root.is_dir():
        raise UsageError(f"{key}={path}: no such file or folder; name an existing one")
    walk = _Walk(field)
    walk.folder(root, "")
    taken = sorted(walk.taken, key=lambda source: source.name)
    left_out = sorted(walk.left_out)
    if not taken:
        listed = f" (left out: {_shown(left_out)})" if left_out else ""
        raise UsageError(
            f"{key}={path}: the folder has no files of text{listed}; known endings are {KNOWN_ENDINGS}; "
            "a file of another ending can be named itself"
        )
    is_plain = all(map(_is_unchanged, taken)) and not walk.has_rules
    return Listing(taken, left_out, is_plain)


def describe(listing: Listing) -> list[str]:
    """Describe what was read, by reader, and what was left out, in lines."""
    kinds = Counter(f"{source.reader}{f' in {source.packing}' * bool(source.packing)}" for source in listing.taken)
    total = sum(source.raw_bytes for source in listing.taken)
    files = ", ".join(f"{count:,} {kind}" for kind, count in sorted(kinds.items()))
    lines = [f"read     {len(listing.taken):,} file(s): {files}; {total:,} bytes of text"]
    if nulls := sum(source.nulls for source in listing.taken):
        lines.append(f"left out {nulls:,} record(s) whose text is null")
    if listing.left_out:
        lines.append(f"left out {len(listing.left_out):,} file(s) or folder(s): {_shown(listing.left_out)}")
    if marked := [source.name for source in listing.taken if source.is_utf16]:
        lines.append(f"note     {len(marked):,} file(s) are UTF-16, coded as the bytes that they are: {marked[0]}")
    return lines


def _shown(left_out: list[tuple[str, str]]) -> str:
    shown = ", ".join(f"{name} ({reason})" for name, reason in left_out[:_NAMES_SHOWN])
    return shown + (", ..." if len(left_out) > _NAMES_SHOWN else "")


def _is_unchanged(source: Source) -> bool:
    exact = {".jsonl": JSONL, ".parquet": PARQUET}.get(source.path.suffix, TEXT)
    return source.reader == exact and not source.packing


class _Walk:
    """A way through a folder."""

    def __init__(self, field: str):
        self.field = field
        self.taken: list[Source] = []
        self.left_out: list[tuple[str, str]] = []
        self.has_rules = False
        """Whether a rule has left out what is not hidden, or has followed a link into a folder."""
        self._seen: dict[str, str] = {}
        """Real files and folders, and the first names that led there."""

    def folder(self, folder: Path, prefix: str) -> None:
        """List a folder whose path from the first one is `prefix`."""
        self._seen[os.path.realpath(folder)] = prefix or "the folder itself"
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            raise UsageError(f"{folder}: cannot be read ({error.strerror}); change its mode, or move it") from None
        for entry in entries:
            name, path = prefix + entry.name, Path(entry.path)
            if entry.name.startswith("."):
                self.left_out.append((name, "hidden"))
            elif not path.is_dir():
                if reason := self._file(path, name):
                    self._leave_out(name, reason)
            elif entry.name.startswith("_"):
                self._leave_out(f"{name}/", "name begins with _")
            elif (real := os.path.realpath(path)) in self._seen:
                # Links may lead back, or to what is taken already.
                self._leave_out(f"{name}/", f"the same as {self._seen[real]}")
            else:
                self.has_rules |= entry.is_symlink()
                self.folder(path, f"{name}/")

    def _file(self, path: Path, name: str) -> str:
        """Take a file, or say why not."""
        reader, packing = format_of(path.name)
        if path.name.startswith("_"):
            return "name begins with _"
        if reader is None:
            return "no known ending"
        if reader == TEXT and path.name.partition(".")[0].upper() in ABOUT:
            return "about the corpus"
        if not path.exists():
            raise UsageError(f"{path}: a link that leads nowhere; mend or remove it")
        if not path.is_file():
            return "not a file"
        if reader == JSON and (reader := reader_of_json(path, packing, self.field)) is None:
            return f"JSON without corpus.text_field={self.field}"
        # The same text under two names would be in training and held out, or count twice.
        real = os.path.realpath(path)
        if real in self._seen:
            return f"the same as {self._seen[real]}"
        self._seen[real] = name
        self.taken.append(Source(path, name, reader, packing))
        return ""

    def _leave_out(self, name: str, reason: str) -> None:
        self.left_out.append((name, reason))
        self.has_rules = True
