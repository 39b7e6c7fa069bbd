"""Loss curves: `curve`, of others, and `crossover`, of a run beside its control on shuffled bytes."""

import sys
from argparse import Namespace
from contextlib import redirect_stdout
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import RunFailure, UsageError
from launch.commands.options import (
    AddCommand,
    add_config,
    positive,
)

if TYPE_CHECKING:
    from eval.curves.read import Amounts, Curve, Options
    from launch.sweeps.sweep_file import Run, Sweep

CONTROL_SUFFIX, HYBRID_SUFFIX = "-shuffled", "-hybrid"


def register(command: AddCommand) -> None:
    """Add the flags of these commands."""
    text = "online and offline code lengths that follow from a published loss curve or a TensorBoard log"
    sub = command("curve", curve_command, text)
    sub.add_argument(
        "curve", type=Path, metavar="CSV", help="x and loss in two columns (CSV or JSON lines), or a TensorBoard log"
    )
    shown = "a second curve, read by the same options: which is sooner where the other ends, by the curves and by laws"
    sub.add_argument("--against", type=Path, metavar="CSV", help=shown)
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
    sub.add_argument("--figure", type=Path, metavar="FILE.png", help="draw the curve, or both; replaces FILE.png")
    text = "model bits of a run beside a control on shuffled bytes, and the size from which on offline is shorter"
    sub = command("crossover", crossover_command, text)
    sub.add_argument("--processes", type=positive, default=1, help="processes of both runs (default: 1)")
    sub.add_argument("--format", default="rich", choices=["rich", "md", "json"], help="(default: rich)")
    shown = "also a run that starts from the archive of the first, whose weights its code is charged with"
    sub.add_argument("--hybrid", action="store_true", help=shown)
    add_config(sub)


def curve_command(options: Namespace) -> None:
    """Compute and print the code lengths of a loss curve."""
    from eval.curves.curve_table import curve_record, render
    from eval.curves.read import Amounts, Options, check_unit, read_amounts, read_curve
    from eval.show.blocks import check_format

    check_unit(options.unit)
    check_format(options.format)
    amounts = read_amounts({field.name: getattr(options, field.name) for field in fields(Amounts)})
    if options.figure:
        from eval.curves.curve_figure import check_figure_path, draw_curve

        check_figure_path(options.figure)
    reading = Options(**{field.name: getattr(options, field.name) for field in fields(Options)})
    curve = read_curve(options.curve, options.unit, amounts.tokens_per_step, reading)
    if options.against:
        print(_against(options, amounts, reading, curve), end="")
        return
    from eval.curves.area import online_length

    online = online_length(curve, amounts.tokens, amounts.vocab_size)
    text = render(curve_record(curve, online, amounts, options.unit), curve, options.format)
    if options.figure:
        draw_curve(options.figure, curve, online)
    print(text, end="")


def _against(options: Namespace, amounts: "Amounts", reading: "Options", curve: "Curve") -> str:
    """Compare a curve with a second one; returns the tables."""
    from eval.curves.against import check_amounts, compare, render
    from eval.curves.read import read_curve

    check_amounts(amounts)
    second = read_curve(options.against, options.unit, amounts.tokens_per_step, reading)
    comparison = compare(curve, second, amounts)
    text = render(comparison, amounts, options.format)
    if options.figure:
        from eval.curves.against_figure import draw_comparison

        draw_comparison(options.figure, comparison)
    return text


def crossover_command(options: Namespace) -> None:
    """Finish both runs, then measure, draw and print."""
    from eval.crossover.crossover_figure import draw_crossover
    from eval.crossover.crossover_table import measure, render
    from eval.crossover.hybrid import measure_hybrid
    from eval.report.run_figures import FIGURES_DIR
    from harness.files import write_file

    pair = run_and_control(options.config, options.overrides)
    run_dir = pair.runs[0].config.run_dir
    if options.hybrid and pair.runs[0].config.eval.ideal:
        raise UsageError("--hybrid: starts from an archive, and eval.ideal=true writes none; use eval.ideal=false")
    _finish(pair, options.processes)
    hybrid = None
    if options.hybrid:
        third = hybrid_of(pair, options.overrides)
        _finish(third, options.processes)
        hybrid = measure_hybrid(third.runs[0].config.run_dir)
    text, control = (measure(run.config.run_dir) for run in pair.runs)
    record, figure = run_dir / "crossover.json", run_dir / FIGURES_DIR / "crossover.png"
    draw_crossover(figure, text.curve, text.resampled, text.offline, text.crossover, hybrid)
    write_file(record, render(text, control, "json", hybrid).encode())
    print(render(text, control, options.format, hybrid), end="")
    print(f"numbers are in {record}, the figure is {figure}", file=sys.stderr)


def _finish(sweep: "Sweep", processes: int) -> None:
    """Train and evaluate runs; raises RunFailure where one fails or is stopped."""
    from launch.sweeps.states import finish_runs, state_of

    # What is printed at the end may be read by a program.
    with redirect_stdout(sys.stderr):
        failures = finish_runs(sweep, list(sweep.runs), 1, processes)
    if failures:
        raise RunFailure("\n".join(failures))
    stopped = [run.name for run in sweep.runs if state_of(run) != "done"]
    if stopped:
        raise RunFailure(f"{', '.join(stopped)}: asked to stop before the end; the same command goes on")


def hybrid_of(pair: "Sweep", overrides: list[str]) -> "Sweep":
    """Make the run that starts from the archive of the first run of a pair; of its own only the ledger is wanted."""
    from eval.offline.evaluate import ARCHIVE_FILE

    text = pair.runs[0].config
    settings = [f"online.start={text.run_dir / ARCHIVE_FILE}", "eval.ideal=true", "eval.adaptive=false"]
    return replace(pair, runs=(_run_of(pair.config_path, overrides, f"{text.name}{HYBRID_SUFFIX}", settings),))


def _run_of(config_path: Path, overrides: list[str], name: str, settings: list[str]) -> "Run":
    from harness.config.run import load_config
    from launch.sweeps.sweep_file import Run

    own = (*overrides, f"name={name}", *settings)
    config = load_config(config_path, own)
    return Run(name=name, labels=(), settings=tuple(settings), overrides=own, config=config)


def run_and_control(config_path: str, overrides: list[str]) -> "Sweep":
    """Make the run of a configuration and its control, as the two runs of a sweep.

    Raises UsageError where the configuration itself shuffles, trains nothing, or is not evaluated on held-out text.
    """
    from harness.config.run import load_config
    from launch.sweeps.sweep_file import Sweep

    config = load_config(config_path, overrides)
    problems = []
    if config.dry_run:
        problems.append("dry_run=true: would train nothing; leave it out")
    if config.corpus.shuffle:
        problems.append("corpus.shuffle=true: is for the control, which is made by itself; leave it out")
    if config.eval.split != "heldout":
        problems.append(f"eval.split={config.eval.split}: the final loss must be a held-out one; use heldout")
    if problems:
        raise UsageError("\n".join(problems))
    path, control = Path(config_path), f"{config.name}{CONTROL_SUFFIX}"
    runs = (_run_of(path, overrides, config.name, []), _run_of(path, overrides, control, ["corpus.shuffle=true"]))
    return Sweep(
        name=config.name,
        directory=Path(config.runs_dir),
        config_path=path,
        common=tuple(overrides),
        axes=(),
        runs=runs,
        comparison=None,
    )
