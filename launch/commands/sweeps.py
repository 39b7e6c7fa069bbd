"""Many runs: `sweep`."""

from argparse import Namespace
from pathlib import Path

from launch.commands.options import (
    AddCommand,
    natural,
    positive,
)


def register(command: AddCommand) -> None:
    """Add the flags of this command."""
    sub = command(
        "sweep",
        sweep_command,
        "train and evaluate a grid of runs and compare them; goes on",
    )
    sub.add_argument("--at-a-time", type=positive, default=1, metavar="N", help="runs side by side (default: 1)")
    sub.add_argument("--processes", type=positive, default=1, help="processes of every run (default: 1)")
    sub.add_argument("--index", type=natural, metavar="I", help="only run I, counted from 0, as in a job array")
    sub.add_argument("--count", action="store_true", help="print the number of runs and stop")
    sub.add_argument("--dry-run", action="store_true", help="print the runs with settings and states, and stop")
    sub.add_argument("sweep", type=Path, metavar="SWEEP", help="a YAML file, see configs/sweeps/")
    sub.add_argument("overrides", nargs="*", metavar="key=value", help="settings of all runs")


def sweep_command(options: Namespace) -> None:
    """Run a sweep."""
    if options.count:
        from launch.sweeps.sweep_file import read_sweep

        print(len(read_sweep(options.sweep, options.overrides).runs))
        return
    from launch.sweeps.sweep import describe, run_sweep

    if options.dry_run:
        describe(options.sweep, options.overrides, options.index)
        return
    run_sweep(options.sweep, options.overrides, options.at_a_time, options.processes, options.index)
