"""Online codes of a short text, for tests of whoever sends or receives one."""

import random
import signal
import time
from pathlib import Path

from launch.main import main
from tests.support.commands import ROOT
from tests.support.processes import Process, python, result_of

CONFIG = """
corpus: {kind: wiki-mini, subset_bytes: 3000, heldout_bytes: 500}
model: {width: 32, layers: 1, heads: 1, context: 64}
train: {batch_sequences: 4, log_every_steps: 1}
optimizer: {warmup_tokens: 512}
rule: {kind: rl1, alpha: 0.1}
eval: {chunk_bytes: 64}
online: {segment_steps: 3}
"""
TEXT = (ROOT / "LICENSE").read_bytes()[:3000]
# As many steps as a kill needs to fall among.
LONG = (ROOT / "LICENSE").read_bytes()[:9000]


def run(*arguments: object) -> int:
    """A command in this process."""
    return main([str(argument) for argument in arguments])


def command(*arguments: object, **environment: str) -> Process:
    """A command in a process of its own."""
    return python("-m", "launch", *arguments, cwd=ROOT, env=environment)


def ended(process: Process) -> tuple[int, str, str]:
    """Exit status, stdout and stderr."""
    done = result_of(process)
    return done.returncode, done.stdout, done.stderr


def refused(capsys, file: Path, output: Path, *options: str) -> str:
    """The one line with which receiving `file` ends, without an output."""
    assert run("receive", file, "-o", output, "--quiet", *options) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith(f"codelength: {file}: "), captured.err
    assert captured.err.count("\n") == 1
    assert not output.exists() and not output.with_name(f"{output.name}.part").exists()
    return captured.err


def killed_now_and_then(arguments: list, marks: Path, kills: int, seed: int) -> None:
    """Run a command to its end, and kill it on its way after random numbers of checkpoints in `marks` and seconds."""
    rng = random.Random(seed)
    seen: set[str] = set()
    for _ in range(kills):
        process, deadline = command(*arguments), time.monotonic() + 120
        # A new checkpoint first, so that every attempt gets further than the one before.
        while not {p.name for p in marks.glob("step-*")} - seen and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.002)
        time.sleep(rng.random() * 0.3)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
        seen = {p.name for p in marks.glob("step-*")}
    status, _, errors = ended(command(*arguments))
    assert status == 0, errors
