"""`python -m launch.jobs.agent`: torchrun, with the endings of this project; job scripts start their ranks with it.

torchrun ends with status 1 whatever its ranks end with, and prints tracebacks of its own. Here the status of the ranks
comes out, so that a job that was asked to make room (75) is told from one that has failed, and words are those of the
ranks.
"""

import logging
import os
import sys
from collections.abc import Iterable, Sequence

from harness.errors import PAUSED_STATUS, print_error
from harness.machine.stop import Interrupted, end_at_signals, interruptible
from launch.jobs.torchrun import words_about

if __name__ == "__main__":
    # The imports of `main` take seconds.
    end_at_signals()


def main(arguments: Sequence[str]) -> int:
    """Run ranks on this node with the arguments of torchrun; returns their exit status."""
    if "LOGLEVEL" not in os.environ:
        # What ranks say is enough.
        logging.disable(logging.ERROR)
    try:
        with interruptible():
            return _run(arguments)
    except Interrupted as error:
        print_error(error)
        return error.exit_status


def _run(arguments: Sequence[str]) -> int:
    from torch.distributed import DistError
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError
    from torch.distributed.run import parse_args, run

    try:
        run(parse_args(list(arguments)))
    except ChildFailedError as error:
        statuses = {rank: failure.exitcode for rank, failure in error.failures.items()}
        for rank, status in sorted(statuses.items()):
            if status < 0:
                print(words_about(rank, -status), file=sys.stderr)
        return common_status(statuses.values())
    except SignalException:
        # The ranks were told, and have said what there is to say.
        return 1
    except (DistError, RendezvousError, ConnectionError) as error:
        print(f"codelength: the nodes have not met or lost each other ({str(error).splitlines()[0]})", file=sys.stderr)
        return 1
    return 0


def common_status(statuses: Iterable[int | None]) -> int:
    """Choose a job's exit status from those of its ranks: that of the refused rank, for which others were ended."""
    statuses = set(statuses)
    return next((status for status in (2, 1, PAUSED_STATUS) if status in statuses), int(any(statuses)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
