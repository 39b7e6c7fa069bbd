"""`codelength send`, `receive` and `audit`: the online code as a file."""

import functools
import json
import os
import sys
from argparse import Namespace
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import RunFailure, UsageError
from harness.machine.progress import show_bytes
from launch.commands.options import AddCommand, add_config, add_max_memory, add_output, positive

if TYPE_CHECKING:
    from eval.online.job import Costs
    from eval.online.send import SendReport
    from harness.config.run import RunConfig

# A file may have so many processes started without being asked, however few cores there are.
MOST_PROCESSES = 8


def register(command: AddCommand) -> None:
    """Add the flags of these commands."""
    sub = command("send", send_command, "write the online code of a text: every batch coded, then learnt from")
    sub.add_argument("config", metavar="CONFIG", help="a YAML file, see configs/")
    sub.add_argument(
        "overrides", nargs="*", metavar="INPUT key=value", help="any file (default: the training corpus); settings"
    )
    sub.add_argument("--processes", type=positive, default=1, help="processes, a stream each (default: 1)")
    sub.add_argument("--json", action="store_true", help="print the parts of the file for programs")
    add_output(sub)
    sub.add_argument("--quiet", action="store_true", help="no progress")
    sub = command("receive", receive_command, "rebuild the text from an online code alone; a stopped one goes on")
    sub.add_argument("file", type=Path, metavar="FILE.clo", help="`-`: standard input")
    sub.add_argument("--processes", type=positive, help="processes (default: as many as have sent)")
    sub.add_argument("--inputs", metavar="SET", help="what coded labels were given, as corpus.path names it")
    sub.add_argument("--json", action="store_true", help="print digest, time and memory for programs")
    add_output(sub)
    add_max_memory(sub)
    sub.add_argument("--quiet", action="store_true", help="no progress")
    sub = command("audit", audit_command, "which threads, lanes, processes and instruction sets keep every bit")
    sub.add_argument("--format", default="rich", choices=["rich", "md", "json"], help="(default: rich)")
    add_config(sub)


def send_command(options: Namespace) -> int:
    """Write an online code; returns the exit status."""
    from harness.config.run import load_config

    inputs = [text for text in options.overrides if "=" not in text]
    if len(inputs) > 1:
        raise UsageError(f"{' '.join(inputs)}: send takes one INPUT; settings look like key=value")
    config = load_config(options.config, [text for text in options.overrides if "=" in text])
    from launch.jobs.streams import opened

    with opened(Path(inputs[0]) if inputs else None, options.output, options.force) as (source, output):
        return _send(options, config, source, output)


def _send(options: Namespace, config: "RunConfig", source: Path | None, output: Path) -> int:
    if options.processes > 1 and not _is_rank():
        from launch.jobs.torchrun import run_here

        config.train.micro_batch(options.processes)
        settings = [text for text in options.overrides if "=" in text]
        arguments = ["send", options.config, *([str(source)] if source else []), *settings, *_shared(options, output)]
        return run_here("launch", arguments, options.processes)
    from eval.online.send import open_input, send
    from harness.job import joined_job
    from harness.run.preflight import mixture_lines
    from harness.run.waiting import prepare_for_job

    if source is None:
        prepare_for_job(config)
    with joined_job(config) as ranks:
        config.train.micro_batch(ranks.world_size)
        sent = open_input(config, source, ranks)
        if ranks.is_first and not options.quiet:
            for line in mixture_lines(config, sent.source.num_tokens):
                print(line, file=sys.stderr, flush=True)
        report = send(config, sent, output, ranks, show_bytes(options.quiet or not ranks.is_first))
        if ranks.is_first:
            print(json.dumps(asdict(report)) if options.json else describe(report, options.output), flush=True)
    return 0


def receive_command(options: Namespace) -> int:
    """Decode an online code; returns the exit status."""
    from launch.jobs.streams import opened

    with opened(options.file, options.output, options.force) as (file, output):
        return _receive(options, file, output)


