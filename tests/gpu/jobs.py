"""The steps of `tests.gpu.check` that are jobs: commands as a user gives them, and what they leave behind."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from harness.run.checkpoint import committed_checkpoints, sha256
from harness.run.ledger import part_paths

ROOT = Path(__file__).parents[2]
SIZES = {
    "small": (
        "corpus.subset_bytes=40300",
        "corpus.heldout_bytes=5000",
        "model.width=32",
        "model.layers=1",
        "train.epochs=3",
        "train.finetune_epochs=0.5",
        "prune.sample_sequences=8",
    ),
    "full": ("corpus.subset_bytes=1200000", "corpus.heldout_bytes=64000"),
}
TIMEOUT_SECONDS = 400


@dataclass(frozen=True)
class Place:
    """What the steps run on, and where."""

    device: str
    folder: Path
    sizes: str
    settings: tuple[str, ...]

    @property
    def processes(self) -> int:
        """Ranks of a job: two where there are two GPUs, and on a CPU."""
        return min(2, torch.cuda.device_count()) if self.device == "cuda" else 2

    def arguments(self, name: str, *settings: str) -> list[str]:
        """Configuration and settings of a run."""
        own = (f"name={name}", f"runs_dir={self.folder}/runs", f"data_dir={self.folder}/data")
        device = f"backend.device={self.device}"
        return [f"{ROOT}/configs/demo.yaml", *SIZES[self.sizes], *own, device, *self.settings, *settings]

    def run_dir(self, name: str) -> Path:
        """Directory of a run."""
        return self.folder / "runs" / name


def command(*words: object, status: int = 0, **environment: str) -> str:
    """Run `codelength WORDS`; what it printed. Raises RuntimeError where its exit status is another one."""
    done = subprocess.run(
        [sys.executable, "-m", "launch", *map(str, words)],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
    )
    if done.returncode != status:
        raise RuntimeError(f"codelength {' '.join(map(str, words))}: exit {done.returncode}\n{done.stderr[-3500:]}")
    return done.stdout + done.stderr


def train(place: Place, name: str, *settings: str, processes: int | None = None, **environment: str) -> str:
    """Train a run to its end."""
    flags = ["--processes", str(processes or place.processes)]
    return command("train", *place.arguments(name, *settings), *flags, **environment)


def digest(run_dir: Path) -> str:
    """SHA-256 of a run's weights and of its ledger in the order of the steps."""
    rows = pa.concat_tables([pq.read_table(path) for path in part_paths(run_dir)])
    rows = rows.sort_by([("step", "ascending"), ("sequence", "ascending")]).combine_chunks()
    ledger = hashlib.sha256()
    for name in ("step", "sequence", "epoch", "nats_sum"):
        ledger.update(np.ascontiguousarray(rows[name].to_numpy()).tobytes())
    return f"{sha256(run_dir / 'weights.safetensors')[:16]} {ledger.hexdigest()[:16]}"


def online_bits(run_dir: Path) -> float:
    """Area under the loss curve by the last line of the metrics."""
    return json.loads((run_dir / "metrics.jsonl").read_text().splitlines()[-1])["online_bits"]


