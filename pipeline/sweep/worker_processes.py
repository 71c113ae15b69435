"""Worker processes: started with a GPU and a share of the cores each, replaced when they end, stopped together.

Loads nothing heavy, so that a process is started within a fraction of a second.
"""

import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import TracebackType
from typing import Any

from pipeline.cache.location import make_folder
from pipeline.system.console import warn
from pipeline.system.errors import UserError
from pipeline.system.machine import usable_cores
from pipeline.system.memory import keep_freed_memory
from pipeline.system.processes import end_with_parent, environment_set, raise_on_signals

SECONDS_TO_STOP = 60.0
# A worker that is killed now and then is replaced; so many that crash one after the other end the sweep.
MOST_CRASHES = 4
HAS_GIVEN_UP = 3  # the exit code of a worker whose last trials all failed


class Workers:
    """Up to `count` processes that run `target(index, *arguments)`, the index counted from 0; what they print goes to
    files in `folder`. Each gets `gpus_each` of the `gpus` of this machine.

    `target` returns False to give up, since all that it tried failed.
    """

    def __init__(
        self,
        count: int,
        target: Callable[..., bool],
        arguments: Sequence[Any],
        folder: Path,
        gpus: int = 0,
        gpus_each: int = 1,
    ) -> None:
        make_folder(folder)
        self._gpus, self._gpus_each = gpus, gpus_each
        self._target = target
        self._arguments = tuple(arguments)
        self._folder = folder
        self._processes: list[BaseProcess | None] = [None] * count
        self._crashes = 0

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Stop them all, with time for each to save its trial."""
        alive = [process for process in self._processes if process is not None and process.is_alive()]
        for process in alive:
            process.terminate()
        until = time.monotonic() + SECONDS_TO_STOP
        for process in alive:
            process.join(max(0.0, until - time.monotonic()))
            if process.is_alive():
                process.kill()

    def start_missing(self) -> None:
        """Start a process for each index that has none."""
        for index, process in enumerate(self._processes):
            if process is None:
                self._processes[index] = self._start(index)

    def clear_ended(self) -> bool:
        """Forget the processes that have ended; False if one gave up. UserError if they crash one after the other."""
        goes_on = True
        for index, process in enumerate(self._processes):
            if process is not None and process.exitcode is not None:
                self._processes[index] = None
                goes_on = goes_on and process.exitcode != HAS_GIVEN_UP
                self._crashes = self._crashes + 1 if process.exitcode not in (0, HAS_GIVEN_UP) else 0
                if self._crashes >= MOST_CRASHES:
                    raise UserError(f"The last {self._crashes} workers crashed; {self.log(index)} says why.")
        return goes_on

    def log(self, index: int) -> Path:
        """The file with what the worker of this index prints."""
        return self._folder / f"worker-{index + 1}.log"

    def _start(self, index: int) -> BaseProcess:
        # A fresh interpreter: a forked one could use neither a GPU nor the threads of its parent's libraries.
        process = multiprocessing.get_context("spawn").Process(
            target=_run_process,
            args=(self.log(index), self._target, (index, *self._arguments), os.getpid()),
            name=f"worker {index + 1}",
        )
        # The child loads torch before its first statement here, to unpickle what it is to do.
        with environment_set(environment_of(index, len(self._processes), self._gpus, self._gpus_each)):
            process.start()
        return process


def environment_of(index: int, count: int, gpus: int, gpus_each: int = 1) -> dict[str, str]:
    """What a worker's libraries read when they are loaded: `gpus_each` of the `gpus`, if there are any, and the share
    of the cores that each of its processes has."""
    threads = max(1, usable_cores() // (count * gpus_each))
    environment = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads))}
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = given.split(",") if given else [str(number) for number in range(gpus)]
    if names:
        chosen = range(index * gpus_each, (index + 1) * gpus_each)
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(names[number % len(names)] for number in chosen)
    return environment


def _run_process(log: Path, target: Callable[..., bool], arguments: Sequence[Any], parent: int) -> None:
    """The main function of a worker process."""
    with log.open("a", encoding="utf-8") as file:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(file.fileno(), stream.fileno())
    raise_on_signals()
    keep_freed_memory()
    end_with_parent()
    if os.getppid() != parent:  # the parent ended before it could be watched
        sys.exit(1)
    try:
        sys.exit(0 if target(*arguments) else HAS_GIVEN_UP)
    except KeyboardInterrupt:
        sys.exit(130)
    except UserError as error:
        warn(str(error))
        sys.exit(2)
    except Exception:
        traceback.print_exc()
        sys.exit(1)
