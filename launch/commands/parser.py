"""The command line: families of commands, each of which registers its own flags."""

import argparse
from collections.abc import Callable
from importlib import metadata

from launch.commands import curves, files, machines, online, runs, study, sweeps

FAMILIES = {
    "runs": (runs, sweeps),
    "files": (files,),
    "online codes": (online,),
    "curves and studies": (curves, study),
    "machines": (machines,),
}
"""By heading in the help, the modules whose commands stand under it."""


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of `codelength`; `options.run(options)` does the work."""
    parser = argparse.ArgumentParser(
        prog="codelength",
        usage="codelength [-h] [--version] COMMAND ...",
        description="Pretrain a transformer, know the online code length of its corpus, and write its offline code.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"codelength {_version()}")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND", help="one of those below")
    lines: list[str] = []

    def command(name: str, run: Callable[[argparse.Namespace], int | None], text: str) -> argparse.ArgumentParser:
        lines.append(f"  {name:<12}{text}")
        sub = subparsers.add_parser(name, description=text, prog=f"codelength {name}")
        sub.set_defaults(run=run)
        return sub

    for heading, modules in FAMILIES.items():
        lines += ["", f"{heading}:"]
        for module in modules:
            module.register(command)
    lines += ["", "`codelength COMMAND --help` tells the rest."]
    parser.epilog = "\n".join(lines[1:])
    return parser


def _version() -> str:
    try:
        return metadata.version("codelength")
    except metadata.PackageNotFoundError:
        return "(not installed)"
