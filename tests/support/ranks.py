"""Ranks of a training job, started one by one as torchrun would, so that a test can kill or stop any of them."""

import json
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from safetensors.torch import load_file

from harness.run.ledger import part_paths
from tests.support.commands import ROOT
from tests.support.processes import python

SUBSET_BYTES, CONTEXT = 2540, 64
CONFIG = f"""
corpus: {{kind: wiki-mini, heldout_bytes: 3000}}
model: {{width: 32, layers: 1, heads: 1, context: {CONTEXT}}}
eval: {{chunk_bytes: {CONTEXT}}}
train: {{finetune_epochs: 1, batch_sequences: 4, precision: fp32, log_every_steps: 1}}
optimizer: {{kind: adamw, warmup_tokens: 96}}
rule: {{kind: rl1, alpha: 0.1}}
prune: {{kind: tamade, sample_sequences: 8, resolution: 1.0e-3, grid: 0.5, rounds: 2}}
"""


def write_config(folder: Path, rule: str = "rl1", subset_bytes: int = SUBSET_BYTES, **train: float) -> Path:
    """A configuration (ten steps an epoch) with a rule, pruning and a grid, its data and runs in `folder`."""
    content = yaml.safe_load(CONFIG) | {"runs_dir": f"{folder}/runs", "data_dir": f"{folder}/data"}
    content["rule"]["kind"], content["corpus"]["subset_bytes"] = rule, subset_bytes
    content["train"] |= train
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def rows(run_dir: Path) -> pa.Table:
    """The ledger of all ranks in the order of the steps."""
    return pa.concat_tables([pq.read_table(path) for path in part_paths(run_dir)]).sort_by(
        [("step", "ascending"), ("sequence", "ascending")]
    )


def assert_same_run(run_dir: Path, other: Path) -> None:
    """Ledgers and weights are equal bit by bit."""
    assert rows(run_dir).equals(rows(other))
    ours, theirs = (load_file(r / "weights.safetensors") for r in (run_dir, other))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert (run_dir / "weights.safetensors").read_bytes() == (other / "weights.safetensors").read_bytes()


class Ranks:
    """A job of `count` processes; a context manager that leaves none behind."""

    def __init__(self, count: int, config: Path, *overrides: str, program: list[str] | None = None):
        program = program or ["-m", "harness.train", str(config), *overrides]
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        job = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        self.processes = [
            python(*program, cwd=ROOT, env=job | {"RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(count)
        ]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kill()

    def kill(self) -> None:
        """SIGKILL to all at once."""
        for process in self.processes:
            process.send_signal(signal.SIGKILL)
        for process in self.processes:
            process.communicate(timeout=60)

    def wait(self, timeout: float = 120) -> list[tuple[int, str, str]]:
        """Exit status, stdout and stderr of every rank."""
        outputs = [process.communicate(timeout=timeout) for process in self.processes]
        return [(p.returncode, *texts) for p, texts in zip(self.processes, outputs, strict=True)]

    def wait_until(self, condition: Callable[[], bool], timeout: float = 90) -> None:
        """Wait for `condition` or for the end of the job."""
        deadline = time.monotonic() + timeout
        while not condition() and any(p.poll() is None for p in self.processes):
            assert time.monotonic() < deadline, "nothing happened"
            time.sleep(0.005)


JOBS = """
import json, os, sys
from datetime import timedelta
import torch.distributed as dist
from harness.train import main
dist.init_process_group("gloo", timeout=timedelta(seconds=60))
for arguments in json.loads(sys.argv[1]):
    status = main(arguments)
    if status:
        print(arguments, file=sys.stderr)
        break
sys.stdout.flush(), sys.stderr.flush()
os._exit(status)
"""


def finish_all(count: int, config: Path, jobs: dict[str, tuple[str, ...]]) -> None:
    """Run named jobs one after another in the same processes, which saves their start; each must succeed in silence."""
    arguments = [[str(config), f"name={name}", *overrides] for name, overrides in jobs.items()]
    with Ranks(count, config, program=["-c", JOBS, json.dumps(arguments)]) as job:
        for status, _, errors in job.wait(timeout=300):
            assert status == 0, errors
            assert "warning" not in errors.lower(), errors


def finish(count: int, config: Path, *overrides: str) -> list[tuple[int, str, str]]:
    """Run a job to its end."""
    with Ranks(count, config, *overrides) as job:
        return job.wait()
