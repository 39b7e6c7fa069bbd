"""Everything that only a GPU can show, in one run that writes one JSON.

    python -m tests.gpu.check [--device cuda|cpu] [--out gpu-test.json] [--only STEP ...] [--sizes small|full]

Without a GPU it says so and ends; `--device cpu` runs every step on the CPU instead, two processes for two GPUs.
Steps that need two GPUs say that they are skipped where there is one.
"""

import argparse
import json
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import torch

from harness.machine.hardware import environment, processor_name
from harness.machine.ranks import choose_device
from tests.gpu import jobs, speed

STEPS: dict[str, Callable[[jobs.Place], dict]] = {
    "group": jobs.group,
    "demo": jobs.demo,
    "repeat": jobs.repeat,
    "resume": jobs.resume,
    "zero": jobs.zero,
    "broken_loss": jobs.broken_loss,
    "archive": jobs.archive,
    "send_receive": jobs.send_receive,
    "compiled": jobs.compiled,
    "speed": speed.speed,
}


def main() -> int:
    """Run the steps one after another; returns 1 where one of them failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--out", type=Path, default=Path("gpu-test.json"))
    parser.add_argument("--only", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--sizes", choices=jobs.SIZES, default="full")
    parser.add_argument("--settings", nargs="+", default=[], metavar="KEY=VALUE", help="for every run")
    parser.add_argument("--folder", type=Path, help="where runs and data go (default: a new one, removed at the end)")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        print("skipped: no GPU")
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.folder or Path(temporary)).resolve()
        place = jobs.Place(options.device, folder, options.sizes, tuple(options.settings))
        found = {"environment": environment(1, choose_device(options.device)), "sizes": options.sizes, "steps": {}}
        found["processor"] = processor_name()
        for name in options.only:
            found["steps"][name] = _tried(name, STEPS[name], place)
            options.out.write_text(json.dumps(found, indent=1) + "\n")
    failed = [name for name, result in found["steps"].items() if result["status"] == "failed"]
    print(f"{len(found['steps']) - len(failed)} passed, {len(failed)} failed", *failed)
    return 1 if failed else 0


def _tried(name: str, step: Callable[[jobs.Place], dict], place: jobs.Place) -> dict:
    """What a step found; an error of one step does not keep the next one from running."""
    started = time.perf_counter()
    try:
        result = {"status": "passed"} | step(place)
    except Exception as error:
        lines = traceback.format_exception(error)
        result = {"status": "failed", "error": str(error)[-4000:], "trace": "".join(lines)[-2000:]}
    result["seconds"] = round(time.perf_counter() - started, 1)
    text = json.dumps({key: value for key, value in result.items() if key not in ("trace", "kernels")})
    print(f"{name}: {text[:3000]}", flush=True)
    return result


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
