"""The command line: subcommands and their options."""

import argparse
import re
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path

from harness.children import num_cores
from launch.commands import crossover, online, teacher
from launch.commands import runs as commands

PASSED_OPTIONS = {
    "--sbatch": 'more options of sbatch, such as "--constraint=a100"',
    "--data-sbatch": "the same for the job that prepares data",
    "--srun": 'more options of srun, such as "--container-image=IMAGE"',
}
"""Flags of `submit` whose values are options themselves."""
MAX_DIGITS = 15
AddCommand = Callable[[str, Callable[[argparse.Namespace], int | None], str], argparse.ArgumentParser]


def make_parser() -> argparse.ArgumentParser:
    """The parser of `codelength`; `options.run(options)` does the work."""
    parser = argparse.ArgumentParser(
        prog="codelength",
        description="Pretrain a transformer, know the online code length of its corpus, and write its offline code.",
    )
    parser.add_argument("--version", action="version", version=f"codelength {_version()}")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], int | None], text: str) -> argparse.ArgumentParser:
        sub = subparsers.add_parser(name, help=text, description=text)
        sub.set_defaults(run=run)
        return sub

    for add in (_add_runs, _add_files, _add_online, _add_curve, _add_crossover, _add_teacher, _add_machines):
        add(command)
    return parser


def with_passed_options(arguments: Sequence[str]) -> list[str]:
    """`--sbatch --exclusive` as `--sbatch=--exclusive`: argparse takes what begins with dashes for a flag."""
    joined: list[str] = []
    for text in arguments:
        if joined and joined[-1] in PASSED_OPTIONS and text.startswith("-") and text != "--":
            joined[-1] += f"={text}"
        else:
            joined.append(text)
    return joined


def _add_runs(command: AddCommand) -> None:
    """Making and comparing runs."""
    sub = command("init", commands.init_command, "write a preset as a file to edit, or list the presets")
    sub.add_argument("preset", nargs="?", metavar="PRESET", help="for example wiki-mini")
    sub.add_argument("-o", "--output", type=Path, metavar="FILE", help="default: PRESET.yaml")
    sub = command("data", commands.data_command, "prepare tokenizer and shards of a corpus")
    _add_config(sub)
    sub = command("train", commands.train_command, "train a run: main -> prune -> finetune; a stopped run goes on")
    sub.add_argument("--processes", type=_positive, default=1, help="processes of torchrun (default: 1)")
    _add_config(sub)
    sub = command("eval", commands.eval_command, "write, decode and report the offline code of trained runs")
    sub.add_argument("runs", nargs="+", metavar="RUN", help="run directories, then eval.* overrides")
    sub.add_argument("--sweep-precision", action="store_true", help="also draw bits a weight against total bytes")
    _add_work_options(sub)
    sub = command("table", commands.table_command, "compare evaluated runs")
    sub.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    sub.add_argument("--format", default="rich", metavar="rich|md|csv|json|latex")
    sub = command("plot", commands.plot_command, "draw the figures of evaluated runs again")
    sub.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    sub = command(
        "sweep",
        commands.sweep_command,
        "train and evaluate a grid of runs and compare them; goes on",
    )
    sub.add_argument("--at-a-time", type=_positive, default=1, metavar="N", help="runs side by side (default: 1)")
    sub.add_argument("--processes", type=_positive, default=1, help="processes of every run (default: 1)")
    sub.add_argument("--index", type=_natural, metavar="I", help="only run I, counted from 0, as in a job array")
    sub.add_argument("--count", action="store_true", help="print the number of runs and stop")
    sub.add_argument("--dry-run", action="store_true", help="print the runs with settings and states, and stop")
    sub.add_argument("sweep", type=Path, metavar="SWEEP", help="a YAML file, see configs/sweeps/")
    sub.add_argument("overrides", nargs="*", metavar="key=value", help="settings of all runs")


def _add_files(command: AddCommand) -> None:
    """Coding files."""
    sub = command("compress", commands.compress_command, "code any file with the model of a run")
    sub.add_argument("--run", dest="run_dir", type=Path, required=True, metavar="RUN")
    sub.add_argument("input", type=Path, metavar="INPUT", help="`-`: standard input")
    _add_output(sub)
    _add_work_options(sub)
    sub = command("decompress", commands.decompress_command, "rebuild the text from an archive alone")
    sub.add_argument("archive", type=Path, metavar="FILE.cl", help="`-`: standard input")
    _add_output(sub)
    _add_max_memory(sub)
    _add_work_options(sub)


