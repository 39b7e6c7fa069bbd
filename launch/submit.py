"""`codelength submit`: fill in a job script of slurm/ and hand it to SLURM.

The scripts are the one place for what a job does. Here their `#SBATCH` lines get values, and their arguments and
variables are set below those lines.
"""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.config import dump_config, load_config
from harness.errors import CodelengthError, RunFailure, UsageError
from harness.files import write_file
from harness.rundir import check_same_run, is_done, load_run_config

TEMPLATES = Path(__file__).parents[1] / "slurm"
DIRECTIVE = "#SBATCH --"
# sbatch puts these variables above the lines of a script; most are named after their option.
SBATCH_VARIABLES = {"time": "TIMELIMIT", "array": "ARRAY_INX", "mem": "MEM_PER_NODE", "requeue": "NO_REQUEUE"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Resources:
    """What a job asks the cluster for; None leaves it to the cluster."""

    nodes: int = 1
    """Nodes of the job, or of each task of an array."""
    gpus_per_node: int = 0
    """GPUs on each node."""
    processes_per_node: int | None = None
    """Processes on each node; None: one a GPU, or 1 where there are none."""
    cpus_per_task: int | None = None
    """CPUs on each node; None: one a process."""
    time: str | None = None
    """Longest time of one start, as D-HH:MM:SS."""
    mem: str | None = None
    """Memory on each node, as 64G."""
    partition: str | None = None
    """Partition of the cluster."""
    account: str | None = None
    """Account that is charged."""
    name: str | None = None
    """Name of the job; None: made from the run's."""

    @property
    def processes(self) -> int:
        """Processes on each node."""
        return self.processes_per_node or self.gpus_per_node or 1

    def directives(self) -> dict[str, str]:
        """The options of sbatch that are set."""
        options = {
            "job-name": self.name,
            "nodes": self.nodes,
            "gpus-per-node": self.gpus_per_node or None,
            "cpus-per-task": self.cpus_per_task or self.processes,
            "time": self.time,
            "mem": self.mem,
            "partition": self.partition,
            "account": self.account,
        }
        return {option: str(value) for option, value in options.items() if value is not None}


@dataclass(frozen=True, kw_only=True, slots=True)
class Submission:
    """A job script, ready to be written and handed over."""

    script_path: Path
    text: str
    directives: dict[str, str]
    """Its `#SBATCH` lines by option."""
    files: dict[Path, str]
    """What must lie beside it, by path."""


def prepare_training(path: Path | str, overrides: Sequence[str], resources: Resources) -> Submission | None:
    """The job that trains a run, or None where the run is complete.

    The job reads the configuration as it is now, not as the file may be when its turn comes.

    Raises UsageError for a wrong configuration, or one that differs from what the run was started with.
    """
    config = load_config(path, list(overrides))
    config.train.micro_batch(resources.nodes * resources.processes)
    run_dir = config.run_dir.absolute()
    check_same_run(config)
    if is_done(run_dir):
        return None
    frozen = run_dir / "submit.yaml"
    directives = {"job-name": f"codelength-{config.name}", "output": _pattern(run_dir, "slurm-%j.out")}
    # One job at a time by this name: where the same run is submitted twice, the second waits, and finds it complete.
    directives |= {"dependency": "singleton"} | resources.directives()
    variables = {"CODELENGTH_PROCESSES": str(resources.processes), "CODELENGTH_RUN_DIR": str(run_dir)}
    script = run_dir / "submit.sbatch"
    return _filled("pretrain", script, directives, variables, [str(frozen)], {frozen: dump_config(config)})


def prepare_sweep(path: Path, overrides: Sequence[str], at_a_time: int | None, resources: Resources) -> Submission:
    """The job array of a sweep, a task a run; the tasks skip finished runs.

    Raises UsageError for a wrong sweep or configuration.
    """
    from launch.grid import read_sweep

    if resources.nodes > 1:
        raise UsageError(f"--nodes {resources.nodes}: a run of a sweep has one node; submit larger runs one by one")
    grid = read_sweep(path, list(overrides))
    for run in grid.runs:
        run.config.train.micro_batch(resources.processes)
    directory = grid.directory.absolute()
    limit = f"%{at_a_time}" if at_a_time else ""
    directives = {"job-name": f"codelength-{grid.name}", "output": _pattern(directory, "slurm-%A_%a.out")}
    directives |= {"array": f"0-{len(grid.runs) - 1}{limit}"} | resources.directives()
    variables = {"CODELENGTH_PROCESSES": str(resources.processes)}
    arguments = [str(path.absolute()), *overrides]
    return _filled("sweep", directory / "submit.sbatch", directives, variables, arguments, {})


def prepare_evaluation(runs_and_settings: Sequence[str], resources: Resources) -> Submission:
    """The job that evaluates trained runs: run directories, then `eval.*` settings.

    Raises UsageError where one of them is not a trained run, or a setting is wrong.
    """
    runs = [Path(text) for text in runs_and_settings if "=" not in text]
    settings = [text for text in runs_and_settings if "=" in text]
    problems = []
    if not runs:
        problems.append("--eval: name at least one run directory, for example runs/demo")
    problems += [
        f"{text}: only eval.* can be changed after training" for text in settings if not text.startswith("eval.")
    ]
    for run in runs:
        try:
            load_run_config(run, settings)
            if not is_done(run):
                problems.append(f"{run}: training is not complete; wait for it, or submit it again")
        except UsageError as error:
            problems.append(str(error))
    if resources.nodes > 1:
        problems.append(f"--nodes {resources.nodes}: an evaluation has one node; ask for --cpus-per-task instead")
    if problems:
        raise UsageError("\n".join(dict.fromkeys(problems)))
    directory = runs[0].absolute()
    directives = {"job-name": f"codelength-eval-{directory.name}", "output": _pattern(directory, "slurm-eval-%j.out")}
    directives |= resources.directives()
    arguments = [*map(str, runs), *settings]
    return _filled("eval", directory / "submit-eval.sbatch", directives, {}, arguments, {})


def submit(submission: Submission) -> str:
    """Write the script, hand it to sbatch and return the job's id.

    Raises RunFailure with sbatch's own words where it refuses.
    """
    for path, text in {**submission.files, submission.script_path: submission.text}.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, text.encode())
    # What the script says was asked for just now; a variable set long ago must not outdo it.
    hidden = {f"SBATCH_{SBATCH_VARIABLES.get(o, o.upper().replace('-', '_'))}" for o in submission.directives}
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    command = ["sbatch", "--parsable", str(submission.script_path)]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
    except FileNotFoundError:
        raise RunFailure("sbatch: not found; submit on a machine with SLURM; --dry-run shows the script") from None
    if done.returncode:
        words = [line.removeprefix("sbatch: ").removeprefix("error: ") for line in done.stderr.splitlines()]
        raise RunFailure(f"sbatch refuses {submission.script_path}: {'; '.join(words) or 'without a word'}")
    return done.stdout.strip().partition(";")[0]