def group(place: Place) -> dict:
    """A process group of one rank with the settings of a job: sums of GPU and host, objects, a barrier."""
    program = (
        "import torch, torch.distributed as dist\n"
        "from harness.machine.ranks import Ranks, choose_device, init_process_group\n"
        f"device = choose_device({place.device!r})\n"
        "init_process_group(device, 60, store=dist.HashStore(), rank=0, world_size=1)\n"
        "ranks = Ranks(0, 2, device)\n"
        "ones = ranks.sum_tensor(torch.ones(3, device=device))\n"
        "share = [torch.empty_like(ones)]\n"
        "dist.all_gather(share, ones)\n"
        "holder = [{'a': 1}]\n"
        "dist.broadcast_object_list(holder, src=0)\n"
        "dist.barrier()\n"
        "print(ones.tolist(), share[0].tolist(), ranks.sum(1.5), holder, dist.get_backend())\n"
        "dist.destroy_process_group()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=100)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return {"printed": done.stdout.strip()}


def demo(place: Place) -> dict:
    """The main job, as `make demo` does it, and its archive."""
    command("data", *place.arguments("demo"))
    started = time.perf_counter()
    said = train(place, "demo")
    trained = time.perf_counter()
    command("eval", place.run_dir("demo"))
    report = json.loads((place.run_dir("demo") / "report.json").read_text())
    last = [json.loads(line) for line in (place.run_dir("demo") / "metrics.jsonl").read_text().splitlines()]
    main = [line for line in last if line["phase"] == "main"][1:]
    return {
        "train_seconds": round(trained - started, 1),
        "eval_seconds": round(time.perf_counter() - trained, 1),
        "online_bits_per_byte": report["online"]["bits_per_byte"],
        "total_bytes": report["offline"]["total_bytes"],
        "verified": report["offline"]["verified"],
        "tokens_per_second": float(np.median([line["tokens_per_second"] for line in main])),
        "said": [line for line in said.splitlines() if line.startswith(("arithmetic", "dry step"))],
    }


def repeat(place: Place) -> dict:
    """The same run twice gives the same bits."""
    for name in ("once", "twice"):
        train(place, name)
    return _same(place, "once", "twice")


def resume(place: Place) -> dict:
    """A run killed in its middle, with checkpoints all the time, ends with the bits of one that never stopped.

    On a GPU also where it goes on beside a processor with other instructions and threads.
    """
    often = "train.checkpoint_minutes=1e-9"
    train(place, "whole")
    arguments = [*place.arguments("killed", often), "--processes", str(place.processes)]
    for target in (5, 25):
        job = subprocess.Popen(
            [sys.executable, "-m", "launch", "train", *arguments],
            cwd=ROOT,
            start_new_session=True,
            stderr=subprocess.PIPE,
        )
        deadline = time.monotonic() + 200
        while _saved(place) < target and job.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        os.killpg(job.pid, signal.SIGKILL)
        job.wait()
    other_host = {} if place.device == "cpu" else {"OMP_NUM_THREADS": "3", "ATEN_CPU_CAPABILITY": "default"}
    said = train(place, "killed", often, **other_host)
    resumed = [line for line in said.splitlines() if line.startswith("resume")]
    if not resumed:
        raise RuntimeError("it was not resumed")
    return _same(place, "whole", "killed") | {"resumed": resumed[0].split(" (")[0]}


def zero(place: Place) -> dict:
    """Every ZeRO stage trains and, killed or not, agrees with DDP on the online code."""
    found = {}
    train(place, "ddp", "train.precision=fp32")
    expected = online_bits(place.run_dir("ddp"))
    for stage in range(4):
        name = f"zero{stage}"
        train(place, name, "backend.name=deepspeed", f"backend.zero_stage={stage}", "train.precision=fp32")
        found[name] = online_bits(place.run_dir(name)) / expected - 1
        if abs(found[name]) > 1e-3:
            raise RuntimeError(f"stage {stage}: {found[name]:+.2e} from DDP's online code")
    return {"relative_to_ddp": found}


def broken_loss(place: Place) -> dict:
    """A loss that is not finite on one rank ends all of them, in words, within seconds."""
    program = (
        "import sys, torch\n"
        "import harness.learner as learner, harness.train as train\n"
        "from harness.machine.ranks import leave\n"
        "plain, calls = learner.Learner._backward, []\n"
        "def broken(self, *arguments, **more):\n"
        "    nats, nats_sum = plain(self, *arguments, **more)\n"
        "    calls.append(1)\n"
        "    last = self.ranks.rank == self.ranks.world_size - 1 and len(calls) > 4\n"
        "    return nats, nats_sum * float('nan') if last else nats_sum\n"
        "learner.Learner._backward = broken\n"
        "leave(train.main(sys.argv[1:]))\n"
    )
    script = place.folder / "broken.py"
    script.write_text(program)
    started = time.perf_counter()
    words = ["--standalone", f"--nproc-per-node={place.processes}", str(script), *place.arguments("broken")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *words],
        cwd=place.folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
    )
    said = [line for line in done.stderr.splitlines() if "the loss is nan" in line]
    if done.returncode != 1 or len(said) != 1:
        raise RuntimeError(f"exit {done.returncode}\n{done.stderr[-2000:]}")
    return {"said": said[0], "ended_after_seconds": round(time.perf_counter() - started, 1)}


def archive(place: Place) -> dict:
    """Texts through files that fresh processes decode, with the portable and with the float predictor."""
    text, packed, unpacked = ROOT / "README.md", place.folder / "readme.cl", place.folder / "readme.txt"
    command("compress", "--run", place.run_dir("demo"), text, "-o", packed)
    command("decompress", packed, "-o", unpacked)
    if unpacked.read_bytes() != text.read_bytes():
        raise RuntimeError("another text came back")
    command("eval", place.run_dir("demo"), "eval.predictor=float")
    offline = json.loads((place.run_dir("demo") / "report.json").read_text())["offline"]
    return {
        "portable_sha256": sha256(packed)[:16],
        "bytes": packed.stat().st_size,
        "float_verified": offline["verified"],
    }


def send_receive(place: Place) -> dict:
    """The online code as a file, learnt on this device by both ends."""
    config = [*place.arguments("sent", "corpus.subset_bytes=40300", "train.batch_sequences=4")]
    command("data", *config)
    packed, text = place.folder / "sent.clo", place.folder / "sent.txt"
    processes = ["--processes", str(place.processes)]
    command("send", *config, "-o", packed, *processes)
    command("receive", packed, "-o", text, *processes)
    return {"bytes": packed.stat().st_size, "raw_bytes": text.stat().st_size}


def compiled(place: Place) -> dict:
    """Blocks that are compiled train to about the same code length, and the same bits twice."""
    train(place, "plain")
    for name in ("compiled", "compiled_again"):
        train(place, name, "train.compile=true")
    difference = online_bits(place.run_dir("compiled")) / online_bits(place.run_dir("plain")) - 1
    if abs(difference) > 1e-2:
        raise RuntimeError(f"{difference:+.2e} from the online code of the plain run")
    return _same(place, "compiled", "compiled_again") | {"relative_to_plain": difference}


def _same(place: Place, first: str, second: str) -> dict:
    ours, theirs = digest(place.run_dir(first)), digest(place.run_dir(second))
    if ours != theirs:
        raise RuntimeError(f"{first} {ours}, {second} {theirs}: weights or ledger differ")
    return {"digest": ours}


def _saved(place: Place) -> int:
    found = committed_checkpoints(place.run_dir("killed"))
    return int(found[-1].name.split("-")[1]) if found else 0
