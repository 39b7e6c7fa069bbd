"""The Python interface, installed as `codelength`: only these names are stable.

    import codelength as cl

    config = cl.load_config("wiki-mini", ["name=first", "train.epochs=1"])
    run = cl.train(config)
    cl.evaluate(run.directory)
    print(run.lengths()["offline"].total_bytes, run.online.bits_per_byte)

Names are imported when they are first used. Errors are `UsageError` (input is wrong) and `RunFailure` (the work
failed), both `CodelengthError`s with a message of one line.
"""

import importlib
from importlib import metadata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from eval.curves.area import OnlineLength
    from eval.length import Length
    from harness.config.run import RunConfig, load_config
    from harness.errors import CodelengthError, RunFailure, UsageError

    from .calls import (
        Run,
        compress,
        evaluate,
        online_length,
        open_run,
        send,
        train,
    )
    from .decoding import decompress, receive

__version__ = metadata.version("codelength")

_HOMES = {
    "eval.curves.area": ("OnlineLength",),
    "eval.length": ("Length",),
    "harness.config.run": ("RunConfig", "load_config"),
    "harness.errors": ("CodelengthError", "RunFailure", "UsageError"),
    ".calls": (
        "Run",
        "compress",
        "evaluate",
        "online_length",
        "open_run",
        "send",
        "train",
    ),
    ".decoding": ("decompress", "receive"),
}
__all__ = [
    "CodelengthError",
    "Length",
    "OnlineLength",
    "Run",
    "RunConfig",
    "RunFailure",
    "UsageError",
    "__version__",
    "compress",
    "decompress",
    "evaluate",
    "load_config",
    "online_length",
    "open_run",
    "receive",
    "send",
    "train",
]


def __getattr__(name: str) -> object:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(home, __name__), name)
    raise AttributeError(f"module 'codelength' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
