"""The online code of a run as a verified file, for its report."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from harness.config.run import RunConfig
from harness.errors import RunFailure, UsageError
from harness.files import read_file, sha256
from harness.machine.children import child_environment
from harness.run.directory import CONFIG_FILE, ENVIRONMENT_FILE, run_base

ONLINE_FILE = Path("online") / "corpus.clo"


def send_and_receive(run_dir: Path, config: RunConfig, ideal_bits: float, quiet: bool) -> dict:
    """Send the training corpus with as many processes as have trained, and receive it in fresh ones.

    Returns what the report says of the file; its parts in bits and `ideal_bits`, the code length by the run's own
    ledger, add up to 8 * file_bytes. Raises RunFailure where the file does not come back.
    """
    try:
        world_size = int(json.loads(read_file(run_dir / ENVIRONMENT_FILE))["world_size"])
    except (OSError, ValueError, KeyError, TypeError):
        raise UsageError(f"{run_dir / ENVIRONMENT_FILE}: missing or damaged; train again") from None
    output = run_dir.absolute() / ONLINE_FILE
    output.parent.mkdir(exist_ok=True)
    base = run_base(run_dir, config)
    settings = [
        str(run_dir.absolute() / CONFIG_FILE),
        "-o",
        str(output),
        "--force",
        "--json",
        "--processes",
        str(world_size),
    ]
    silence = ["--quiet"] if quiet else []
    sent = json.loads(_run(base, "send", *settings, *silence))
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "received"
        received = json.loads(_run(base, "receive", str(output), "-o", str(text), "--json", *silence))
        if sha256(text) != sent["sha256"]:
            raise RunFailure(f"{output}: what was received is not what was sent (SHA-256)")
    costs = {
        f"{end}_{what}": value
        for end, told in (("send", sent), ("receive", received))
        for what, value in told["costs"].items()
    }
    return {
        "file_bytes": output.stat().st_size,
        "verified": True,
        "sha256": sent["sha256"],
        "prediction_bits": sent["prediction_bits"] + sent["aulc_bits"] - ideal_bits,
        **{
            key: sent[key]
            for key in (
                "quantisation_bits",
                "termination_bits",
                "segment_bits",
                "header_bits",
                "order_bits",
                "start_bits",
                "policy_bits",
            )
        },
        **costs,
    }


def _run(base: Path, *arguments: str) -> str:
    """A command in fresh processes, begun in `base`; returns what it prints; its progress goes to the terminal."""
    command = [sys.executable, "-m", "launch", *arguments]
    done = subprocess.run(command, cwd=base, env=child_environment(), stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise RunFailure(f"{' '.join(arguments[:2])}: ended with status {done.returncode}; see above")
    return done.stdout
