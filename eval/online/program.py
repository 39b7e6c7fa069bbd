"""The program that a receiver of an online code needs: a part of the code's length, and what must not change.

Counted is what receiving a code can run: the definitions and methods that it reaches with the settings of that code,
without docstrings, comments, annotations, the words of errors and the search for problems in settings, which a right
file has none of, its local names shortened, packed by xz. Python and the installed packages are not counted, as with
other compressors.
"""

import hashlib
import lzma
import sys
from contextlib import suppress
from functools import cache
from modulefinder import ModuleFinder
from pathlib import Path

from eval.online.reached import ROOT, Reached, module_files
from harness.config.run import RunConfig
from harness.errors import RunFailure
from harness.files import user_cache, write_file
from harness.machine.hardware import code_sha256
from harness.rules.config import RULE_MODULES

RECEIVER = ROOT / "eval" / "online" / "receive.py"
# What a program that receives calls: it joins the ranks and rebuilds the text.
_ENTRIES = (
    ("harness.job", "joined_job"),
    ("eval.online.file", "read_online_file"),
    ("eval.online.receive", "receive"),
)


def receiver_sources() -> list[Path]:
    """List all modules of this project that receiving imports, directly or not, in alphabetical order."""
    finder = ModuleFinder(path=[str(ROOT)])
    finder.run_script(str(RECEIVER))
    return sorted(set(module_files(finder).values()))


@cache
def receiver_sha256() -> str:
    """Digest the sources of `receiver_sources`, which sender and receiver must have in common."""
    return code_sha256(receiver_sources())


def program_bytes(config: RunConfig) -> int:
    """Count the bytes of the program that receives what `config` sends, as `xz -9e` packs it.

    They are counted once for all sources that may be part of it, and kept in the user's cache: counting takes seconds.
    """
    sources = [path for package in ("harness", "eval") for path in (ROOT / package).rglob("*.py")]
    # Versions of Python write the same program differently.
    python = ".".join(map(str, sys.version_info[:3]))
    setting = hashlib.sha256(" ".join(sorted(_left_out(config))).encode()).hexdigest()[:8]
    kept = user_cache() / f"program-{setting}-{python}-{code_sha256(sources)[:32]}"
    with suppress(OSError, ValueError):
        return int(kept.read_text())
    content = "".join(f"{name}\n{text}\n" for name, text in receiver_program(config).items())
    size = len(lzma.compress(content.encode(), preset=9 | lzma.PRESET_EXTREME))
    with suppress(OSError, RunFailure):
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_file(kept, str(size).encode())
    return size


def receiver_program(config: RunConfig) -> dict[str, str]:
    """Extract the program that receives what `config` sends, as sources by path; it runs as it is."""
    sources = Reached(_ENTRIES, _left_out(config)).sources()
    program = {path: _minified(text, path) for path, text in sources.items()}
    # The program has other bytes than the sources whose digest a file names.
    path = str(Path(__file__).relative_to(ROOT))
    return program | {path: f"def {receiver_sha256.__name__}():\n\treturn {receiver_sha256()!r}\n"}


@cache
def _minified(text: str, path: str) -> str:
    """Write a source without what it does not need to run; most are alike in the programs of all settings."""
    # Only counting needs it, which receivers do not.
    from python_minifier import minify

    return minify(text, path, remove_literal_statements=True)


def _left_out(config: RunConfig) -> set[str]:
    """Modules that are imported where a setting asks for them, and that this one never does."""
    # No receiver reads a corpus.
    left_out = {"harness.corpus.named", "harness.corpus.arrangement"}
    left_out |= set() if config.backend.name == "deepspeed" else {"harness.backends.deepspeed"}
    if not (config.online.experts or config.online.models):
        left_out |= {f"harness.online.{name}" for name in _MIXTURE}
    unused = dict.fromkeys(_START, not config.online.start)
    unused |= {
        "eval.codec.permutation": config.corpus.documents == "as-is",
        "harness.data.parts": not config.train.reads_parts,
        "harness.data.mixture": not config.train.reads_parts,
        "harness.policy.weights": not config.train.policy,
        "harness.model.plain_attention": True,
        "harness.data.ado": config.train.shares != "ado",
        "harness.laws.power_law": config.train.shares != "ado",
    }
    left_out |= {name for name, is_unused in unused.items() if is_unused}
    left_out |= set() if config.model.is_classifier else {*_LABELS}
    left_out |= set() if config.model.subspace else {"harness.model.subspace"}
    return left_out | ({*RULE_MODULES.values()} - {RULE_MODULES.get(config.rule.kind, "")})


_START = (
    "eval.weights.start",
    *(f"eval.weights.{name}" for name in ("arithmetic", "codec", "kernel", "links", "tables")),
)
_LABELS = (
    *(f"harness.labels.{name}" for name in ("arranged", "inputs", "problems", "received", "sets", "tokenizer")),
    "harness.model.classifiers",
    "eval.labels.predictor",
)
_MIXTURE = ("logistic_mixer", "mixture", "mixture_state", "ngram", "switch")
