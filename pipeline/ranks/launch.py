"""Starts several processes of a command on this machine, by torch's own launcher, as torchrun does."""

import logging
import os
import sys
from collections.abc import Sequence

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from pipeline.system.machine import usable_cores

STOPPED_STATUS = 130


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
    try:
        elastic_launch(settings, sys.executable)(*words)
    except ChildFailedError as error:
        failed = error.failures.get(0) or error.get_first_failure()[1]
        return failed.exitcode if failed.exitcode > 0 else 128 - failed.exitcode
    except SignalException:
        return STOPPED_STATUS
    return 0
