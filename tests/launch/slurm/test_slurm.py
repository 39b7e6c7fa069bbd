"""Jobs on a real SLURM of two nodes: preempted, cancelled and resubmitted runs end as if nothing had happened."""

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from harness.config.run import dump_config, load_config
from harness.run.checkpoint import committed_checkpoints
from harness.train import train_run
from launch.main import main
from launch.sweeps.sweep_file import read_sweep
from tests.support.commands import ROOT
from tests.support.ranks import assert_same_run
from tests.support.slurm_cluster import Cluster, running_cluster

CONFIG = """
corpus: {{kind: wiki-mini, subset_bytes: 20300, heldout_bytes: 1000}}
model: {{width: 32, layers: 1, heads: 1}}
train: {{epochs: {epochs}, finetune_epochs: 1, batch_sequences: 16, precision: fp32, log_every_steps: 1}}
rule: {{kind: rl1, alpha: 0.001}}
prune: {{kind: tamade, sample_sequences: 8, resolution: 1e-2}}
eval: {{lanes: 8}}
runs_dir: {folder}/runs
data_dir: {folder}/data
"""
# 3 steps an epoch: seconds of training, so that a signal meets it in the middle.
EPOCHS = 8
STEPS_BEFORE_SIGNAL = 3


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    with running_cluster() as cluster:
        yield cluster


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("slurm")
    (folder / "long.yaml").write_text(CONFIG.format(folder=folder, epochs=EPOCHS))
    return folder


@pytest.fixture(scope="session")
def uninterrupted(cluster, folder) -> Path:
    """A run of two processes that nothing disturbs, outside SLURM."""
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "harness.train"]
    done = python(cluster, *command, str(folder / "long.yaml"), "name=uninterrupted")
    assert done.returncode == 0, done.stderr
    return folder / "runs" / "uninterrupted"


def python(cluster: Cluster, *arguments: str) -> subprocess.CompletedProcess:
    environment = cluster.environment | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)


@pytest.fixture
def submit(cluster, monkeypatch, capsys) -> Callable[..., str]:
    """`codelength submit` in this process, which spares its start; returns the job's id."""
    monkeypatch.chdir(ROOT)
    for name in ("PATH", "SLURM_CONF"):
        monkeypatch.setenv(name, cluster.environment[name])

    def submit(*arguments: str, status: int = 0) -> str:
        assert main(["submit", *arguments]) == status
        said = capsys.readouterr()
        if status:
            assert said.out == ""
            return said.err
        return said.out.split()[1]

    return submit


def output(run_dir: Path) -> str:
    return "\n".join(path.read_text() for path in sorted(run_dir.glob("slurm-*.out")))


def steps_trained(run_dir: Path) -> int:
    path = run_dir / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def wait_until_it_trains(cluster: Cluster, run_dir: Path) -> None:
    cluster.wait_until(lambda: steps_trained(run_dir) >= STEPS_BEFORE_SIGNAL, 60, f"steps of {run_dir}")
    assert not (run_dir / "DONE").exists()


def processes_of(cluster: Cluster, job: str) -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            environment = process.environ()
            is_ours = environment.get("SLURM_CONF") == cluster.environment["SLURM_CONF"]
            if is_ours and environment.get("SLURM_JOB_ID") == job and "launch" in process.cmdline():
                yield process


def hears_usr1(process: psutil.Process) -> bool:
    """Whether it has a handler for the signal."""
    with suppress(OSError):
        caught = Path(f"/proc/{process.pid}/status").read_text().partition("SigCgt:")[2].split()[0]
        return bool(int(caught, 16) >> (signal.SIGUSR1 - 1) & 1)
    return False


def contents(folder: Path) -> dict[Path, tuple[int, int]]:
    """Time of change, in ns, and size in bytes of every file."""
    return {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in folder.rglob("*") if p.is_file()}


def test_a_preempted_job_is_requeued_and_ends_bit_identically(cluster, folder, uninterrupted, submit):
    run_dir = folder / "runs" / "preempted"
    config = folder / "preempted.yaml"
    config.write_text((folder / "long.yaml").read_text())
    job = submit(str(config), "name=preempted", "--nodes", "2")
    # The job goes on with what was submitted, whatever becomes of the file.
    config.write_text("name: another\n")
    wait_until_it_trains(cluster, run_dir)
    assert cluster.job(job)["NumNodes"] == "2"
    cluster.run("scancel", "--batch", "--signal=USR1", job)
    cluster.wait_until(lambda: cluster.job(job)["Restarts"] == "1", 60, f"requeue of job {job}")
    assert not (run_dir / "DONE").exists()
    assert cluster.wait_for_end(job) == "COMPLETED", output(run_dir)
    assert cluster.job(job)["Restarts"] == "1" and "Traceback" not in output(run_dir)
    assert_same_run(run_dir, uninterrupted)


def test_a_cancelled_job_leaves_a_run_that_the_next_submit_completes(
    cluster, folder, uninterrupted, submit, monkeypatch
):
    # A name that shells, sbatch and its patterns could take amiss.
    run_dir = folder / "runs" / "cancel'd $x at 5%j"
    # GPUs that SLURM counts and PyTorch does not find: a process for each, on one node.
    command = (str(folder / "long.yaml"), f"name={run_dir.name}", "--gpus-per-node", "2", "--cpus-per-gpu", "1")
    command += ("--partition", "main")
    # A variable of the shell does not outdo an option.
    monkeypatch.setenv("SBATCH_PARTITION", "nowhere")
    first, second = submit(*command), submit(*command)
    wait_until_it_trains(cluster, run_dir)
    waiting = cluster.job(second)
    assert (waiting["JobState"], waiting["Reason"]) == ("PENDING", "Dependency")
    cluster.run("scancel", first)
    assert cluster.wait_for_end(first) == "CANCELLED"
    assert not (run_dir / "DONE").exists()
    saved = committed_checkpoints(run_dir)
    assert saved, output(run_dir)
    assert cluster.wait_for_end(second) == "COMPLETED", output(run_dir)
    assert_same_run(run_dir, uninterrupted)


