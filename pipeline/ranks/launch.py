"""Starts several processes of a command on this machine, by torch's own launcher, as torchrun does."""

import logging
import os
import signal
import sys
from collections.abc import Sequence

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from pipeline.system.machine import usable_cores

STOPPED_STATUS = 130
# Signals that torch handles while its processes run.
HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)


def launch(processes: int, words: Sequence[str]) -> int:
    """Run `python WORDS` in so many processes, which share the machine's cores, and wait for their end; gives the exit
    status of the one that leads."""
    # Its own account of how processes ended, which the leader has told in a sentence.
    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(usable_cores() // processes, 1)))
    settings = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=f"thaw-{os.getpid()}",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
    )
    handlers = {number: signal.getsignal(number) for number in HANDLED}
    try:
        elastic_launch(settings, sys.executable)(*words)
    except ChildFailedError as error:
        return _status(error)
    except SignalException:
        return STOPPED_STATUS
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return 0


def _status(error: ChildFailedError) -> int:
    """That of the leader, unless it was only stopped because another process had failed."""
    leader, (_, first) = error.failures.get(0), error.get_first_failure()
    failed = leader if leader is not None and leader.exitcode > 0 else first
    return failed.exitcode if failed.exitcode > 0 else 128 - failed.exitcode
