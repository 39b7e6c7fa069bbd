"""Processes for tests, forked from one that has imported the libraries, which takes a cold start seconds.

Each is a process of its own all the same, with its own memory, signals, environment and folder, and imports this
project afresh. What a library reads from the environment while it is imported needs a cold start.
"""

import atexit
import gc
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from pathlib import Path

LIBRARIES = (
    "torch._dynamo",
    "torch.nn.parallel",
    "torch.utils.tensorboard",
    "brotli",
    "constriction",
    "matplotlib.backends.backend_agg",
    "pyppmd",
    "numba.typed",
    "omegaconf",
    "pandas",
    "psutil",
    "pyarrow.parquet",
    "rich.table",
    "safetensors.torch",
    "scipy.stats",
    "sentencepiece",
    "tests.support.warm",
)
READ_AT_START = ("ATEN_", "MKL_", "NUMBA_", "ONEDNN_", "OMP_", "PYTHONHASHSEED")
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(list(LIBRARIES))


class Forked:
    """A process with the part of `subprocess.Popen` that tests use; its texts are kept in files."""

    def __init__(self, args: list[str], cwd: Path, env: dict[str, str]):
        self.args, self.returncode = args, None
        self._texts = [Path(tempfile.mkstemp()[1]) for _ in range(2)]
        # A daemon would be refused processes of its own; an exit of the tests kills what is left.
        self._process = SERVER.Process(target=_run, args=(args[1:], str(cwd), env, self._texts))
        self._process.start()
        self.pid = self._process.pid
        atexit.register(self._process.kill)

    def poll(self) -> int | None:
        """Exit status, or the negative number of a signal; None while it runs."""
        self.returncode = self._process.exitcode
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """The same, when it has ended."""
        self._process.join(timeout)
        if self.poll() is None:
            raise subprocess.TimeoutExpired(self.args, timeout)
        return self.returncode

    def printed(self) -> str:
        """What is on stdout so far."""
        return self._texts[0].read_text(errors="replace")

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What it has printed on stdout and on stderr until its end."""
        self.wait(timeout)
        texts = tuple(path.read_text(errors="replace") if path.exists() else "" for path in self._texts)
        for path in self._texts:
            path.unlink(missing_ok=True)
        return texts

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it at once."""
        self.send_signal(signal.SIGKILL)


Process = Forked | subprocess.Popen


def python(*arguments: object, cwd: Path, env: dict[str, str] | None = None) -> Process:
    """`python ARGUMENTS`, `env` beside what is set; cold only where that changes what libraries read at their start."""
    args = [sys.executable, *map(str, arguments)]
    changed = {key: value for key, value in (env or {}).items() if os.environ.get(key) != value}
    env = os.environ | changed
    if any(key.startswith(READ_AT_START) for key in changed):
        return subprocess.Popen(args, cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return Forked(args, cwd, env)


def result_of(process: Process, timeout: float = 200) -> subprocess.CompletedProcess:
    """Exit status, stdout and stderr."""
    texts = process.communicate(timeout=timeout)
    return subprocess.CompletedProcess(process.args, process.returncode, *texts)


def _run(arguments: list[str], cwd: str, env: dict[str, str], texts: list[Path]) -> None:
    """What the interpreter does from its start to its end."""
    # What the libraries hold stays: collecting garbage among it takes seconds.
    gc.freeze()
    for number, path in enumerate(texts, start=1):
        os.dup2(os.open(path, os.O_WRONLY), number)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", errors="replace", closefd=False) for number in (1, 2))
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    if arguments[0] == "-P":
        arguments = arguments[1:]
    else:
        sys.path.insert(0, cwd)
    sys.path[:0] = filter(None, env.get("PYTHONPATH", "").split(os.pathsep))
    option, program, sys.argv = arguments[0], arguments[1], arguments[1:]
    try:
        if option == "-m":
            runpy.run_module(program, run_name="__main__", alter_sys=True)
        else:
            exec(compile(program, "<string>", "exec"), {"__name__": "__main__"})
        status = 0
    except SystemExit as end:
        status = 0 if end.code is None else end.code
    except BaseException:
        traceback.print_exc()
        status = 1
    if not isinstance(status, int):
        print(status, file=sys.stderr)
        status = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
