"""A real SLURM of two nodes on this machine: munged, slurmctld and two slurmd, all in one temporary folder."""

import getpass
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

PROGRAMS = ("munged", "mungekey", "slurmctld", "slurmd", "sbatch", "scontrol", "squeue", "scancel", "srun")
SBIN = "/usr/local/sbin:/usr/sbin:/sbin"
NODES = ("n1", "n2")
# Device files that stand for GPUs: SLURM counts them, nobody opens them.
PRETENDED_GPUS = ("/dev/null", "/dev/zero")
START_SECONDS, STOP_SECONDS = 30, 10
ENDED = frozenset(["CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "TIMEOUT"])

# cred_expire is also what a requeued job waits before it starts again: 120 s by default.
# The state of a job is asked for after its end: MinJobAge keeps it. Nodes promise more CPUs than the machine may have.
SLURM_CONF = """
ClusterName=codelength
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=30
MinJobAge=3600
GresTypes=gpu
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2 RealMemory=2000 Gres=gpu:2
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2 RealMemory=2000 Gres=gpu:2
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=60 State=UP
"""


class Cluster:
    """A running cluster; `environment` holds the variables with which its commands find it."""

    def __init__(self, folder: Path):
        self.folder = folder
        path = f"{os.environ['PATH']}{os.pathsep}{SBIN}"
        # A test run that is itself a SLURM job must not pass its own job on.
        own = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SBATCH_"))}
        self.environment = own | {"PATH": path, "SLURM_CONF": str(folder / "slurm.conf")}

    def run(self, *command: str) -> str:
        """The output of a SLURM command, which must succeed."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"
        return done.stdout

    def job(self, job_id: str) -> dict[str, str]:
        """What `scontrol show job` says: JobState, Restarts, Reason, ..."""
        words = self.run("scontrol", "--oneliner", "show", "job", job_id).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait_until(self, holds: Callable[[], bool], seconds: float, what: str) -> None:
        """Wait for a condition; fails naming it, with the daemons' last words."""
        deadline = time.monotonic() + seconds
        while not holds():
            if time.monotonic() > deadline:
                raise AssertionError(f"not within {seconds} s: {what}\n{self._last_words()}")
            time.sleep(0.1)

    def wait_for_end(self, job_id: str, seconds: float = 120) -> str:
        """Wait until a job has ended for good (not for a requeue); returns its state."""
        self.wait_until(lambda: self.job(job_id)["JobState"] in ENDED, seconds, f"end of job {job_id}")
        return self.job(job_id)["JobState"]

    def _last_words(self) -> str:
        logs = sorted(self.folder.glob("*.log"))
        return "\n".join(f"{log.name}: {line}" for log in logs for line in log.read_text().splitlines()[-8:])


@contextmanager
def running_cluster() -> Iterator[Cluster]:
    """Start the daemons and stop them again, whatever happens; skips where slurm-wlm is not installed."""
    path = f"{os.environ['PATH']}{os.pathsep}{SBIN}"
    missing = [name for name in PROGRAMS if not shutil.which(name, path=path)]
    if missing and os.environ.get("CODELENGTH_REQUIRE_SLURM") == "1":
        pytest.fail(f"CODELENGTH_REQUIRE_SLURM=1, but slurm-wlm is not installed: no {', '.join(missing)}")
    if missing:
        pytest.skip("slurm-wlm is not installed")
    # Not pytest's own folder: the path of a Unix socket may not exceed 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="codelength-slurm-"))
    cluster, daemons = Cluster(folder), []
    try:
        _configure(folder)
        _start(cluster, daemons)
        yield cluster
    finally:
        _stop(cluster, daemons)
        shutil.rmtree(folder, ignore_errors=True)


def _configure(folder: Path) -> None:
    folder.chmod(0o755)
    for name in ("munge", "state", *(f"spool-{node}" for node in NODES)):
        (folder / name).mkdir()
    with socket.socket() as a, socket.socket() as b, socket.socket() as c:
        sockets = (a, b, c)
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        ports = [each.getsockname()[1] for each in sockets]
    host = socket.gethostname().split(".")[0]
    text = SLURM_CONF.format(folder=folder, host=host, user=getpass.getuser(), ports=ports)
    (folder / "slurm.conf").write_text(text)
    (folder / "gres.conf").write_text("".join(f"Name=gpu File={device}\n" for device in PRETENDED_GPUS))


def _start(cluster: Cluster, daemons: list[subprocess.Popen]) -> None:
    folder, munge = cluster.folder, cluster.folder / "munge"
    cluster.run("mungekey", "--create", f"--keyfile={munge}/key")
    names = ("key", "socket", "log", "pid", "seed")
    options = dict(zip(("key-file", "socket", "log-file", "pid-file", "seed-file"), names, strict=True))
    # --force: the folder is a temporary one of a user, not the system's.
    start = [["munged", "--foreground", "--force", *(f"--{key}={munge}/{name}" for key, name in options.items())]]
    start += [["slurmctld", "-D", "-i"], *(["slurmd", "-D", "-N", node] for node in NODES)]
    for command in start:
        log = folder / f"{command[0]}-{len(daemons)}.log"
        with log.open("w") as output:
            daemons.append(
                subprocess.Popen(command, env=cluster.environment, stdout=output, stderr=output, start_new_session=True)
            )
        if command[0] == "munged":
            cluster.wait_until((munge / "socket").exists, START_SECONDS, "the socket of munged")

    def nodes_are_idle() -> bool:
        dead = [daemon.args[0] for daemon in daemons if daemon.poll() is not None]
        assert not dead, f"{', '.join(dead)} ended at once\n{cluster._last_words()}"
        done = subprocess.run(["sinfo", "-h", "-o", "%T %D"], env=cluster.environment, capture_output=True, text=True)
        return done.stdout.split() == ["idle", str(len(NODES))]

    cluster.wait_until(nodes_are_idle, START_SECONDS, "two idle nodes")


def _stop(cluster: Cluster, daemons: list[subprocess.Popen]) -> None:
    # Cancelled jobs may take KillWait seconds to save: here they are killed. SLURM's keepers of their steps carry no
    # mark of this cluster, but end by themselves as long as there are daemons to report to.
    deadline = time.monotonic() + STOP_SECONDS
    with suppress(AssertionError, subprocess.TimeoutExpired):
        cluster.run("scancel", f"--user={getpass.getuser()}")
        while cluster.run("squeue", "--noheader") and time.monotonic() < deadline:
            _kill_processes(cluster, "SLURM_JOB_ID")
            time.sleep(0.2)
    for daemon in reversed(daemons):
        daemon.kill()
        daemon.wait()
    _kill_processes(cluster, "SLURM_CONF")


def _kill_processes(cluster: Cluster, variable: str) -> None:
    """Kill what has the SLURM_CONF of this cluster in its environment, and `variable` too."""
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            environment = process.environ()
            if environment.get("SLURM_CONF") == cluster.environment["SLURM_CONF"] and variable in environment:
                process.kill()
