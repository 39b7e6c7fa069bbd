"""`codelength submit`: fill in a job script of slurm/ and hand it to SLURM.

The scripts are the one place for what a job does. Here their `#SBATCH` lines get values, and their arguments and
variables are set below those lines.
"""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from harness.config.presets import product_folder
from harness.config.run import RunConfig, dump_config, load_config
from harness.corpus.prepared import data_directory
from harness.errors import RunFailure, UsageError
from harness.files import write_file
from harness.run.directory import check_same_run, is_done, load_run_config
from launch.slurm.resources import Resources, words_of

TEMPLATES = product_folder("slurm")
DIRECTIVE = "#SBATCH --"
# sbatch puts these variables above the lines of a script; most are named after their option.
SBATCH_VARIABLES = {"time": "TIMELIMIT", "array": "ARRAY_INX", "mem": "MEM_PER_NODE", "requeue": "NO_REQUEUE"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Submission:
    """A job script, ready to be written and submitted."""

    script_path: Path
    text: str
    directives: dict[str, str]
    """Its `#SBATCH` lines by option."""
    files: dict[Path, str]
    """What must lie beside it, by path."""
    needs: tuple["Submission", ...] = ()
    """Jobs that must have succeeded before."""


def prepare_training(path: Path | str, overrides: Sequence[str], resources: Resources) -> Submission | None:
    """Make the job that trains a run, or None where the run is complete.

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
    directives |= {"dependency": "singleton"}
    script = _filled("pretrain", run_dir / "submit.sbatch", directives, resources, [str(frozen)])
    needs = _preparations([config], run_dir, resources)
    return replace(script, files={frozen: dump_config(config)}, needs=needs)


def _preparations(configs: Iterable[RunConfig], directory: Path, resources: Resources) -> tuple[Submission, ...]:
    """A job for each set of data that is not prepared; `directory` gets their scripts."""
    submissions = []
    for data, config in {data_directory(config): config for config in configs}.items():
        if data.exists():
            continue
        # Submitted for several runs, the first of these jobs prepares, and the others find that it is done.
        directives = {"job-name": f"codelength-data-{data.name}", "dependency": "singleton"}
        directives |= {"output": _pattern(directory, "slurm-data-%j.out")}
        frozen = directory / f"submit-{data.name}.yaml"
        script = directory / f"submit-{data.name}.sbatch"
        job = _filled("data", script, directives, resources.for_data(), [str(frozen)])
        submissions.append(replace(job, files={frozen: dump_config(config)}))
    return tuple(submissions)


def prepare_sweep(path: Path, overrides: Sequence[str], at_a_time: int | None, resources: Resources) -> Submission:
    """Make the job array of a sweep, a task for each run; the tasks skip finished runs.

    Raises UsageError for a wrong sweep or configuration.
    """
    from launch.sweeps.sweep_file import read_sweep

    if resources.nodes > 1:
        raise UsageError(f"--nodes {resources.nodes}: a run of a sweep has one node; submit larger runs one by one")
    sweep = read_sweep(path, list(overrides))
    for run in sweep.runs:
        run.config.train.micro_batch(resources.processes)
    directory = sweep.directory.absolute()
    limit = f"%{at_a_time}" if at_a_time else ""
    directives = {"job-name": f"codelength-{sweep.name}", "output": _pattern(directory, "slurm-%A_%a.out")}
    directives |= {"array": f"0-{len(sweep.runs) - 1}{limit}"}
    arguments = [str(path.absolute()), *overrides]
    job = _filled("sweep", directory / "submit.sbatch", directives, resources, arguments)
    return replace(job, needs=_preparations([run.config for run in sweep.runs], directory, resources))


def prepare_evaluation(runs_and_settings: Sequence[str], resources: Resources) -> Submission:
    """Make the job that evaluates trained runs: run directories, then `eval.*` settings.

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
    arguments = [*map(str, runs), *settings]
    # It does not save in between.
    resources = replace(resources, save_seconds=None)
    return _filled("eval", directory / "submit-eval.sbatch", directives, resources, arguments)


def submit(submission: Submission) -> tuple[str, list[str]]:
    """Write the scripts and hand them to sbatch; returns the id of the job, and those of the jobs that it waits for.

    Raises RunFailure with sbatch's own words where it refuses; nothing is queued then.
    """
    needed: list[str] = []
    try:
        for job in submission.needs:
            needed.append(_hand_over(job, []))
        return _hand_over(submission, needed), needed
    except RunFailure:
        if needed:
            subprocess.run(["scancel", *needed], capture_output=True)
        raise


def _hand_over(submission: Submission, needed: list[str]) -> str:
    for path, text in {**submission.files, submission.script_path: submission.text}.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, text.encode())
    # What the script says was asked for just now; a variable set long ago must not outdo it.
    hidden = {f"SBATCH_{SBATCH_VARIABLES.get(o, o.upper().replace('-', '_'))}" for o in submission.directives}
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    command = ["sbatch", "--parsable"]
    if needed:
        conditions = [submission.directives.get("dependency"), f"afterok:{':'.join(needed)}"]
        # Where preparing fails, a job that waits for it would wait for ever.
        command += [f"--dependency={','.join(filter(None, conditions))}", "--kill-on-invalid-dep=yes"]
    command.append(str(submission.script_path))
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
    except FileNotFoundError:
        raise RunFailure("sbatch: not found; submit on a machine with SLURM; --dry-run shows the script") from None
    if done.returncode:
        words = [line.removeprefix("sbatch: ").removeprefix("error: ") for line in done.stderr.splitlines()]
        raise RunFailure(f"sbatch refuses {submission.script_path}: {'; '.join(words) or 'without a word'}")
    return done.stdout.strip().partition(";")[0]


