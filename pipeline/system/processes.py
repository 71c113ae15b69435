"""Identity and liveness of processes, ending together with the parent, and signals deferred until a step is saved."""

import ctypes
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from itertools import pairwise
from types import FrameType
from typing import NoReturn

import psutil

_PR_SET_PDEATHSIG = 1  # from Linux's sys/prctl.h
# Written to without a buffer, since a signal may arrive while a buffer is being written.
_STANDARD_ERROR = 2
_explanations: list[Callable[[], str]] = []


@cache
def identity() -> str:
    """This process, as "machine:number:start", which no other process ever has."""
    process = psutil.Process()
    return f"{socket.gethostname()}:{process.pid}:{process.create_time():.2f}"


def is_alive(other: str) -> bool | None:
    """Whether the process with this identity is running; None if it is on another machine."""
    machine, number, started = other.rsplit(":", 2)
    if machine != socket.gethostname():
        return None
    try:
        return f"{psutil.Process(int(number)).create_time():.2f}" == started
    except psutil.NoSuchProcess:
        return False


def may_belong_to_one_alive(run_id: str, created_seconds: float) -> bool:
    """Whether a process on this machine may be working for a run that `mlflow run` created at this Unix time: one that
    was given the run's id, or an `mlflow run` of that time that has not started its own process yet."""
    commands: list[psutil.Process] = []
    run_ids: dict[int, str] = {}
    for process in psutil.process_iter(["cmdline", "create_time"]):
        try:
            environment = process.environ()
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
        except psutil.AccessDenied:
            environment = {}
        if environment.get("MLFLOW_RUN_ID") == run_id:
            return True
        if "MLFLOW_RUN_ID" in environment:
            run_ids[process.pid] = environment["MLFLOW_RUN_ID"]
        elif _is_mlflow_run(process.info["cmdline"] or []) and process.info["create_time"] <= created_seconds:
            commands.append(process)
    return any(not run_ids.keys() & _descendants(command) for command in commands)


@contextmanager
def environment_set(variables: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for the block; a process that starts in it inherits them."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def end_with_parent() -> None:
    """Have SIGTERM sent to this process when its parent ends, even if the parent is killed (on Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def end_mlflow_run() -> None:
    """End the `mlflow run` that started this process.

    Otherwise it would mark the run FAILED whatever status the process gave it: MLflow 3.17 compares the status, a
    text, with numbers, and takes every run for one that is still running.
    """
    for process in psutil.Process().parents()[:3]:  # there may be a shell in between, and a launcher
        if _is_mlflow_run(process.cmdline()):
            process.terminate()


def explain_stops(explain: Callable[[], str]) -> None:
    """From now on `explain` says why this process was stopped, if it knows."""
    _explanations.append(explain)


def stop_reason() -> str:
    """Why this process was stopped by a signal, in a sentence; empty if that was the user's wish."""
    return next(filter(None, (explain() for explain in _explanations)), "")


def raise_on_signals() -> None:
    """From now on SIGTERM raises KeyboardInterrupt, as Ctrl-C does."""
    signal.signal(signal.SIGTERM, _raise_interrupt)
    signal.signal(signal.SIGINT, _raise_interrupt)


@contextmanager
def defer_signals() -> Iterator[Callable[[], bool]]:
    """Defers Ctrl-C and SIGTERM to the end of the block; gives a function that says whether one has arrived.

    A second Ctrl-C acts at once. At the end of the block a deferred signal raises KeyboardInterrupt. Signals reach the
    main thread only: in any other thread nothing is deferred.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        # MLflow's command sends a SIGTERM after the Ctrl-C that both have received.
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not received:
            os.write(_STANDARD_ERROR, b"Stopping as soon as this step is saved; Ctrl-C once more stops at once.\n")
        received.append(number)

    before = {int(number): signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if received:
        handler = before[received[0]]
        if callable(handler):
            handler(received[0], None)
        raise KeyboardInterrupt


def _raise_interrupt(signal_number: int, frame: FrameType | None) -> NoReturn:
    # MLflow's command sends a SIGTERM after the Ctrl-C that both have received; it must not interrupt the clean-up.
    # Python complains of one that has arrived already, if it finds SIG_IGN.
    signal.signal(signal.SIGTERM, _pass_over)
    raise KeyboardInterrupt


def _pass_over(signal_number: int, frame: FrameType | None) -> None:
    pass


def _is_mlflow_run(words: list[str]) -> bool:
    """Whether a command line is `mlflow run …`, started as a script or as a module."""
    names = [word.rsplit("/", 1)[-1] for word in words]
    return any(pair == ("mlflow", "run") for pair in pairwise(names))


def _descendants(process: psutil.Process) -> set[int]:
    try:
        return {child.pid for child in process.children(recursive=True)}
    except psutil.NoSuchProcess:
        return set()
