"""Reads many changed files in this process and counts what became of them."""

import contextlib
import functools
import io
import random
import resource
import shutil
import signal
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from eval.labels.archive import read_label_archive
from eval.offline.archive import read_archive, write_archive
from eval.offline.archive_head import IN_ORDER
from eval.online.receive import receive
from eval.teacher.archive import read_archive as read_targets
from eval.teacher.archive import target_bytes
from harness.config.codes import EvalConfig
from harness.errors import CodelengthError
from harness.machine.ranks import Ranks, joined_ranks
from harness.policy.weights import Policy
from launch.main import main
from tests.fuzz.mutate import mutated
from tests.fuzz.run_files import FORMATS
from tests.golden.make import CONTEXT, SEND, TARGETS, TEXT, tiny_model, write_cl, write_clo, write_teacher
from tests.support.labels import coded_labels, labelled_set, settings, write_labels

SET = "set.npz"
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
    """Refusals that are not printable lines which name the file."""
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
    """Change and read files for so long: what others send, and for each of these one of a run or its data."""
    counts, until = Counts(), time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as name, joined_ranks(10.0) as ranks:
        folder, place = Path(name), Path(name) / "place"
        place.mkdir()
        whole = _whole_files(folder)
        while time.monotonic() < until:
            number = f"{seed}:{counts.tried}"
            rng = random.Random(number)
            if counts.tried % 2:
                make = rng.choice(FORMATS)
                _try(make(place, rng), place, ranks, counts, f"{number} {make.__name__}")
            else:
                name = rng.choice([*whole])
                path = (place / "file").with_suffix(Path(name).suffix)
                path.write_bytes(mutated(whole[name], [*whole.values()], folder / "work", rng))
                _try(functools.partial(_is_right, path), place, ranks, counts, number)
            shutil.rmtree(place)
            place.mkdir()
    counts.peak_bytes = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return counts


def _whole_files(folder: Path) -> dict[str, bytes]:
    """Files that are right, by name."""
    for predictor in ("float", "portable"):
        write_cl(folder / f"{predictor}.cl", predictor)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        write_clo(folder / "online.clo", folder)
        _write_parts(folder / "parts.clo", folder / "corpus")
        _write_charged(folder / "charged.clo", folder)
        labels = settings(folder, labelled_set(folder / SET), "online.segment_steps=8")
        assert main(["send", *labels, "-o", str(folder / "online.given")]) == 0
    config = EvalConfig(predictor="float", device="cpu")
    write_archive(folder / "order.cl", TEXT, tiny_model(), config, 1, lambda done, total: None, IN_ORDER)
    write_teacher(folder / "targets.teacher")
    write_labels(folder / "archive.labels", folder / SET)
    names = ("float.cl", "portable.cl", "order.cl", "online.clo", "parts.clo", "charged.clo", "targets.teacher")
    names += ("online.given", "archive.labels")
    return {name: (folder / name).read_bytes() for name in names}


def _write_parts(path: Path, folder: Path) -> None:
    """An online code of TEXT as a text of two parts, whose documents are named in an order."""
    for split, contents in (("text", (TEXT[:100], TEXT[100:])), ("heldout", (b"x", b"y"))):
        (folder / split).mkdir(parents=True)
        for name, content in zip("ab", contents, strict=True):
            (folder / split / name).write_bytes(content)
    (folder / "config.yaml").write_text("{}\n")
    corpus = ("corpus.kind=files", f"corpus.path={folder}/text", f"corpus.heldout_path={folder}/heldout")
    own = ("corpus.parts=[a,b]", "corpus.documents=random:1", "train.shares=uniform", f"data_dir={folder}/data")
    assert main(["send", str(folder / "config.yaml"), *SEND, *corpus, *own, "-o", str(path)]) == 0


def _write_charged(path: Path, folder: Path) -> None:
    """An online code of TEXT that starts from the weights of an archive and learns by a policy."""
    weights = np.arange(2 * -(-len(TEXT) // CONTEXT), dtype=np.uint8).reshape(2, -1)
    (folder / "a.policy").write_bytes(Policy(weights).to_bytes())
    write_clo(path, folder, f"online.start={folder}/float.cl", f"train.policy={folder}/a.policy")


def _try(is_right: Callable[[Ranks], bool], place: Path, ranks: Ranks, counts: Counts, number: str) -> None:
    """Read what lies in `place`, and count what comes of it."""
    counts.tried += 1
    start, there = time.monotonic(), sorted(place.rglob("*"))
    before = signal.signal(signal.SIGALRM, _too_slow)
    signal.alarm(SECONDS_A_FILE)
    try:
        right = is_right(ranks)
        counts.right += right
        if not right:
            counts.wrong += 1
            counts.problems.append(f"{number}: wrong output")
    except CodelengthError as error:
        counts.refused += 1
        if any(not line.isprintable() or not line.startswith(str(place)) for line in str(error).split("\n")):
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
    # What is damaged is renamed.
    left = [path for path in place.rglob("*") if path not in there and "damaged" not in str(path)]
    if left:
        counts.left += 1
        counts.problems.append(f"{number}: left {left}")


def _is_right(path: Path, ranks: Ranks) -> bool:
    """Whether a file gives the text that was coded."""
    output = path.with_name("out")
    try:
        return _read(path, output, ranks) == _coded(path)
    finally:
        output.unlink(missing_ok=True)


def _coded(path: Path) -> bytes:
    """What was coded in files of this suffix."""
    if path.suffix in (".labels", ".given"):
        return coded_labels(path.parents[1] / SET)
    return target_bytes(TARGETS) if path.suffix == ".teacher" else TEXT


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
    # Those of labels are given a set.
    inputs = str(path.parents[1] / SET)
    if path.suffix == ".labels":
        return read_label_archive(path, inputs, MAX_MEMORY_BYTES)
    with contextlib.redirect_stderr(io.StringIO()):
        given = inputs if path.suffix == ".given" else None
        receive(path, output, ranks, lambda done, total: None, MAX_MEMORY_BYTES, given)
    return output.read_bytes()


def _too_slow(number: int, frame: object) -> None:
    raise TimeoutError
