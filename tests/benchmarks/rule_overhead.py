"""What each sparsity rule adds to a training step.

    python -m tests.benchmarks.rule_overhead [--width 256] [--layers 6] [--rounds 15]

One model, one batch: steps with each rule take turns with steps without one, in one process with one thread. Prints the
median of the ratios of neighbours in processor time (what else runs on the machine does not count), by optimizer and
coupling.
"""

import argparse
import statistics
import time

import torch

from harness.config.run import config_from
from harness.learner import Learner
from harness.machine.hardware import resolve_precision
from harness.machine.ranks import Ranks
from harness.rules.config import RULES, make_rule

PAIRS = (("adamw", "adam"), ("adamw", "decoupled"), ("muon", "decoupled"))


def main() -> None:
    """Measure every rule and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--rules", nargs="+", default=[kind for kind in RULES if kind != "none"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| optimizer | coupling | rule | parameters | step without, ms | with, ms | added |")
    print("| :--- | :--- | :--- | ---: | ---: | ---: | ---: |")
    for optimizer, coupling in PAIRS:
        for kind in options.rules:
            measure(options, optimizer, coupling, kind)


def measure(options: argparse.Namespace, optimizer: str, coupling: str, kind: str) -> None:
    """One row."""
    model = {"model.width": options.width, "model.layers": options.layers, "model.heads": options.heads}
    rule = {"rule.kind": kind, "rule.coupling": coupling, "rule.alpha": 1e-6, "optimizer.kind": optimizer}
    config = config_from(model | rule)
    device = torch.device("cpu")
    learner = Learner(config, 256, Ranks(0, 1, device), resolve_precision("auto", device))
    made = make_rule(config.rule, config.optimizer.betas, 1_000_000)
    probe, seconds = learner.probe(), {False: [], True: []}
    for parts in learner.optimizer.parts:
        for group in parts.param_groups:
            group["lr"] = 1e-6
    for _ in range(options.rounds + 2):
        for has_rule in (False, True):
            for part in learner.optimizer.parts:
                part.rule = made if has_rule else None
            start = time.process_time()
            learner.train(probe, "benchmark")
            seconds[has_rule].append(time.process_time() - start)
    without, with_rule = seconds[False][2:], seconds[True][2:]
    ratio = statistics.median(b / a for a, b in zip(without, with_rule, strict=True))
    shown = [1000 * statistics.median(times) for times in (without, with_rule)]
    print(
        f"| {optimizer} | {coupling} | {kind} | {learner.num_parameters:,} | {shown[0]:.0f} | {shown[1]:.0f} "
        f"| {ratio - 1:+.1%} |",
        flush=True,
    )


if __name__ == "__main__":
    main()