def _receive(options: Namespace, file: Path, output: Path) -> int:
    from eval.online.file import read_online_file
    from eval.online.receive import open_file, receive
    from harness.files import sha256
    from harness.job import joined_job

    head, config, *_ = read_online_file(file)
    if not _is_rank():
        processes = options.processes or _usual_processes(file, head.world_size)
        open_file(file, processes, options.max_memory)
        if processes > 1:
            from launch.jobs.torchrun import run_here

            limit = ["--max-memory", str(options.max_memory)] if options.max_memory else []
            limit += ["--inputs", options.inputs] if options.inputs else []
            return run_here("launch", ["receive", str(file), *limit, *_shared(options, output)], processes)
    with joined_job(config) as ranks:
        progress = show_bytes(options.quiet or not ranks.is_first)
        costs = receive(file, output, ranks, progress, options.max_memory, options.inputs)
        if ranks.is_first and options.json:
            told = {"raw_bytes": head.raw_bytes, "sha256": sha256(output), "costs": asdict(costs)}
            print(json.dumps(told), flush=True)
        elif ranks.is_first and not options.quiet:
            print(f"{options.output}: {head.raw_bytes:,} bytes, SHA-256 verified; {describe_costs(costs)}", flush=True)
    return 0


def _usual_processes(path: Path, world_size: int) -> int:
    """As many as have sent; more than this machine is good for are not started because a file says so."""
    most = max(MOST_PROCESSES, os.cpu_count() or 1)
    if world_size > most:
        raise UsageError(
            f"{path}: sent by {world_size} processes, this machine has {os.cpu_count()} cores; "
            f"add --processes {world_size} to start as many"
        )
    return world_size


def audit_command(options: Namespace) -> None:
    """Compare what this machine computes in several settings."""
    from eval.audit.audit import audit, block, settings
    from eval.show.blocks import render
    from harness.config.run import load_config

    config = load_config(options.config, options.overrides)
    compared = settings(config.train.batch_sequences)
    tell = functools.partial(print, file=sys.stderr, flush=True)
    findings = audit(config, [options.config, *options.overrides], compared, tell)
    print(render([block(findings)], [asdict(finding) for finding in findings], options.format), end="")
    again = findings[1]
    if again.step_difference or again.tables_differing:
        raise RunFailure("the same setting gave other bits twice: online codes cannot be received on this machine")


def describe(report: "SendReport", path: Path) -> str:
    """Describe what a file consists of."""
    from eval.length import Length
    from eval.report.online_tables import RARE_PARTS, SENT_PARTS

    length = Length.of_file(report.file_bytes, is_decoded=False)
    parts = [(report.aulc_bits, "losses of the training steps (area under the loss curve)")]
    sent = {part: (getattr(report, f"{part}_bits"), words) for part, words in SENT_PARTS.items()}
    parts += [told for part, told in sent.items() if told[0] or part not in RARE_PARTS]
    lines = [f"{bits:>+18,.1f} bits  {words}" for bits, words in parts]
    size = f"{report.file_bytes:,} bytes for {report.raw_bytes:,}, {length.kind}"
    total = f"{path}: {size} ({length.bits_per_byte(report.raw_bytes):.3f} bits/byte), of which"
    return "\n".join([total, *lines, describe_costs(report.costs)])


def describe_costs(costs: "Costs") -> str:
    """Describe the time and memory that a job has taken."""
    return (
        f"{costs.seconds:,.1f} s, of which {costs.learning_seconds:,.1f} s training; "
        f"{costs.memory_bytes / 1e6:,.0f} MB in all processes"
    )


def _shared(options: Namespace, output: Path) -> list[str]:
    """Output and options that every rank gets."""
    flags = [f"--{name}" for name in ("force", "quiet", "json") if getattr(options, name)]
    return ["-o", str(output), *flags]


def _is_rank() -> bool:
    """Whether this process is one of a job already, as under torchrun."""
    return "WORLD_SIZE" in os.environ
