"""The `codelength` command: one subcommand per step of the work.

Heavy imports happen inside the subcommands, so that `--help` and mistakes answer at once.
"""

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from harness.errors import CodelengthError, UsageError

SECONDS_BETWEEN_PROGRESS = 0.5
SECONDS_BETWEEN_PROGRESS_LINES = 10.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand; returns the exit status: 0, 1 (the work failed) or 2 (usage or input)."""
    parser = _parser()
    options, unknown = parser.parse_known_args(arguments)
    # argparse takes no more positionals once an option has come; settings may stand anywhere.
    if unknown and (not hasattr(options, "overrides") or any(text.startswith("-") for text in unknown)):
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if unknown:
        options.overrides += unknown
    try:
        options.run(options)
        sys.stdout.flush()
    except CodelengthError as error:
        for line in str(error).splitlines():
            print(f"codelength: {line}", file=sys.stderr)
        return error.exit_status
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            # The reader of a pipe (`| head`) has seen enough; nothing more can be said to it.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        print(f"codelength: {error.filename or 'system'}: {error.strerror or error}", file=sys.stderr)
        return 1
    except MemoryError:
        print("codelength: out of memory", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("codelength: interrupted; nothing half-written is left", file=sys.stderr)
        return 128 + signal.SIGINT
    return 0


def _data(options: argparse.Namespace) -> None:
    from harness.config import load_config
    from harness.data import prepare_data

    data = prepare_data(load_config(options.config, options.overrides))
    for name, shard in (("train", data.train), ("heldout", data.heldout)):
        print(f"{name:8}{shard.raw_bytes:>16,} bytes = {shard.num_tokens:,} tokens, SHA-256 {shard.fingerprint[:16]}")
    print(f"shards are in {data.directory}")


def _train(options: argparse.Namespace) -> None:
    from harness.config import load_config

    config = load_config(options.config, options.overrides)
    if options.processes > 1:
        from launch.workers import train_here

        config.train.micro_batch(options.processes)
        sys.exit(train_here([options.config, *options.overrides], options.processes))
    from harness.train import train_run

    train_run(config)


def _eval(options: argparse.Namespace) -> None:
    from eval.offline import evaluate
    from eval.plot import plot_run
    from eval.table import load_reports, render

    split_at = next((i for i, text in enumerate(options.runs) if "=" in text), len(options.runs))
    runs, overrides = [Path(run) for run in options.runs[:split_at]], options.runs[split_at:]
    if not runs:
        raise UsageError("eval: name at least one run directory, for example runs/demo")
    if any(not text.startswith("eval.") for text in overrides):
        raise UsageError(f"{' '.join(overrides)}: only eval.* can be changed after training")
    for run in runs:
        evaluate(run, overrides, options.threads, _progress(options.quiet))
        reports = load_reports([run])
        (run / "table.md").write_text(render(reports, "md"))
        plot_run(run)
    print(render(load_reports(runs), "rich"), end="")
    for run in runs:
        print(f"archive, report.json, table.md and figures are in {run}; it decodes with")
        print(f"  codelength decompress {run}/offline/archive.cl -o OUT")


def _table(options: argparse.Namespace) -> None:
    from eval.table import load_reports, render

    print(render(load_reports(options.runs), options.format), end="")


def _plot(options: argparse.Namespace) -> None:
    from eval.plot import plot_run

    for run in options.runs:
        for path in plot_run(run):
            print(path)


def _sweep(options: argparse.Namespace) -> None:
    if options.count:
        from launch.grid import read_sweep

        print(len(read_sweep(options.sweep, options.overrides).runs))
        return
    from launch.sweep import describe, sweep

    if options.dry_run:
        describe(options.sweep, options.overrides, options.index)
        return
    sweep(options.sweep, options.overrides, options.at_a_time, options.processes, options.index)


def _plan(options: argparse.Namespace) -> None:
    from launch.plan import Question
    from launch.plan_tables import print_plan

    names = ("gpus", "gpu", "mfu", "train_bytes", "tokens", "gpu_hours")
    question = Question(**{name: getattr(options, name) for name in names})
    print_plan(options.config, options.overrides, question, options.json)


def _doctor(options: argparse.Namespace) -> None:
    from launch.doctor import doctor

    doctor(options.runs_dir, options.json)


def _compress(options: argparse.Namespace) -> None:
    from eval.offline import compress
    from harness.data import open_data
    from harness.rundir import load_run_config

    config = load_run_config(options.run_dir)
    try:
        text = options.input.read_bytes()
    except OSError as error:
        raise UsageError(f"{options.input}: {error.strerror}; give the path of a file") from None
    _check_output(options.output, options.force)
    progress = _progress(options.quiet)
    report, _, _ = compress(options.run_dir, config, open_data(config), text, options.output, options.threads, progress)
    print(
        f"{options.output}: {report.total_bytes:,} bytes for {len(text):,} (header {report.header_bytes:,}, model "
        f"{report.model_bytes:,}, tokenizer {report.tokenizer_bytes:,}, data {report.data_bytes:,}, checksum "
        f"{report.checksum_bytes})"
    )


def _decompress(options: argparse.Namespace) -> None:
    from eval.archive import read_archive, write_atomically

    _check_output(options.output, options.force)
    text = read_archive(options.archive, options.threads, _progress(options.quiet))
    write_atomically(options.output, text)
    if not options.quiet:
        print(f"{options.output}: {len(text):,} bytes, SHA-256 verified")


def _submit(options: argparse.Namespace) -> None:
    from launch import submit

    names = ("nodes", "gpus_per_node", "processes_per_node", "cpus_per_task", "time", "mem", "partition", "account")
    resources = submit.Resources(**{name: getattr(options, name) for name in (*names, "name")})
    if options.at_a_time and not options.sweep:
        raise UsageError(f"--at-a-time {options.at_a_time}: is for --sweep FILE")
    if options.sweep and options.eval:
        raise UsageError("--sweep, --eval: choose one; a sweep evaluates its runs")
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
        print(submission.text, end="")
    else:
        print(submit.describe(submit.submit(submission), submission))


def _check_output(path: Path, force: bool) -> None:
    if (path.exists() and not path.is_file()) or not path.parent.is_dir():
        raise UsageError(f"{path}: not a place for a file; give the path of a file in an existing directory")
    if path.exists() and not force:
        raise UsageError(f"{path}: exists already; remove it, choose another -o, or add --force")


def _progress(quiet: bool) -> Callable[[int, int], None]:
    """A line with rate and time left: updated in place on a terminal, one every ten seconds elsewhere."""
    on_terminal = sys.stderr.isatty()
    pause = SECONDS_BETWEEN_PROGRESS if on_terminal else SECONDS_BETWEEN_PROGRESS_LINES
    start = last = time.monotonic()

    def show(done: int, total: int) -> None:
        nonlocal last, start
        now = time.monotonic()
        if quiet or now - last < pause:
            return
        last = now
        rate = done / (now - start)
        left = (total - done) / rate if rate else 0.0
        line = f"{done:,}/{total:,} bytes  {rate / 1e3:.1f} kB/s  {left:.0f} s left"
        print(f"\r{line:<60}" if on_terminal else line, end="" if on_terminal else "\n", file=sys.stderr, flush=True)

    return show


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="codelength",
        description="Pretrain a transformer, know the online code length of its corpus, and write its offline code.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], None], text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(run=run)
        return sub

    def add_work_options(sub: argparse.ArgumentParser) -> None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        sub.add_argument(
            "--threads", type=_positive, default=cores, help="blocks computed at a time (default: %(default)s)"
        )
        sub.add_argument("--quiet", action="store_true", help="no progress")

    sub = command("data", _data, "prepare tokenizer and shards of a corpus")
    _add_config(sub)
    sub = command("train", _train, "train a run: main -> prune -> finetune; a stopped run goes on")
    sub.add_argument("--processes", type=_positive, default=1, help="processes of torchrun (default: 1)")
    _add_config(sub)
    sub = command("eval", _eval, "write, decode and report the offline code of trained runs")
    sub.add_argument("runs", nargs="+", metavar="RUN", help="run directories, then eval.* overrides")
    add_work_options(sub)
    sub = command("table", _table, "compare evaluated runs")
    sub.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    sub.add_argument("--format", default="rich", metavar="rich|md|csv|json|latex")
    sub = command("plot", _plot, "draw the figures of evaluated runs again")
    sub.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    sub = command("sweep", _sweep, "train and evaluate a grid of runs; a stopped sweep goes on; one table at the end")
    sub.add_argument("--at-a-time", type=_positive, default=1, metavar="N", help="runs side by side (default: 1)")
    sub.add_argument("--processes", type=_positive, default=1, help="processes of every run (default: 1)")
    sub.add_argument("--index", type=_natural, metavar="I", help="only run I, counted from 0, as in a job array")
    sub.add_argument("--count", action="store_true", help="print the number of runs and stop")
    sub.add_argument("--dry-run", action="store_true", help="print the runs with settings and states, and stop")
    sub.add_argument("sweep", type=Path, metavar="SWEEP", help="a YAML file, see configs/sweeps/")
    sub.add_argument("overrides", nargs="*", metavar="key=value", help="settings of all runs")
    sub = command("plan", _plan, "memory, time and disk space of a run before it starts; refuses what cannot fit")
    sub.add_argument("--gpus", type=_positive, default=1, metavar="N", help="ranks, one a GPU (default: 1)")
    sub.add_argument("--gpu", required=True, metavar="NAME", help="such as a100-80g; cpu: processes of this machine")
    sub.add_argument("--mfu", type=_share, default=0.4, metavar="F", help="share of the peak (default: %(default)s)")
    sub.add_argument("--gpu-hours", type=_positive, metavar="H", help="say which share of the peak so many hours are")
    sub.add_argument("--train-bytes", type=_positive, metavar="N", help="size of a corpus that is not prepared")
    sub.add_argument("--tokens", type=_positive, metavar="N", help="the same in tokens")
    sub.add_argument("--json", action="store_true", help="for programs; sizes in bytes")
    _add_config(sub)
    sub = command("doctor", _doctor, "what this machine has, what is missing, and the command that mends it")
    sub.add_argument("--runs-dir", type=Path, default=Path("runs"), metavar="DIR", help="default: %(default)s")
    sub.add_argument("--json", action="store_true", help="for programs")
    sub = command("compress", _compress, "code any file with the model of a run")
    sub.add_argument("--run", dest="run_dir", type=Path, required=True, metavar="RUN")
    sub.add_argument("input", type=Path, metavar="INPUT")
    _add_output(sub)
    add_work_options(sub)
    sub = command("decompress", _decompress, "rebuild the text from an archive alone")
    sub.add_argument("archive", type=Path, metavar="FILE.cl")
    _add_output(sub)
    add_work_options(sub)
    sub = command("submit", _submit, "write a SLURM job and submit it: a run, the array of a sweep, or evaluations")
    sub.add_argument("overrides", nargs="*", metavar="CONFIG key=value", help="a YAML file, then settings")
    sub.add_argument("--sweep", type=Path, metavar="FILE", help="submit the runs of a sweep as an array")
    sub.add_argument("--at-a-time", type=_positive, metavar="K", help="runs of a sweep at a time (default: all)")
    sub.add_argument("--eval", nargs="+", metavar="RUN", help="evaluate trained runs; eval.* settings may follow")
    sub.add_argument("--nodes", type=_positive, default=1, metavar="N", help="(default: 1)")
    sub.add_argument("--gpus-per-node", type=_positive, default=0, metavar="N", help="(default: none)")
    sub.add_argument("--processes-per-node", type=_positive, metavar="N", help="(default: one a GPU, or 1)")
    sub.add_argument("--cpus-per-task", type=_positive, metavar="N", help="CPUs on each node (default: one a process)")
    for name, shown in (("time", "D-HH:MM:SS"), ("mem", "64G"), ("partition", "NAME"), ("account", "NAME")):
        sub.add_argument(f"--{name}", metavar=shown, help="(default: the cluster's)")
    sub.add_argument("--name", metavar="NAME", help="name of the job (default: the run's)")
    sub.add_argument("--dry-run", action="store_true", help="print the job script and submit nothing")
    return parser


def _add_config(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("config", metavar="CONFIG", help="a YAML file, see configs/")
    sub.add_argument("overrides", nargs="*", metavar="key=value", help="for example train.epochs=2")


def _add_output(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("-o", "--output", type=Path, required=True, metavar="FILE")
    sub.add_argument("--force", action="store_true", help="replace FILE if it exists")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be a whole number, at least 1")
    return int(text)


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise argparse.ArgumentTypeError(f"{text}: must be above 0 and at most 1")
    return share


def _natural(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text}: must be a whole number, 0 or more")
    return int(text)
