"""Processes of the project that are forked from one which has loaded torch and mlflow already.

They do what `python -m stages …` or `python -c PROGRAM` does, in a process of their own; what is left out is starting
Python and loading the libraries, which takes longer than all else that a command does on a few pictures.
"""

import io
import multiprocessing
import os
import runpy
import sys
from collections.abc import Callable, Sequence
from multiprocessing import forkserver
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

PROJECT = Path(__file__).parents[1]
LOADED = [
    "stages.main", "stages.work.precompute", "stages.work.lr_find", "stages.work.train_head", "stages.work.evaluate",
    "pipeline.runs.work.new_run", "pipeline.runs.plan.estimate", "pipeline.models.network_check",
    "stages.tools.predict", "stages.tools.compare", "stages.tools.try_model", "PIL.PngImagePlugin",
    "PIL.JpegImagePlugin", "mlflow.store.tracking.sqlalchemy_store", "mlflow.store.model_registry.sqlalchemy_store",
    "mlflow.store.db.utils", "sqlalchemy.dialects.sqlite", "git", "tests.source_read",
]  # fmt: skip


class Forked:
    """A process with the parts of a `subprocess.Popen` that tests use; standard error goes to `stdout`, too."""

    def __init__(self, work: Callable[..., None], *arguments: Any, environment: dict[str, str] | None = None) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(PROJECT)  # where the process that is forked finds what it loads
            multiprocessing.set_forkserver_preload(LOADED)
            forkserver.ensure_running()
        context = multiprocessing.get_context("forkserver")
        with TemporaryDirectory() as folder:
            pipe = Path(folder) / "output"
            os.mkfifo(pipe)
            surroundings = dict(os.environ) if environment is None else environment
            self._process = context.Process(target=_begin, args=(pipe, surroundings, work, arguments))
            self._process.start()
            self.stdout = pipe.open(encoding="utf-8")
        assert self._process.pid is not None
        self.pid = self._process.pid

    def kill(self) -> None:
        self._process.kill()

    def wait(self, timeout: float | None = None) -> int | None:
        """The exit code; None if it still runs after `timeout` seconds."""
        self._process.join(timeout)
        return self._process.exitcode

    def communicate(self, timeout: float = 600) -> tuple[str, None]:
        """All further output, once it has ended."""
        output = self.stdout.read()
        assert self.wait(timeout) is not None
        return output, None

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode


def fork_program(program: str, *arguments: object) -> Forked:
    """As `python -c PROGRAM ARGUMENTS` in the project's folder."""
    return Forked(_run_program, program, [str(argument) for argument in arguments])


def fork_command(module: str, arguments: Sequence[str], environment: dict[str, str]) -> Forked:
    """As `python -m MODULE ARGUMENTS` in the project's folder, with this environment."""
    return Forked(run_module, module, list(arguments), environment=environment)


def _begin(pipe: Path, environment: dict[str, str], work: Callable[..., None], arguments: Sequence[Any]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(PROJECT)
    descriptor = os.open(pipe, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    for name in ("stdout", "stderr"):
        setattr(sys, name, io.TextIOWrapper(io.FileIO(1, "w", closefd=False), "utf-8", write_through=True))
    work(*arguments)


def _run_program(program: str, arguments: list[str]) -> None:
    sys.argv[1:] = arguments
    exec(compile(program, "<program>", "exec"), {"__name__": "__main__"})


def run_module(module: str, arguments: list[str]) -> None:
    """As `python -m MODULE ARGUMENTS`, in this process."""
    sys.argv[1:] = arguments
    runpy.run_module(module, run_name="__main__", alter_sys=True)