def test_an_array_skips_finished_runs_and_completes_the_others(cluster, folder, submit, capsys):
    sweep = folder / "two.yaml"
    settings = "[train.epochs=1, prune.kind=none, eval.ideal=true]"
    sweep.write_text(f"name: two\nconfig: long.yaml\nsettings: {settings}\ngrid: {{seed: [0, 1]}}\n")
    runs = [folder / "runs" / "two" / f"seed-{seed}" for seed in range(2)]
    train_run(read_sweep(sweep).runs[1].config)
    assert main(["eval", "--quiet", str(runs[1])]) == 0
    capsys.readouterr()
    before = contents(runs[1])
    array = submit("--sweep", str(sweep), "--at-a-time", "2")
    tasks = [f"{array}_{index}" for index in range(2)]
    assert [cluster.wait_for_end(task) for task in tasks] == ["COMPLETED"] * 2, output(runs[0].parent)
    assert all((run / "DONE").exists() and (run / "report.json").exists() for run in runs)
    assert contents(runs[1]) == before


def test_training_waits_for_its_data_and_their_preparation_makes_room(cluster, folder, submit):
    run_dir = folder / "runs" / "fresh"
    settings = ["tokenizer.kind=sentencepiece", "tokenizer.vocab_size=4000", "corpus.subset_bytes=5000000"]
    job = submit(str(folder / "long.yaml"), "name=fresh", *settings)
    data = str(int(job) - 1)
    assert f"afterok:{data}(unfulfilled)" in cluster.job(job)["Dependency"]
    cluster.wait_until(lambda: any(map(hears_usr1, processes_of(cluster, data))), 60, "preparation")
    cluster.run("scancel", "--batch", "--signal=USR1", data)
    cluster.wait_until(lambda: cluster.job(data)["Restarts"] == "1", 60, f"requeue of job {data}")
    assert cluster.job(job)["JobState"] == "PENDING"
    assert cluster.wait_for_end(data) == "COMPLETED", output(run_dir)
    cluster.wait_until(lambda: cluster.job(job)["JobState"] == "RUNNING", 60, f"start of job {job}")
    cluster.run("scancel", "--full", "--signal=KILL", job)
    (said,) = [text for text in output(run_dir).splitlines() if text.startswith("codelength:")]
    assert "asked to end for now" in said


def test_many_tasks_that_would_each_train_alone_are_refused(cluster, folder):
    command = ["srun", "--ntasks=2", "--overcommit", "--chdir", str(ROOT), sys.executable, "-m", "launch", "train"]
    command += [str(folder / "long.yaml"), "name=many", "--processes", "2"]
    done = subprocess.run(command, env=cluster.environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and not (folder / "runs" / "many").exists()
    (line,) = [line for line in done.stderr.splitlines() if not line.startswith("srun:")]
    assert line.startswith("codelength: SLURM_STEP_NUM_TASKS=2: srun has started this command 2 times")


def test_a_job_submitted_by_hand_that_fails_is_not_requeued(cluster, folder):
    config, run_dir = folder / "long.yaml", folder / "runs" / "refused"
    run_dir.mkdir(parents=True)
    (run_dir / "config.yaml").write_text(dump_config(load_config(config, ["name=refused", "seed=1"])))
    options = [
        f"--chdir={ROOT}",
        f"--output={run_dir}/slurm-%j.out",
        f"--export=ALL,CODELENGTH_PYTHON={sys.executable}",
    ]
    job = cluster.run(
        "sbatch", "--parsable", *options, str(ROOT / "slurm" / "pretrain.sbatch"), str(config), "name=refused"
    ).strip()
    assert cluster.wait_for_end(job) == "FAILED" and cluster.job(job)["Restarts"] == "0"
    assert "seed: 1 -> 0" in output(run_dir)


def test_an_evaluation_runs_as_a_job(cluster, folder, uninterrupted, submit):
    job = submit("--eval", str(uninterrupted), "eval.ideal=true", "--cpus-per-task", "2")
    assert cluster.wait_for_end(job) == "COMPLETED", output(uninterrupted)
    assert (uninterrupted / "report.json").exists()
    assert len(list(uninterrupted.glob("slurm-eval-*.out"))) == 1


def test_what_sbatch_refuses_is_said_in_one_line(cluster, folder):
    done = python(cluster, "-m", "launch", "submit", str(folder / "long.yaml"), "name=x", "--partition", "nowhere")
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and "invalid partition specified: nowhere" in done.stderr


def test_a_bad_key_is_refused_before_anything_is_submitted(cluster, folder, submit):
    jobs = cluster.run("squeue", "--states=all", "--noheader", "--format=%i")
    assert "train.epoch=1: unknown key" in submit(str(folder / "long.yaml"), "name=bad", "train.epoch=1", status=2)
    assert cluster.run("squeue", "--states=all", "--noheader", "--format=%i") == jobs
    assert not (folder / "runs" / "bad").exists()