def _add_curve(command: AddCommand) -> None:
    """Loss curves of others."""
    text = "online and offline code lengths that follow from a published loss curve or a TensorBoard log"
    sub = command("curve", commands.curve_command, text)
    sub.add_argument(
        "curve", type=Path, metavar="CSV", help="x and loss in two columns (CSV or JSON lines), or a TensorBoard log"
    )
    sub.add_argument("--unit", metavar="nats|bits", help="of the losses, per token (or byte, if x counts bytes)")
    sub.add_argument("--columns", metavar="X,LOSS", help="names in the first line, where there are more than two")
    sub.add_argument("--tag", metavar="TAG", help="scalar of a TensorBoard log, where there are several")
    shown = "what the trainer calls its first step, 0 or 1 (default: as the steps look, and the table says how)"
    sub.add_argument("--first-step", metavar="N", help=shown)
    sub.add_argument("--skip-nan", action="store_true", help="leave out and count points without a usable loss")
    shown = "use what can be read of a TensorBoard log that is cut or damaged"
    sub.add_argument("--allow-damaged", action="store_true", help=shown)
    # Read as text: what is wrong with a number is said in one line, like all that is wrong with the curve.
    for name, shown in (
        ("tokens", "different tokens of the dataset; points beyond are further epochs (default: the last x)"),
        ("tokens-per-step", "tokens of one x: of an optimizer step, or 1e9 where x counts billions (default: 1)"),
        ("vocab-size", "bounds the loss before the first point by its logarithm"),
        ("raw-bytes", "size of the dataset, for bits/byte"),
        ("parameters", "of the model, for the offline code"),
        ("bits-per-weight", "of the model as sent, such as 16"),
        ("final-loss", "loss of the offline code in the same unit, such as held-out (default: the last one)"),
    ):
        sub.add_argument(f"--{name}", metavar="N", help=shown)
    sub.add_argument("--format", default="rich", metavar="rich|md|csv|json|latex")
    sub.add_argument("--figure", type=Path, metavar="FILE.png", help="draw the curve; replaces FILE.png")


def _add_crossover(command: AddCommand) -> None:
    """The bits of a model, and where its two codes are equally long."""
    text = "model bits of a run beside a control on shuffled bytes, and the size from which on offline is shorter"
    sub = command("crossover", crossover.crossover_command, text)
    sub.add_argument("--processes", type=_positive, default=1, help="processes of both runs (default: 1)")
    sub.add_argument("--format", default="rich", choices=["rich", "md", "json"], help="(default: rich)")
    _add_config(sub)


def _add_teacher(command: AddCommand) -> None:
    """Teacher and students."""
    text = "weights and targets of small networks as files: each sparsity rule against the published totals; goes on"
    sub = command("teacher", teacher.teacher_command, text)
    sub.add_argument("--at-a-time", type=_positive, default=1, metavar="N", help="processes (default: 1)")
    sub.add_argument("--index", type=_natural, metavar="I", help="only job I, counted from 0, as in a job array")
    sub.add_argument(
        "overrides", nargs="*", metavar="CONFIG key=value", help="a YAML file (default: no changes), then settings"
    )


def _add_online(command: AddCommand) -> None:
    """The online code as a file."""
    sub = command("send", online.send_command, "write the online code of a text: every batch coded, then learnt from")
    sub.add_argument("config", metavar="CONFIG", help="a YAML file, see configs/")
    sub.add_argument(
        "overrides", nargs="*", metavar="INPUT key=value", help="any file (default: the training corpus); settings"
    )
    sub.add_argument("--processes", type=_positive, default=1, help="processes, a stream each (default: 1)")
    sub.add_argument("--json", action="store_true", help="print the parts of the file for programs")
    _add_output(sub)
    sub.add_argument("--quiet", action="store_true", help="no progress")
    sub = command(
        "receive", online.receive_command, "rebuild the text from an online code alone; a stopped one goes on"
    )
    sub.add_argument("file", type=Path, metavar="FILE.clo", help="`-`: standard input")
    sub.add_argument("--processes", type=_positive, help="processes (default: as many as have sent)")
    sub.add_argument("--json", action="store_true", help="print digest, time and memory for programs")
    _add_output(sub)
    _add_max_memory(sub)
    sub.add_argument("--quiet", action="store_true", help="no progress")
    sub = command("audit", online.audit_command, "which threads, lanes, processes and instruction sets keep every bit")
    sub.add_argument("--format", default="rich", choices=["rich", "md", "json"], help="(default: rich)")
    _add_config(sub)


