"""What each subcommand does with its options.

Heavy imports happen inside, so that `--help` and mistakes answer at once.
"""

import sys
import time
from argparse import Namespace
from collections.abc import Callable
from dataclasses import fields
from datetime import timedelta
from pathlib import Path

from harness.errors import UsageError

SECONDS_BETWEEN_PROGRESS = 0.5
# The first line comes soon and says how long it will take.
SECONDS_BEFORE_PROGRESS_LINES, SECONDS_BETWEEN_PROGRESS_LINES = 2.0, 10.0


def init_command(options: Namespace) -> None:
    """List the presets, or write one."""
    from harness.config.presets import preset_names, product_folder
    from harness.config.run import dump_config, load_config
    from harness.files import write_file

    if options.preset is None:
        print("\n".join(preset_names()))
        return
    if options.preset not in preset_names():
        raise UsageError(f"{options.preset}: no preset; use one of {', '.join(preset_names())}")
    output = options.output or Path(f"{options.preset}.yaml")
    if output.exists():
        raise UsageError(f"{output}: exists; choose another with -o FILE")
    preset = product_folder("configs") / f"{options.preset}.yaml"
    text = preset.read_text()
    if "\ninclude:" in f"\n{text}":
        # What it includes lies beside the preset, not beside the copy.
        text = dump_config(load_config(preset, []))
    write_file(output, text.encode())
    print(f"{output}: edit it, and use it in place of {options.preset}")


def data_command(options: Namespace) -> None:
    """Prepare tokenizer and shards."""
    from harness.machine.stop import PAUSE_SIGNAL, interruptible

    with interruptible(PAUSE_SIGNAL):
        from harness.config.run import load_config
        from harness.corpus.prepared import prepare_data

        data = prepare_data(load_config(options.config, options.overrides), repair=True)
    for name, shard in (("train", data.train), ("heldout", data.heldout)):
        print(f"{name:8}{shard.raw_bytes:>16,} bytes = {shard.num_tokens:,} tokens, SHA-256 {shard.fingerprint[:16]}")
    print(f"shards are in {data.directory}")


def train_command(options: Namespace) -> int:
    """Train a run; returns the exit status."""
    from harness.machine.stop import PAUSE_SIGNAL, interruptible

    with interruptible(PAUSE_SIGNAL):
        from harness.config.run import load_config

        config = load_config(options.config, options.overrides)
        if options.processes > 1:
            from launch.jobs.torchrun import run_here

            config.train.micro_batch(options.processes)
            return run_here("harness.train", [options.config, *options.overrides], options.processes)
        from harness.train import train_run

        train_run(config)
    return 0


def eval_command(options: Namespace) -> None:
    """Write, decode and report offline codes."""
    from eval.offline.evaluate import ARCHIVE_FILE, evaluate
    from eval.report.run_figures import plot_run
    from eval.report.run_tables import load_reports, render
    from eval.report.tensorboard import show_run
    from harness.files import write_file

    split_at = next((i for i, text in enumerate(options.runs) if "=" in text), len(options.runs))
    runs, overrides = [Path(run) for run in options.runs[:split_at]], options.runs[split_at:]
    if not runs:
        raise UsageError("eval: name at least one run directory, for example runs/demo")
    if any(not text.startswith("eval.") for text in overrides):
        raise UsageError(f"{' '.join(overrides)}: only eval.* can be changed after training")
    for run in runs:
        evaluate(run, overrides, options.threads, show_progress(options.quiet), options.quiet)
        reports = load_reports([run])
        write_file(run / "table.md", render(reports, "md").encode())
        plot_run(run)
        show_run(run)
    print(render(load_reports(runs), "rich"), end="")
    if options.sweep_precision:
        from eval.report.precision import sweep_precision

        for run in runs:
            print(f"\n{sweep_precision(run, overrides, options.threads)}", end="")
    for run in runs:
        if (archive := run / ARCHIVE_FILE).exists():
            print(f"archive, report.json, table.md and figures are in {run}; it decodes with")
            print(f"  codelength decompress {archive} -o OUT")
        else:
            print(f"report.json, table.md and figures are in {run}; no archive, since eval.ideal=true")


def table_command(options: Namespace) -> None:
    """Compare evaluated runs."""
    from eval.report.run_tables import load_reports, render

    print(render(load_reports(options.runs), options.format), end="")


def plot_command(options: Namespace) -> None:
    """Draw figures again."""
    from eval.report.run_figures import plot_run

    for run in options.runs:
        for path in plot_run(run):
            print(path)


