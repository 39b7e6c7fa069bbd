"""Several processes on this machine: what `torchrun --standalone` does, with an exit status of their own."""

import logging
import os
import sys
import uuid

# A rank that is told to stop has this long to write its checkpoint.
SECONDS_TO_SAVE = 600


def run_here(module: str, arguments: list[str], processes: int) -> int:
    """Run `python -m module arguments` in `processes` processes; returns the exit status of the one that failed.

    Each says itself what went wrong, on one line; torchrun would add its own traceback and turn every status into 1.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    os.environ.setdefault("OMP_NUM_THREADS", "1")
    logging.disable(logging.CRITICAL)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        logs_specs=DefaultLogsSpecs(),
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        shutdown_timeout=SECONDS_TO_SAVE,
    )
    try:
        elastic_launch(config, sys.executable)("-u", "-m", module, *arguments)
    except ChildFailedError as error:
        statuses = {rank: failure.exitcode for rank, failure in error.failures.items()}
        for rank, status in statuses.items():
            if status < 0:
                print(f"codelength: rank {rank} was killed by signal {-status}", file=sys.stderr)
        # Where one rank was refused its input, others may have been ended for that.
        return next((status for status in (2, 1) if status in statuses.values()), 1)
    except SignalException:
        return 1
    return 0
