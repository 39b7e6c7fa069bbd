"""Machines and clusters: `plan`, `doctor`, `submit` and `completion`."""

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from harness.errors import UsageError
from launch.commands.options import (
    AddCommand,
    add_config,
    fraction,
    gpus,
    positive,
)

PASSED_OPTIONS = {
    "--sbatch": 'more options of sbatch, such as "--constraint=a100"',
    "--data-sbatch": "the same for the job that prepares data",
    "--srun": 'more options of srun, such as "--container-image=IMAGE"',
}
"""Flags of `submit` whose values are options themselves."""


def register(command: AddCommand) -> None:
    """Add the flags of these commands."""
    sub = command("plan", plan_command, "memory, time and disk space of a run, before it starts")
    sub.add_argument("--gpus", type=positive, default=1, metavar="N", help="ranks, one a GPU (default: 1)")
    sub.add_argument("--gpu", metavar="NAME", help="such as a100-80g; cpu: processes here (default: what is here)")
    sub.add_argument("--mfu", type=fraction, metavar="F", help="share of a GPU's peak that is reached (default: 0.4)")
    sub.add_argument("--gpu-hours", type=positive, metavar="H", help="say which share of the peak so many hours are")
    sub.add_argument("--train-bytes", type=positive, metavar="N", help="size of a corpus that is not prepared")
    sub.add_argument("--tokens", type=positive, metavar="N", help="the same in tokens")
    sub.add_argument("--json", action="store_true", help="for programs; sizes in bytes")
    add_config(sub)
    sub = command("doctor", doctor_command, "what this machine lacks, and the command that mends it")
    sub.add_argument("--runs-dir", type=Path, default=Path("runs"), metavar="DIR", help="default: %(default)s")
    sub.add_argument("--json", action="store_true", help="for programs")
    text = 'print what makes a shell complete commands and flags: eval "$(codelength completion bash)"'
    sub = command("completion", completion_command, text)
    sub.add_argument("shell", choices=["bash", "zsh", "tcsh"])
    sub = command(
        "submit",
        submit_command,
        "submit a run, a sweep or evaluations as SLURM jobs",
    )
    sub.add_argument("overrides", nargs="*", metavar="CONFIG key=value", help="a YAML file, then settings")
    sub.add_argument("--sweep", type=Path, metavar="FILE", help="submit the runs of a sweep as an array")
    sub.add_argument("--at-a-time", type=positive, metavar="K", help="runs of a sweep at a time (default: all)")
    sub.add_argument("--eval", nargs="+", metavar="RUN", help="evaluate trained runs; eval.* settings may follow")
    sub.add_argument("--nodes", type=positive, default=1, metavar="N", help="(default: 1)")
    sub.add_argument(
        "--gpus-per-node", type=gpus, default=(None, 0), metavar="[TYPE:]N", help="such as h100:8 (default: none)"
    )
    sub.add_argument("--processes-per-node", type=positive, metavar="N", help="(default: one a GPU, or 1)")
    sub.add_argument("--cpus-per-gpu", type=positive, default=8, metavar="N", help="(default: %(default)s)")
    text = "CPUs on each node (default: those of its GPUs, or one a process)"
    sub.add_argument("--cpus-per-task", type=positive, metavar="N", help=text)
    sub.add_argument("--whole-nodes", action="store_true", help="share them with nobody, and take all their memory")
    text = "when to save before the time is over, in seconds (default: 180)"
    sub.add_argument("--save-seconds", type=positive, metavar="N", help=text)
    options = {"time": "D-HH:MM:SS", "mem": "64G", "partition": "NAME", "account": "NAME", "qos": "NAME"}
    for name, shown in options.items():
        sub.add_argument(f"--{name}", metavar=shown, help="(default: the cluster's)")
    sub.add_argument("--name", metavar="NAME", help="name of the job (default: the run's)")
    for flag, shown in PASSED_OPTIONS.items():
        sub.add_argument(flag, default="", metavar="OPTIONS", help=shown)
    text = "commands that every job begins with, such as module load"
    sub.add_argument("--setup", type=Path, metavar="FILE", help=text)
    sub.add_argument("--dry-run", action="store_true", help="print the job script and submit nothing")


def plan_command(options: Namespace) -> None:
    """Print what a run needs: memory, time and disk."""
    from launch.plan.plan import Question
    from launch.plan.tables import print_plan

    names = ("gpus", "gpu", "mfu", "train_bytes", "tokens", "gpu_hours")
    question = Question(**{name: getattr(options, name) for name in names})
    print_plan(options.config, options.overrides, question, options.json)


def doctor_command(options: Namespace) -> None:
    """Examine this machine."""
    from launch.doctor.doctor import doctor

    doctor(options.runs_dir, options.json)


def completion_command(options: Namespace) -> None:
    """Print a completion script."""
    import shtab

    from launch.commands.parser import make_parser

    print(shtab.complete(make_parser(), options.shell))


def submit_command(options: Namespace) -> None:
    """Submit a job."""
    from launch.slurm import submit
    from launch.slurm.resources import Resources

    names = [field.name for field in fields(Resources) if not field.name.startswith("gpu")]
    gpu_type, gpus = options.gpus_per_node
    asked = {name: getattr(options, name) for name in names}
    resources = Resources(gpu_type=gpu_type, gpus_per_node=gpus, **asked)
    if options.at_a_time and not options.sweep:
        raise UsageError(f"--at-a-time {options.at_a_time}: is for --sweep FILE")
    if options.sweep and options.eval:
        raise UsageError("--sweep, --eval: choose one; a sweep evaluates its runs")
    submission: submit.Submission | None
    if options.sweep:
        submission = submit.prepare_sweep(options.sweep, options.overrides, options.at_a_time, resources)
    elif options.eval:
        submission = submit.prepare_evaluation([*options.eval, *options.overrides], resources)
    elif options.overrides:
        submission = submit.prepare_training(options.overrides[0], options.overrides[1:], resources)
    else:
        raise UsageError("submit: give CONFIG, --sweep FILE or --eval RUN")
    if submission is None:
        print("training is complete; nothing to submit")
    elif options.dry_run:
        print("".join(job.text for job in (submission, *submission.needs)), end="")
    else:
        print(submit.describe(*submit.submit(submission), submission))


def with_passed_options(arguments: Sequence[str]) -> list[str]:
    """Rewrite `--sbatch --exclusive` as `--sbatch=--exclusive`: argparse takes what begins with dashes for a flag."""
    joined: list[str] = []
    for text in arguments:
        if joined and joined[-1] in PASSED_OPTIONS and text.startswith("-") and text != "--":
            joined[-1] += f"={text}"
        else:
            joined.append(text)
    return joined
