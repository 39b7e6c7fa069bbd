"""`codelength crossover`: a run, its control on shuffled bytes, and what the two say about model and codes."""

import json
import sys
from argparse import Namespace
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import RunFailure, UsageError

if TYPE_CHECKING:
    from launch.sweeps.sweep_file import Sweep

CONTROL_SUFFIX = "-shuffled"


def crossover_command(options: Namespace) -> None:
    """Finish both runs, then measure, draw and print."""
    from eval.crossover.crossover_figure import draw_crossover
    from eval.crossover.crossover_table import measure, record_of, render
    from eval.report.run_figures import FIGURES_DIR
    from harness.files import write_file
    from launch.sweeps.states import finish_runs, state_of

    pair = run_and_control(options.config, options.overrides)
    # What is printed at the end may be read by a program.
    with redirect_stdout(sys.stderr):
        failures = finish_runs(pair, list(pair.runs), 1, options.processes)
    if failures:
        raise RunFailure("\n".join(failures))
    stopped = [run.name for run in pair.runs if state_of(run) != "done"]
    if stopped:
        raise RunFailure(f"{', '.join(stopped)}: asked to stop before the end; the same command goes on")
    text, control = (measure(run.config.run_dir) for run in pair.runs)
    run_dir = pair.runs[0].config.run_dir
    record, figure = run_dir / "crossover.json", run_dir / FIGURES_DIR / "crossover.png"
    draw_crossover(figure, text.curve, text.resampled, text.offline, text.crossover)
    write_file(record, (json.dumps(record_of(text, control), indent=2) + "\n").encode())
    print(render(text, control, options.format), end="")
    print(f"numbers are in {record}, the figure is {figure}", file=sys.stderr)


def run_and_control(config_path: str, overrides: list[str]) -> "Sweep":
    """The run of a configuration and its control, as the two runs of a sweep.

    Raises UsageError where the configuration itself shuffles, trains nothing, or is not evaluated on held-out text.
    """
    from harness.config.run import load_config
    from launch.sweeps.sweep_file import Run, Sweep

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
    runs = []
    for settings in ([], [f"name={config.name}{CONTROL_SUFFIX}", "corpus.shuffle=true"]):
        chosen = load_config(config_path, [*overrides, *settings])
        texts = {"labels": (), "settings": tuple(settings), "overrides": (*overrides, *settings)}
        runs.append(Run(name=chosen.name, config=chosen, **texts))
    return Sweep(
        name=config.name,
        directory=Path(config.runs_dir),
        config_path=Path(config_path),
        common=tuple(overrides),
        axes=(),
        runs=tuple(runs),
        comparison=None,
    )
