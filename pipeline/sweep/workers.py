"""Processes that run trials side by side, each with a GPU, or a share of the cores, of its own."""

import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import TracebackType
from typing import Any

from pipeline.console import warn
from pipeline.errors import UserError
from pipeline.interrupts import raise_on_signals
from pipeline.processes import end_with_parent

SECONDS_TO_STOP = 60.0
# So many may end badly, one after the other, before it is told; one that is killed now and then is replaced.
MOST_CRASHES = 4
HAS_GIVEN_UP = 3


class Workers:
    """Up to `count` processes that run `target(place, *arguments)`, the place counted from 0; what they print
    goes to files in `folder`.

    `target` says with False that it gives up, since all that it tried failed.
    """

    def __init__(self, count: int, target: Callable[..., bool], arguments: Sequence[Any], folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._target = target
        self._arguments = tuple(arguments)
        self._folder = folder
        self._places: list[BaseProcess | None] = [None] * count
        self._crashes = 0

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Stop them all, so that each keeps what it has in hand."""
        alive = [process for process in self._places if process is not None and process.is_alive()]
        for process in alive:
            process.terminate()
        until = time.monotonic() + SECONDS_TO_STOP
        for process in alive:
            process.join(max(0.0, until - time.monotonic()))
            if process.is_alive():
                process.kill()

    def fill(self) -> None:
        """Start a process in every place that is free."""
        for place, process in enumerate(self._places):
            if process is None:
                self._places[place] = self._start(place)

    def clear_ended(self) -> bool:
        """Free the places of those that have ended; False if one gave up. UserError if all of them end badly."""
        goes_on = True
        for place, process in enumerate(self._places):
            if process is not None and process.exitcode is not None:
                self._places[place] = None
                goes_on = goes_on and process.exitcode != HAS_GIVEN_UP
                self._crashes = self._crashes + 1 if process.exitcode not in (0, HAS_GIVEN_UP) else 0
                if self._crashes >= MOST_CRASHES:
                    raise UserError(f"The last {self._crashes} workers ended badly; {self.log(place)} says why.")
        return goes_on

    def log(self, place: int) -> Path:
        """Where the worker of a place writes what it would print."""
        return self._folder / f"worker-{place + 1}.log"

    def _start(self, place: int) -> BaseProcess:
        # A fresh interpreter: one that is forked could not use a GPU, nor the threads of its parent's libraries.
        process = multiprocessing.get_context("spawn").Process(
            target=_work,
            args=(
                environment_of(place, len(self._places)),
                self.log(place),
                self._target,
                (place, *self._arguments),
                os.getpid(),
            ),
            name=f"worker {place + 1}",
        )
        process.start()
        return process


def environment_of(place: int, count: int) -> dict[str, str]:
    """What a worker's libraries read when they are loaded: its GPU, where there is one, and its share of the cores."""
    import torch

    threads = max(1, len(os.sched_getaffinity(0)) // count) if sys.platform == "linux" else 1
    environment = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads))}
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if os.environ.get("CUDA_VISIBLE_DEVICES") else []
    gpus = gpus or [str(number) for number in range(torch.cuda.device_count())]
    if gpus:
        environment["CUDA_VISIBLE_DEVICES"] = gpus[place % len(gpus)]
    return environment


def _work(
    environment: Mapping[str, str], log: Path, target: Callable[..., bool], arguments: Sequence[Any], parent: int
) -> None:
    """What a process does."""
    os.environ.update(environment)
    with log.open("a", encoding="utf-8") as file:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(file.fileno(), stream.fileno())
    raise_on_signals()
    end_with_parent()
    if os.getppid() != parent:  # it ended before it could be watched
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
