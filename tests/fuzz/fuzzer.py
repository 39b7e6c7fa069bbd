"""Reads many changed files in this process and counts what became of them."""

import contextlib
import io
import random
import resource
import signal
import tempfile
import time
import traceback
import warnings
from dataclasses import dataclass, field
from pathlib import Path

from eval.offline.archive import read_archive
from eval.online.receive import receive
from eval.teacher.archive import read_archive as read_targets
from eval.teacher.archive import target_bytes
from harness.errors import CodelengthError
from harness.machine.ranks import Ranks, joined_ranks
from tests.fuzz.mutate import mutated
from tests.golden.make import TARGETS, TEXT, write_cl, write_clo, write_teacher

MAX_MEMORY_BYTES = 1_000_000_000
# A file that takes longer is a problem: the whole ones take less than a second.
SECONDS_A_FILE = 60


@dataclass
class Counts:
    """What became of the files."""

    tried: int = 0
    refused: int = 0
    right: int = 0
    """Accepted, with the text that was coded."""
    wrong: int = 0
    """Accepted, with another text."""
    tracebacks: int = 0
    slow: int = 0
    lines: int = 0
    """Refusals that are not one printable line."""
    left: int = 0
    """Refusals that left something beside the file."""
    slowest_seconds: float = 0.0
    peak_bytes: int = 0
    problems: list[str] = field(default_factory=list)
    """What is to be mended, with the seed of the file."""

    def __str__(self) -> str:
        return "\n".join(
            [
                f"{self.tried:,} files tried: {self.refused:,} refused, {self.right:,} accepted with the right text, "
                f"{self.wrong} wrong outputs, {self.tracebacks} tracebacks, {self.slow} too slow, {self.lines} refused "
                f"in other than a line, {self.left} left something behind",
                f"slowest {self.slowest_seconds:.1f} s, peak {self.peak_bytes / 1e6:,.0f} MB",
                *self.problems,
            ]
        )


def fuzz(seconds: float, seed: int) -> Counts:
    """Change and read files for so long."""
    counts, until = Counts(), time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as name, joined_ranks(10.0) as ranks:
        folder = Path(name)
        for predictor in ("float", "portable"):
            write_cl(folder / f"{predictor}.cl", predictor)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            write_clo(folder / "online.clo", folder)
        write_teacher(folder / "targets.teacher")
        names = ("float.cl", "portable.cl", "online.clo", "targets.teacher")
        whole = [(folder / name).read_bytes() for name in names]
        place = folder / "place"
        place.mkdir()
        while time.monotonic() < until:
            number = f"{seed}:{counts.tried}"
            rng = random.Random(number)
            index = rng.randrange(len(whole))
            path = (place / "file").with_suffix(Path(names[index]).suffix)
            path.write_bytes(mutated(whole[index], whole, folder / "work", rng))
            _try(path, place, ranks, counts, number)
    counts.peak_bytes = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return counts


def _try(path: Path, place: Path, ranks: Ranks, counts: Counts, number: str) -> None:
    counts.tried += 1
    start, output = time.monotonic(), place / "out"
    before = signal.signal(signal.SIGALRM, _too_slow)
    signal.alarm(SECONDS_A_FILE)
    try:
        text = _read(path, output, ranks)
        is_right = text == (target_bytes(TARGETS) if path.suffix == ".teacher" else TEXT)
        counts.right += is_right
        if not is_right:
            counts.wrong += 1
            counts.problems.append(f"{number}: wrong output")
    except CodelengthError as error:
        counts.refused += 1
        if not str(error).isprintable() or not str(error).startswith(f"{path}: "):
            counts.lines += 1
            counts.problems.append(f"{number}: {str(error)!r}")
    except TimeoutError:
        counts.slow += 1
        counts.problems.append(f"{number}: slower than {SECONDS_A_FILE} s")
    except Exception:
        counts.tracebacks += 1
        counts.problems.append(f"{number}: {traceback.format_exc()}")
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    counts.slowest_seconds = max(counts.slowest_seconds, time.monotonic() - start)
    output.unlink(missing_ok=True)
    if len(left := list(place.iterdir())) > 1:
        counts.left += 1
        counts.problems.append(f"{number}: left {left}")
    path.unlink()


def _read(path: Path, output: Path, ranks: Ranks) -> bytes:
    """What the file decodes to; a warning of its arithmetic would be a second line."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        return _decoded(path, output, ranks)


def _decoded(path: Path, output: Path, ranks: Ranks) -> bytes:
    if path.suffix == ".cl":
        return read_archive(path, 1, lambda done, total: None, MAX_MEMORY_BYTES)
    if path.suffix == ".teacher":
        return target_bytes(read_targets(path, MAX_MEMORY_BYTES))
    with contextlib.redirect_stderr(io.StringIO()):
        receive(path, output, ranks, lambda done, total: None, MAX_MEMORY_BYTES)
    return output.read_bytes()


def _too_slow(number: int, frame: object) -> None:
    raise TimeoutError
