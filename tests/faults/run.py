"""Every call of the file system fails once: `python -m tests.faults.run [--share 0.1] [--seed 0] [COMMAND ...]`.

For each command of a tiny job the calls below its folder are counted; then it runs again for the k-th write, fsync,
rename and read, k = 1 to their number, with that call failing. Whatever fails: a status of 0 means the right output;
another one means one line, nothing lost, and the same command, run again, ends with the bits of the undisturbed one.
"""

import argparse
import ctypes
import errno
import faulthandler
import hashlib
import importlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
CALLS = {
    "write": (1, (errno.ENOSPC, errno.EIO, 0)),
    "fsync": (2, (errno.EIO,)),
    "rename": (3, (errno.EIO, errno.ESTALE)),
    "read": (4, (errno.EIO, errno.ESTALE)),
}
SHORT = 0
"""In place of an error: a write of half the bytes."""
CONFIG = """
corpus: {kind: files, path: text, heldout_bytes: 300}
model: {width: 8, layers: 1, heads: 1, context: 64}
train: {batch_sequences: 4, precision: fp32, log_every_steps: 2, finetune_epochs: 0.5, checkpoint_minutes: 1.0e-9}
optimizer: {kind: adamw, warmup_tokens: 512}
rule: {kind: rl1, alpha: 0.1}
prune: {kind: tamade, sample_sequences: 4, resolution: 1.0e-2}
eval: {chunk_bytes: 64, lanes: 4}
online: {segment_steps: 3}
"""
STUDY = """
{kind: policy, name: study, examples: [16], steps: [4], desired: 16, test: 16, width: 4, epochs: 2}
"""
COMMANDS = {
    "study": ("study", "study.yaml", "--index", "0"),
    "data": ("data", "config.yaml"),
    "train": ("train", "config.yaml"),
    "eval": ("eval", "runs/run", "--quiet", "--threads", "1"),
    "compress": ("compress", "--run", "runs/run", "text", "-o", "text.cl", "--force", "--quiet"),
    "decompress": ("decompress", "runs/run/offline/archive.cl", "-o", "out", "--force", "--quiet"),
    "send": ("send", "config.yaml", "-o", "sent.clo", "--force", "--quiet"),
    "receive": ("receive", "sent.clo", "-o", "received", "--force", "--quiet"),
}
# What a command must leave as the undisturbed one does, bit by bit.
OUTPUTS = {
    "study": ("runs/study/policies/*",),
    "data": ("data/*/*.shard", "data/*/tokenizer.model"),
    "train": ("runs/run/weights.safetensors", "runs/run/ledger/*/*"),
    "eval": ("runs/run/offline/archive.cl",),
    "compress": ("text.cl",),
    "decompress": ("out",),
    "send": ("sent.clo",),
    "receive": ("received",),
}
PROGRESS = re.compile(r"(left|prune.*)\s*$|^read     ")
IDLE_SECONDS, BUSY_SECONDS = 120, 300
"""A command that computes nothing for so long waits without end, and one that computes so long has no end either.

Undisturbed ones take seconds; on a busy machine they only get them late.
"""
INTERRUPTED_AT = 4
"""Steps of a training that has begun, so that a checkpoint is there to be lost."""


@dataclass(frozen=True)
class Fault:
    """One call that fails."""

    command: str
    call: str
    number: int
    error: int

    def __str__(self) -> str:
        name = errno.errorcode[self.error] if self.error else "short"
        return f"{self.command}: {self.call} {self.number} fails with {name}"