def curve_command(options: Namespace) -> None:
    """Code lengths of a loss curve."""
    from eval.curves.curve_table import check_format, curve_record, render
    from eval.curves.read import Amounts, Options, check_unit, read_amounts, read_curve

    check_unit(options.unit)
    check_format(options.format)
    amounts = read_amounts({field.name: getattr(options, field.name) for field in fields(Amounts)})
    if options.figure:
        from eval.curves.curve_figure import check_figure_path, draw_curve

        check_figure_path(options.figure)
    from eval.curves.area import online_length

    reading = Options(**{field.name: getattr(options, field.name) for field in fields(Options)})
    curve = read_curve(options.curve, options.unit, amounts.tokens_per_step, reading)
    online = online_length(curve, amounts.tokens, amounts.vocab_size)
    text = render(curve_record(curve, online, amounts, options.unit), curve, options.format)
    if options.figure:
        draw_curve(options.figure, curve, online)
    print(text, end="")


def sweep_command(options: Namespace) -> None:
    """Run a grid."""
    if options.count:
        from launch.sweeps.sweep_file import read_sweep

        print(len(read_sweep(options.sweep, options.overrides).runs))
        return
    from launch.commands.sweeps import describe, sweep

    if options.dry_run:
        describe(options.sweep, options.overrides, options.index)
        return
    sweep(options.sweep, options.overrides, options.at_a_time, options.processes, options.index)


def plan_command(options: Namespace) -> None:
    """Say what a run needs."""
    from launch.plan.plan import Question
    from launch.plan.tables import print_plan

    names = ("gpus", "gpu", "mfu", "train_bytes", "tokens", "gpu_hours")
    question = Question(**{name: getattr(options, name) for name in names})
    print_plan(options.config, options.overrides, question, options.json)


def doctor_command(options: Namespace) -> None:
    """Examine this machine."""
    from launch.doctor.doctor import doctor

    doctor(options.runs_dir, options.json)


def compress_command(options: Namespace) -> None:
    """Code a file."""
    from eval.offline.evaluate import compress
    from harness.run.directory import load_run_config, open_run_data
    from launch.jobs.streams import opened

    config = load_run_config(options.run_dir)
    with opened(options.input, options.output, options.force) as (source, output):
        try:
            text = source.read_bytes()
        except OSError as error:
            raise UsageError(f"{options.input}: {error.strerror}; give the path of a file") from None
        progress = show_progress(options.quiet)
        data = open_run_data(options.run_dir, config)
        report = compress(options.run_dir, config, data, text, output, options.threads, progress)
        print(
            f"{options.output}: {report.total_bytes:,} bytes for {len(text):,} (header {report.header_bytes:,}, model "
            f"{report.model_bytes:,}, tokenizer {report.tokenizer_bytes:,}, data {report.data_bytes:,}, checksum "
            f"{report.checksum_bytes})"
        )


def decompress_command(options: Namespace) -> None:
    """Rebuild a text."""
    from eval.offline.archive import read_archive
    from harness.files import write_file
    from launch.jobs.streams import opened

    with opened(options.archive, options.output, options.force) as (archive, output):
        text = read_archive(archive, options.threads, show_progress(options.quiet), options.max_memory)
        write_file(output, text)
        if not options.quiet:
            print(f"{options.output}: {len(text):,} bytes, SHA-256 verified")


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


def show_progress(quiet: bool) -> Callable[[int, int], None]:
    """A line with rate and time left: updated in place on a terminal, elsewhere one soon and one every ten seconds.

    The rate is that of what has been seen to be done, so that work which goes on in the middle counts from there.
    """
    on_terminal = sys.stderr.isatty()
    pause = SECONDS_BETWEEN_PROGRESS if on_terminal else SECONDS_BETWEEN_PROGRESS_LINES
    first: tuple[float, int] | None = None
    due = 0.0

    def show(done: int, total: int) -> None:
        nonlocal first, due
        now = time.monotonic()
        if first is None:
            first, due = (now, done), now + (pause if on_terminal else SECONDS_BEFORE_PROGRESS_LINES)
        if quiet or now < due:
            return
        due = now + pause
        rate = (done - first[1]) / (now - first[0])
        left = str(timedelta(seconds=round((total - done) / rate))) if rate else "?"
        line = f"{done:,}/{total:,} bytes  {rate / 1e3:.1f} kB/s  {left} left"
        print(f"\r{line:<60}" if on_terminal else line, end="" if on_terminal else "\n", file=sys.stderr, flush=True)

    return show
