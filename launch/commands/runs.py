"""Making runs, and looking at them: `init`, `data`, `train`, `eval`, `labels`, `table` and `plot`.

Heavy imports happen inside of actions, here as in all families, so that `--help` and mistakes answer at once.
"""

import sys
from argparse import Namespace
from pathlib import Path

from harness.errors import UsageError
from harness.machine.progress import show_bytes
from launch.commands.options import (
    AddCommand,
    add_config,
    add_work_options,
    positive,
)


def register(command: AddCommand) -> None:
    """Add the flags of these commands."""
    sub = command("init", init_command, "write a preset as a file to edit, or list the presets")
    sub.add_argument("preset", nargs="?", metavar="PRESET", help="for example wiki-mini")
    sub.add_argument("-o", "--output", type=Path, metavar="FILE", help="default: PRESET.yaml")
    sub = command("data", data_command, "prepare tokenizer and shards of a corpus")
    add_config(sub)
    sub = command("train", train_command, "train a run: main -> prune -> finetune; a stopped run goes on")
    sub.add_argument("--processes", type=positive, default=1, help="processes of torchrun (default: 1)")
    add_config(sub)
    sub = command("eval", eval_command, "write, decode and report the offline code of trained runs")
    sub.add_argument("runs", nargs="+", metavar="RUN", help="run directories, then eval.* overrides")
    sub.add_argument("--sweep-precision", action="store_true", help="also draw bits a weight against total bytes")
    add_work_options(sub)
    sub = command("table", table_command, "compare evaluated runs")
    sub.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    sub.add_argument("--by", default="run", choices=("run", "part"), help="a row a run, or a part of its text")
    sub.add_argument("--format", default="rich", metavar="rich|md|csv|json|latex")
    sub = command("labels", labels_command, "compare all codes of labels given inputs: two-part, online, variational")
    sub.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="of corpus.kind=labels or rule.kind=variational")
    sub.add_argument("--figures", type=Path, metavar="FOLDER", help="draw the codes by labels read, and by subspace")
    sub.add_argument("--format", default="rich", metavar="rich|md|csv|json|latex")
    sub = command("plot", plot_command, "draw the figures of evaluated runs again")
    sub.add_argument("runs", nargs="+", type=Path, metavar="RUN")


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

        config, settings = load_config(options.config, options.overrides), [options.config, *options.overrides]
        if options.processes > 1:
            from launch.jobs.torchrun import run_here

            config.train.micro_batch(options.processes)
            # Where weights of an archive are what it starts from, each rank reads them.
            rank = ("launch", ["train", *settings]) if config.online.start else ("harness.train", settings)
            return run_here(*rank, options.processes)
        from eval.weights.start import read_start
        from harness.train import train_run

        train_run(config, read_start(config))
    return 0


def eval_command(options: Namespace) -> None:
    """Write, decode and report offline codes."""
    from eval.offline.evaluate import ARCHIVE_FILE, evaluate
    from eval.report.record import load_reports
    from eval.report.run_figures import plot_run
    from eval.report.run_tables import render
    from eval.report.tensorboard import show_run
    from harness.files import write_file
    from harness.run.directory import load_run_config

    split_at = next((i for i, text in enumerate(options.runs) if "=" in text), len(options.runs))
    runs, overrides = [Path(run) for run in options.runs[:split_at]], options.runs[split_at:]
    if not runs:
        raise UsageError("eval: name at least one run directory, for example runs/demo")
    if any(not text.startswith("eval.") for text in overrides):
        raise UsageError(f"{' '.join(overrides)}: only eval.* can be changed after training")
    for run in runs:
        config = load_run_config(run)
        if config.tokenizer.kind == "labels" or config.model.subspace:
            raise UsageError(f"{run}: a run of labels, or in a subspace; use `codelength labels {run}`")
        evaluate(run, overrides, options.threads, show_bytes(options.quiet), options.quiet)
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
    """Compare evaluated runs, or the parts of what trained ones have read."""
    if options.by == "part":
        from eval.report.parts import render_parts

        print(render_parts(options.runs, options.format), end="")
        return
    from eval.report.record import load_reports
    from eval.report.run_tables import render

    print(render(load_reports(options.runs), options.format), end="")


def labels_command(options: Namespace) -> None:
    """Write and decode two-part codes of labels, and print the table of all codes."""
    from eval.labels.evaluate import label_codes
    from eval.labels.table import render_codes
    from eval.show.blocks import check_format

    check_format(options.format)
    codes = [code for run in options.runs for code in label_codes(run)]
    print(render_codes(codes, options.format), end="")
    if options.figures:
        from eval.labels.figures import draw

        for path in draw(options.figures, options.runs, codes):
            print(path, file=sys.stderr)


def plot_command(options: Namespace) -> None:
    """Draw figures again."""
    from eval.report.run_figures import plot_run

    for run in options.runs:
        for path in plot_run(run):
            print(path)