def main() -> int:
    """Print what was tried, and every fault that did harm; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("commands", nargs="*", choices=COMMANDS, default=list(COMMANDS), help="default: all")
    parser.add_argument("--share", type=float, default=1.0, help="share of the faults that are tried")
    parser.add_argument("--seed", type=int, default=0, help="which of them")
    parser.add_argument("--skip", type=int, default=0, help="leave out the first faults of each command, tried before")
    parser.add_argument("--stop", type=int, default=sys.maxsize, help="the last fault of each command to be tried")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        if "fault" not in os.environ.get("LD_PRELOAD", ""):
            return _with_shim(Path(scratch))
        import_all()
        wanted = range(options.skip + 1, options.stop + 1)
        counts, harms = examine(Path(scratch), options.commands, options.share, options.seed, wanted)
    for text, count in sorted(counts.items()):
        print(f"{count:6,}  {text}")
    print("\n".join(harms) or "no wrong output, nothing lost, one line each")
    return int(bool(harms))


def examine(scratch: Path, commands: list[str], share: float, seed: int, wanted: range) -> tuple[Counter, list[str]]:
    """Try the `wanted` faults of each of `commands` in `scratch`: counts by ending, and a line for each that did harm.

    Says after every fault how far it is, so that a sweep of hours can go on where it was ended.
    """
    counts, harms, chooser = Counter(), [], random.Random(seed)
    for command, before in stages(scratch, commands):
        for number, fault in enumerate(_faults(scratch, before, command), start=1):
            if number not in wanted or chooser.random() >= share:
                continue
            ending, harm = _try(scratch, before, fault)
            counts[f"{command}, {fault.call}: {ending}"] += 1
            print(f"{number:5,}  {fault}: {ending}", file=sys.stderr, flush=True)
            if harm:
                harms.append(f"{fault}: {harm}")
                print(harms[-1], file=sys.stderr, flush=True)
    return counts, harms


def _with_shim(scratch: Path) -> int:
    """Start again with the shim loaded."""
    library = scratch / "fault.so"
    source = Path(__file__).with_name("shim.c")
    subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    settings = {"LD_PRELOAD": str(library), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.faults.run", *sys.argv[1:]]
    return subprocess.run(command, cwd=ROOT, env=os.environ | settings).returncode


def import_all() -> None:
    """What the commands import, once for all children."""
    names = ("harness.train", "eval.online", "eval.report.run_figures", "eval.report.run_tables", "eval.studies.policy")
    for name in (*names, "launch.main"):
        importlib.import_module(name)


def stages(scratch: Path, wanted: list[str]) -> Iterator[tuple[str, Path]]:
    """Each wanted command with a job on which all before it has been done; before `train`, a training was stopped."""
    order = list(COMMANDS)
    folder, before = scratch / "job", scratch / "before"
    folder.mkdir()
    (folder / "config.yaml").write_text(CONFIG)
    (folder / "study.yaml").write_text(STUDY)
    (folder / "text").write_bytes((ROOT / "LICENSE").read_bytes()[:3300])
    for command in order[: 1 + max(map(order.index, wanted))]:
        if command == "train":
            (folder / "runs/run").mkdir(parents=True)
            for _ in range(INTERRUPTED_AT):
                (folder / "runs/run/STOP").touch()
                run(folder, command)
        if command in wanted:
            folder.rename(before)
            yield command, before
            before.rename(folder)
        status, _, said = run(folder, command)
        assert status == 0, said


def _faults(scratch: Path, before: Path, command: str) -> Iterator[Fault]:
    """All faults of a command."""
    for call, (kind, errors) in CALLS.items():
        with copied(scratch, before) as folder:
            status, number, said = run(folder, command, (kind, 0, 0))
            assert status == 0, said
        for index in range(1, number + 1):
            for error in errors:
                yield Fault(command, call, index, error)


def _try(scratch: Path, before: Path, fault: Fault) -> tuple[str, str]:
    """How the command ended, and what harm was done, if any."""
    expected = expected_digest(scratch, before, fault.command)
    with copied(scratch, before) as folder:
        checkpoints = len(list(folder.glob("runs/run/checkpoints/*/COMMITTED")))
        status, _, said = run(folder, fault.command, (CALLS[fault.call][0], fault.number, fault.error))
        lines = [line for line in said.splitlines() if line.strip() and not PROGRESS.search(line)]
        if status == 0:
            return "right", "" if digest_of(folder, fault.command) == expected else "wrong output with status 0"
        if status not in (1, 2) or len(lines) != 1:
            return "failed", f"status {status}, {len(lines)} lines: {said[-600:]}"
        if len(list(folder.glob("runs/run/checkpoints/*/COMMITTED"))) < checkpoints:
            return "failed", f"lost a checkpoint ({lines[0]})"
        status, _, again = run(folder, fault.command)
        if status or digest_of(folder, fault.command) != expected:
            return "failed", f"the same command does not go on: {lines[0]} | status {status}, {again[-300:]}"
        return f"one line, status {status or 1}", ""


_EXPECTED: dict[str, str] = {}


def expected_digest(scratch: Path, before: Path, command: str) -> str:
    """`digest_of` the undisturbed command."""
    if command not in _EXPECTED:
        with copied(scratch, before) as folder:
            status, _, said = run(folder, command)
            assert status == 0, said
            _EXPECTED[command] = digest_of(folder, command)
    return _EXPECTED[command]


def digest_of(folder: Path, command: str) -> str:
    """SHA-256 of all outputs of a command."""
    digest = hashlib.sha256()
    for pattern in OUTPUTS[command]:
        for path in sorted(folder.glob(pattern)):
            # Names of prepared data depend on when the text was written.
            digest.update(f"{path.name}\n".encode() + path.read_bytes())
    return digest.hexdigest()


@contextmanager
def copied(scratch: Path, before: Path) -> Iterator[Path]:
    """A copy of a folder at one place, so that all copies are the same job."""
    folder = scratch / "job"
    shutil.copytree(before, folder, symlinks=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def run(folder: Path, command: str, fault: tuple[int, int, int] | None = None) -> tuple[int, int, str]:
    """Run a command in a child: its status, how many calls of the kind it made, and what it said on stderr."""
    status = _ended(start(folder, command, fault))
    seen, said = ((folder.parent / name).read_text(errors="replace") for name in ("seen", "stderr"))
    return os.waitstatus_to_exitcode(status), int(seen or 0), said


def _ended(pid: int) -> int:
    """The status of a child, which says where it stands and is ended where it takes too long."""
    process, busy, since, looked = psutil.Process(pid), 0.0, time.monotonic(), time.monotonic()
    while busy < BUSY_SECONDS and time.monotonic() - since < IDLE_SECONDS:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return status
        if (passed := time.monotonic() - looked) > 1:
            looked = time.monotonic()
            now = _busy_seconds(process)
            # Both may have been suspended together.
            if now > busy or passed > IDLE_SECONDS / 2:
                busy, since = now, looked
        time.sleep(0.005)
    os.kill(pid, signal.SIGABRT)
    return os.waitpid(pid, 0)[1]


def _busy_seconds(process: psutil.Process) -> float:
    """Seconds that a child and its children have computed."""
    seconds = 0.0
    for each in (process, *process.children(recursive=True)):
        with suppress(psutil.Error):
            times = each.cpu_times()
            seconds = max(seconds, times.user + times.system + times.children_user + times.children_system)
    return seconds


def start(folder: Path, command: str, fault: tuple[int, int, int] | None = None) -> int:
    """Start a command in a child; returns its process id."""
    pid = os.fork()
    if not pid:
        _child(folder, COMMANDS[command], fault, [folder.parent / name for name in ("stdout", "stderr", "seen")])
    return pid


def _child(folder: Path, arguments: tuple[str, ...], fault: tuple[int, int, int] | None, texts: list[Path]) -> None:
    """Never returns."""
    status = 70
    try:
        os.chdir(folder)
        for number, path in enumerate(texts[:2], start=1):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        faulthandler.enable(file=2, all_threads=True)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
        texts[2].write_text("0")
        if fault:
            shim = ctypes.CDLL(None)
            kind, number, error = fault
            shim.fault_arm(str(folder).encode(), kind, ctypes.c_long(number), error)
        from launch.main import main

        try:
            status = main(list(arguments))
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
        if fault:
            texts[2].write_text(str(shim.fault_seen()))
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    sys.exit(main())
