"""What a SLURM job asks for, as options of sbatch."""

import shlex
from dataclasses import dataclass, replace
from pathlib import Path

from harness.errors import UsageError


@dataclass(frozen=True, kw_only=True, slots=True)
class Resources:
    """The resources that a job asks a cluster for; None leaves a choice to the cluster."""

    nodes: int = 1
    """Nodes of the job, or of each task of an array."""
    gpu_type: str | None = None
    """Type of the GPUs, as the cluster names it; None: any."""
    gpus_per_node: int = 0
    """GPUs on each node."""
    processes_per_node: int | None = None
    """Processes on each node; None: one a GPU, or 1 where there are none."""
    cpus_per_gpu: int = 8
    """CPUs that come with each GPU."""
    cpus_per_task: int | None = None
    """CPUs on each node; None: `cpus_per_gpu` a GPU, or one a process."""
    whole_nodes: bool = False
    """Share nodes with nobody, and take all of their memory."""
    time: str | None = None
    """Longest time of one start, as D-HH:MM:SS."""
    mem: str | None = None
    """Memory on each node, as 64G."""
    partition: str | None = None
    """Partition of the cluster."""
    account: str | None = None
    """Account that is charged."""
    qos: str | None = None
    """Quality of service."""
    save_seconds: int | None = None
    """Seconds before the end of its time at which a job saves; None: those of the script."""
    name: str | None = None
    """Name of the job; None: made from the run's."""
    sbatch: str = ""
    """More options of sbatch, as in a shell; they win."""
    data_sbatch: str = ""
    """The same for the job that prepares data."""
    srun: str = ""
    """More options of srun, as in a shell."""
    setup: Path | None = None
    """A file of shell commands that each job begins with."""

    @property
    def processes(self) -> int:
        """Processes on each node."""
        return self.processes_per_node or self.gpus_per_node or 1

    @property
    def cpus(self) -> int:
        """CPUs on each node."""
        return self.cpus_per_task or self.gpus_per_node * self.cpus_per_gpu or self.processes

    def directives(self) -> dict[str, str]:
        """The options of sbatch that are set.

        Raises UsageError where `sbatch` is not made of long options.
        """
        gpus = f"{self.gpu_type}:{self.gpus_per_node}" if self.gpu_type else self.gpus_per_node
        options = {
            "job-name": self.name,
            "nodes": self.nodes,
            "gpus-per-node": gpus if self.gpus_per_node else None,
            "cpus-per-task": self.cpus,
            "time": self.time,
            "mem": self.mem or ("0" if self.whole_nodes else None),
            "exclusive": "" if self.whole_nodes else None,
            "partition": self.partition,
            "account": self.account,
            "qos": self.qos,
            "signal": f"B:USR1@{self.save_seconds}" if self.save_seconds else None,
        }
        set_options = {option: str(value) for option, value in options.items() if value is not None}
        return set_options | long_options("--sbatch", self.sbatch)

    def for_data(self) -> "Resources":
        """Choose the resources that preparing data takes: CPUs of one node."""
        return replace(
            self,
            nodes=1,
            gpu_type=None,
            gpus_per_node=0,
            whole_nodes=False,
            sbatch=self.data_sbatch,
            name=None,
            cpus_per_task=self.cpus,
        )


def long_options(flag: str, text: str) -> dict[str, str]:
    """Parse options as in a shell, such as `--constraint=a100 --exclusive`, by name.

    Raises UsageError where one is short, or no option.
    """
    options: dict[str, str] = {}
    last = ""
    for word in words_of(flag, text):
        name, _, value = word.removeprefix("--").partition("=")
        if word.startswith("--") and name:
            options[name], last = value, "" if "=" in word else name
        elif last and not word.startswith("-"):
            options[last], last = word, ""
        else:
            raise UsageError(f"{flag} {text!r}: {word}: write every option in full, as --constraint=a100")
    return options


def words_of(flag: str, text: str) -> list[str]:
    """Split a shell command into words.

    Raises UsageError, naming the option `flag`, where a quote is left open.
    """
    try:
        return shlex.split(text)
    except ValueError as error:
        raise UsageError(f"{flag} {text!r}: not readable as in a shell ({error})") from None
