"""Two processes, one for each side, which work in turns: each has the settings and libraries that its users have."""

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from types import TracebackType
from typing import Any, TypeAlias

import torch

from benchmarks.side_by_side.work import Work

# Prepares a task, and gives the part of it that is measured; that gives what it found.
Task: TypeAlias = Callable[[Work], Callable[[], dict[str, float]]]
MARK = "measured: "


class Side:
    """A process that runs the module `name`, which calls `serve`; to be used as a context."""

    def __init__(self, name: str, environment: Mapping[str, str]) -> None:
        command = [sys.executable, "-W", "ignore", "-m", name]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | environment
        )
        self._name = name

    def __enter__(self) -> "Side":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def measure(self, task: str, work: Work, **more: float) -> dict[str, float]:
        """Have the process do a task: its wall and CPU `seconds`, and what it found."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"task": task, "work": asdict(work), "more": more}) + "\n")
        self._process.stdin.flush()
        for line in self._process.stdout:
            if line.startswith(MARK):
                found: dict[str, float] = json.loads(line.removeprefix(MARK))
                return found
        raise RuntimeError(f"{self._name} ended while it did {task}")


def serve(tasks: Mapping[str, Callable[..., Callable[[], dict[str, float]]]]) -> None:
    """Do what is asked for on standard input, until it ends."""
    for line in sys.stdin:
        asked: dict[str, Any] = json.loads(line)
        act = tasks[asked["task"]](Work(**asked["work"]), **asked["more"])
        wait_for_gpu()
        cpu, began = cpu_seconds(), time.perf_counter()
        found = act()
        wait_for_gpu()
        found |= {"wall": time.perf_counter() - began, "cpu": cpu_seconds() - cpu}
        print(f"\n{MARK}{json.dumps(found)}", flush=True)


def wait_for_gpu() -> None:
    """Until a GPU, if there is one, has done all that it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def cpu_seconds() -> float:
    """User and system time of this process and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)
