"""Starts several processes that do one thing together on this machine, by torch's own launcher, as torchrun does."""

import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from pipeline.ranks.door import NO_TRACES
from pipeline.ranks.environment import own_rank, take_own_gpu
from pipeline.ranks.team import STOPPED_STATUS, help_leader, led
from pipeline.system.errors import Interrupted, UserError
from pipeline.system.machine import usable_cores
from pipeline.system.memory import keep_freed_memory
from pipeline.system.processes import end_with_parent, environment_set, raise_on_signals

# What shells add to the number of the signal that ended a process.
BY_SIGNAL = 128
# What gives torch's own account of how processes ended, which the leader has told in a sentence.
LOGGERS = ("torch.distributed", "torch.distributed.elastic.agent.server.api", "torch.multiprocessing.spawn")
# What a process may take to save its work and close its run once it is stopped; torch kills it after 30 s otherwise.
SECONDS_TO_SAVE = 600
# Signals that torch handles while its processes run.
HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)


def launch(processes: int, words: Sequence[str]) -> int:
    """Run `python WORDS` in so many processes, which share the machine's cores, and wait for their end; gives the exit
    status of the one that leads."""
    try:
        with _launching(processes) as settings:
            elastic_launch(settings, sys.executable)(*words)
    except ChildFailedError as error:
        return _status(error)
    except SignalException:
        return STOPPED_STATUS
    return 0


def call(processes: int, function: Callable[..., Any], *arguments: Any) -> Any:
    """What `function(*arguments)` gives in the first of so many new processes, which the others help; for one process,
    in this one. The function must be found by its name, and arguments and result be picklable.

    Raises the UserError that the function raises, Interrupted if one of the processes is gone, KeyboardInterrupt if one
    was stopped, and RuntimeError for any other error, which that process has printed.
    """
    if processes == 1:
        return function(*arguments)
    try:
        with _launching(processes) as settings:
            outcome = elastic_launch(settings, _work)(function, arguments)[0]
    except ChildFailedError as error:
        status = _status(error)
        if status == STOPPED_STATUS:
            raise KeyboardInterrupt from None
        if status > BY_SIGNAL:
            raise Interrupted(
                f"One of {processes} processes that worked together is gone: it was killed. The same command resumes "
                "from the last backup."
            ) from None
        raise RuntimeError(f"{function.__name__} failed in one of {processes} processes") from None
    except SignalException:
        raise KeyboardInterrupt from None
    if isinstance(outcome, UserError):
        raise outcome
    return outcome


@contextmanager
def _launching(processes: int) -> Iterator[LaunchConfig]:
    """Settings of torch's launcher, and what its processes inherit; afterwards signals are handled as before."""
    for name in LOGGERS:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    share = str(max(usable_cores() // processes, 1))
    defaults = {"OMP_NUM_THREADS": share, NO_TRACES[0]: NO_TRACES[1]}
    inherited = {name: os.environ.get(name, value) for name, value in defaults.items()}
    handlers = {number: signal.getsignal(number) for number in HANDLED}
    try:
        with environment_set(inherited):
            yield LaunchConfig(
                min_nodes=1,
                max_nodes=1,
                nproc_per_node=processes,
                run_id=f"thaw-{os.getpid()}",
                rdzv_backend="c10d",
                rdzv_endpoint="localhost:0",
                max_restarts=0,
                **_time_to_save(),
            )
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _time_to_save() -> dict[str, Any]:
    """SECONDS_TO_SAVE for torch's launcher; that of 2.11 knows of no such time, and kills after 30 seconds."""
    known = {field.name for field in fields(LaunchConfig)}
    return {"shutdown_timeout": SECONDS_TO_SAVE} if "shutdown_timeout" in known else {}


def _work(function: Callable[..., Any], arguments: Sequence[Any]) -> Any:
    """The main function of each process of `call`: the first gives what the function does, or its UserError."""
    rank = own_rank()
    take_own_gpu(rank)
    keep_freed_memory()
    end_with_parent()  # the launcher, when it is killed, leaves its processes running
    # Ctrl-C comes by the launcher alone, which passes on what it receives: once more from the terminal, it would
    # interrupt the clean-up.
    os.setpgid(0, 0)
    if not rank.leads:
        status = help_leader(rank)  # what went wrong here, the leader has heard
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        if status == STOPPED_STATUS:  # a launcher that was stopped takes no result, and sends no other signal
            sys.exit(status)
        return None
    raise_on_signals()
    try:
        with led(rank):
            return function(*arguments)
    except UserError as error:
        return error
    except KeyboardInterrupt:
        sys.exit(STOPPED_STATUS)
    except Exception:
        traceback.print_exc()
        sys.exit(1)


def _status(error: ChildFailedError) -> int:
    """That of the leader, unless it was only stopped because another process had failed."""
    leader, (_, first) = error.failures.get(0), error.get_first_failure()
    failed = leader if leader is not None and leader.exitcode > 0 else first
    return failed.exitcode if failed.exitcode > 0 else BY_SIGNAL - failed.exitcode