def describe(job_id: str, needed: list[str], submission: Submission) -> str:
    """Describe what was submitted, where its output goes and how to stop it."""
    meanings = {"%": "%", "j": job_id, "A": job_id, "a": "TASK"}
    output = re.sub("%(.)", lambda match: meanings.get(match[1], match[0]), submission.directives["output"])
    lines = [
        f"job {job_id} is queued ({submission.directives['job-name']}); squeue --jobs {job_id} shows its state",
        f"script  {submission.script_path}",
        f"output  {output}",
        f"stop    scancel {' '.join([job_id, *needed])}; the same submit goes on from there",
    ]
    if needed:
        lines.insert(1, f"data    prepared by job {', '.join(needed)} before")
    return "\n".join(lines)


def _filled(
    template: str, script_path: Path, directives: dict[str, str], resources: Resources, arguments: list[str]
) -> Submission:
    asked = resources.directives()
    if "dependency" in directives and "dependency" in asked:
        asked["dependency"] = f"{directives['dependency']},{asked['dependency']}"
    directives = directives | asked | {"chdir": str(Path.cwd())}
    problems = [
        f"--{option} {value!r}: must be printable characters"
        for option, value in directives.items()
        if not f"{option}{value}".isprintable()
    ]
    if problems:
        raise UsageError("\n".join(problems))
    path = TEMPLATES / f"{template}.sbatch"
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; install codelength again") from None
    given = {_option(line): line.partition("=")[2] for line in lines if line.startswith(DIRECTIVE)}
    first = next(i for i, line in enumerate(lines) if line.startswith(DIRECTIVE))
    header, body = lines[:first], [line for line in lines[first:] if not line.startswith(DIRECTIVE)]
    directives = given | directives
    filled = [f"{DIRECTIVE}{option}{value and '=' + shlex.quote(value)}" for option, value in directives.items()]
    variables = {"CODELENGTH_PYTHON": sys.executable, "CODELENGTH_PROCESSES": str(resources.processes)}
    variables |= {"CODELENGTH_SRUN": shlex.join(words_of("--srun", resources.srun))}
    filled += [f"{name}={shlex.quote(value)}" for name, value in variables.items() if value and name in "\n".join(body)]
    filled += [*_setup(resources.setup), f"set -- {shlex.join(arguments)}"]
    text = "\n".join([*header, *filled, *body]) + "\n"
    return Submission(script_path=script_path, text=text, directives=directives, files={})


def _setup(path: Path | None) -> list[str]:
    """The lines of a file of commands, as it is now."""
    if path is None:
        return []
    try:
        return [f"# from {shlex.quote(path.name)}", *path.read_text().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"--setup {path}: {getattr(error, 'strerror', None) or 'not text'}; give a file of shell commands"
        ) from None


def _option(line: str) -> str:
    return line.removeprefix(DIRECTIVE).partition("=")[0]


def _pattern(directory: Path, name: str) -> str:
    """A path for sbatch, which takes `%` for the beginning of a pattern."""
    return f"{str(directory).replace('%', '%%')}/{name}"