def _add_machines(command: AddCommand) -> None:
    """Machines and clusters."""
    sub = command("plan", commands.plan_command, "memory, time and disk space of a run, before it starts")
    sub.add_argument("--gpus", type=_positive, default=1, metavar="N", help="ranks, one a GPU (default: 1)")
    sub.add_argument("--gpu", metavar="NAME", help="such as a100-80g; cpu: processes here (default: what is here)")
    sub.add_argument("--mfu", type=_share, metavar="F", help="share of a GPU's peak that is reached (default: 0.4)")
    sub.add_argument("--gpu-hours", type=_positive, metavar="H", help="say which share of the peak so many hours are")
    sub.add_argument("--train-bytes", type=_positive, metavar="N", help="size of a corpus that is not prepared")
    sub.add_argument("--tokens", type=_positive, metavar="N", help="the same in tokens")
    sub.add_argument("--json", action="store_true", help="for programs; sizes in bytes")
    _add_config(sub)
    sub = command("doctor", commands.doctor_command, "what this machine lacks, and the command that mends it")
    sub.add_argument("--runs-dir", type=Path, default=Path("runs"), metavar="DIR", help="default: %(default)s")
    sub.add_argument("--json", action="store_true", help="for programs")
    sub = command(
        "submit",
        commands.submit_command,
        "submit a run, a sweep or evaluations as SLURM jobs",
    )
    sub.add_argument("overrides", nargs="*", metavar="CONFIG key=value", help="a YAML file, then settings")
    sub.add_argument("--sweep", type=Path, metavar="FILE", help="submit the runs of a sweep as an array")
    sub.add_argument("--at-a-time", type=_positive, metavar="K", help="runs of a sweep at a time (default: all)")
    sub.add_argument("--eval", nargs="+", metavar="RUN", help="evaluate trained runs; eval.* settings may follow")
    sub.add_argument("--nodes", type=_positive, default=1, metavar="N", help="(default: 1)")
    sub.add_argument(
        "--gpus-per-node", type=_gpus, default=(None, 0), metavar="[TYPE:]N", help="such as h100:8 (default: none)"
    )
    sub.add_argument("--processes-per-node", type=_positive, metavar="N", help="(default: one a GPU, or 1)")
    sub.add_argument("--cpus-per-gpu", type=_positive, default=8, metavar="N", help="(default: %(default)s)")
    text = "CPUs on each node (default: those of its GPUs, or one a process)"
    sub.add_argument("--cpus-per-task", type=_positive, metavar="N", help=text)
    sub.add_argument("--whole-nodes", action="store_true", help="share them with nobody, and take all their memory")
    text = "when to save before the time is over, in seconds (default: 180)"
    sub.add_argument("--save-seconds", type=_positive, metavar="N", help=text)
    options = {"time": "D-HH:MM:SS", "mem": "64G", "partition": "NAME", "account": "NAME", "qos": "NAME"}
    for name, shown in options.items():
        sub.add_argument(f"--{name}", metavar=shown, help="(default: the cluster's)")
    sub.add_argument("--name", metavar="NAME", help="name of the job (default: the run's)")
    for flag, shown in PASSED_OPTIONS.items():
        sub.add_argument(flag, default="", metavar="OPTIONS", help=shown)
    text = "commands that every job begins with, such as module load"
    sub.add_argument("--setup", type=Path, metavar="FILE", help=text)
    sub.add_argument("--dry-run", action="store_true", help="print the job script and submit nothing")


def _version() -> str:
    try:
        return metadata.version("codelength")
    except metadata.PackageNotFoundError:
        return "(not installed)"


def _add_work_options(sub: argparse.ArgumentParser) -> None:
    cores = num_cores()
    sub.add_argument(
        "--threads", type=_positive, default=cores, help="blocks computed at a time (default: %(default)s)"
    )
    sub.add_argument("--quiet", action="store_true", help="no progress")


def _add_config(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("config", metavar="CONFIG", help="a YAML file, or the name of a preset (`codelength init`)")
    sub.add_argument("overrides", nargs="*", metavar="key=value", help="for example train.epochs=2")


def _add_output(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="`-`: standard output")
    sub.add_argument("--force", action="store_true", help="replace FILE if it exists; its mode and a link to it stay")


def _add_max_memory(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--max-memory", type=_size, metavar="BYTES", help="refuse files that need more, such as 500M or 4G"
    )


def _size(text: str) -> int:
    units = {"k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
    number, unit = (text[:-1], units[text[-1]]) if text[-1:] in units else (text, 1)
    return _positive(number) * unit


def _positive(text: str) -> int:
    if not _is_number(text) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text[:40]}: must be a whole number, at least 1")
    return int(text)


def _gpus(text: str) -> tuple[str | None, int]:
    """Type and number."""
    kind, _, number = text.rpartition(":")
    if not number.isdecimal() or int(number) < 1 or (":" in text and not re.fullmatch(r"[A-Za-z0-9._-]+", kind)):
        raise argparse.ArgumentTypeError(f"{text}: must be a number, or a type with a number such as h100:8")
    return kind or None, int(number)


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise argparse.ArgumentTypeError(f"{text}: must be above 0 and at most 1")
    return share


def _natural(text: str) -> int:
    if not _is_number(text):
        raise argparse.ArgumentTypeError(f"{text[:40]}: must be a whole number, 0 or more")
    return int(text)


def _is_number(text: str) -> bool:
    """Whether this is a whole number that anything can be counted with."""
    return text.isdecimal() and len(text) <= MAX_DIGITS