def describe(job_id: str, submission: Submission) -> str:
    """What was submitted, where its output goes and how to stop it."""
    meanings = {"%": "%", "j": job_id, "A": job_id, "a": "TASK"}
    output = re.sub("%(.)", lambda found: meanings[found[1]], submission.directives["output"])
    return (
        f"job {job_id} is queued ({submission.directives['job-name']}); squeue --jobs {job_id} shows its state\n"
        f"script  {submission.script_path}\n"
        f"output  {output}\n"
        f"stop    scancel {job_id}; the same submit goes on from there"
    )


def _filled(
    template: str,
    script_path: Path,
    directives: dict[str, str],
    variables: dict[str, str],
    arguments: list[str],
    files: dict[Path, str],
) -> Submission:
    directives = directives | {"chdir": str(Path.cwd())}
    problems = [
        f"--{option} {value!r}: must be printable characters"
        for option, value in directives.items()
        if not value.isprintable()
    ]
    if problems:
        raise UsageError("\n".join(problems))
    path = TEMPLATES / f"{template}.sbatch"
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; submit needs a clone, installed with pip install -e") from None
    given = {_option(line): line.partition("=")[2] for line in lines if line.startswith(DIRECTIVE)}
    first = next(i for i, line in enumerate(lines) if line.startswith(DIRECTIVE))
    header, body = lines[:first], [line for line in lines[first:] if not line.startswith(DIRECTIVE)]
    directives = given | directives
    filled = [f"{DIRECTIVE}{option}{value and '=' + shlex.quote(value)}" for option, value in directives.items()]
    variables = {"CODELENGTH_PYTHON": sys.executable} | variables
    filled += [f"{name}={shlex.quote(value)}" for name, value in variables.items()]
    filled.append(f"set -- {shlex.join(arguments)}")
    text = "\n".join([*header, *filled, *body]) + "\n"
    return Submission(script_path=script_path, text=text, directives=directives, files=files)


def _option(line: str) -> str:
    return line.removeprefix(DIRECTIVE).partition("=")[0]


def _pattern(directory: Path, name: str) -> str:
    """A path for sbatch, which takes `%` for the beginning of a pattern."""
    return f"{str(directory).replace('%', '%%')}/{name}"


def main(arguments: Sequence[str]) -> int:
    """Print the run directory of a job, which job scripts ask for; returns the exit status."""
    try:
        kind, *rest = arguments
        if kind == "pretrain":
            config = load_config(rest[0], rest[1:])
        else:
            from launch.grid import read_sweep
            from launch.sweep import chosen_runs

            index, path, *overrides = rest
            (run,) = chosen_runs(read_sweep(Path(path), overrides), int(index))
            config = run.config
    except CodelengthError as error:
        print(error, file=sys.stderr)
        return error.exit_status
    print(config.run_dir.absolute())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
