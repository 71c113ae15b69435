"""Which process is at work, whether another still is, and an end together with the one that started this."""

import ctypes
import signal
import socket
import sys
from functools import cache
from itertools import pairwise

import psutil

PR_SET_PDEATHSIG = 1  # from Linux's sys/prctl.h


@cache
def identity() -> str:
    """This process, as "machine:number:start", which no other process ever has."""
    process = psutil.Process()
    return f"{socket.gethostname()}:{process.pid}:{process.create_time():.2f}"


def is_alive(other: str) -> bool | None:
    """Whether the process with this identity still runs; None if it is one of another machine."""
    machine, number, started = other.rsplit(":", 2)
    if machine != socket.gethostname():
        return None
    try:
        return f"{psutil.Process(int(number)).create_time():.2f}" == started
    except psutil.NoSuchProcess:
        return False


def may_belong_to_one_alive(run_id: str, created_seconds: float) -> bool:
    """Whether a process on this machine may be at work for a run that `mlflow run` made at this Unix time: one that was
    handed the run, or an `mlflow run` that was there then and has not come to its own process yet."""
    commands: list[psutil.Process] = []
    handed: dict[int, str] = {}
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
            handed[process.pid] = environment["MLFLOW_RUN_ID"]
        elif _is_mlflow_run(process.info["cmdline"] or []) and process.info["create_time"] <= created_seconds:
            commands.append(process)
    return any(not handed.keys() & _descendants(command) for command in commands)


def end_with_parent() -> None:
    """Be sent SIGTERM when the process that started this one ends, however it ends (on Linux; elsewhere nothing)."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def end_mlflow_run() -> None:
    """End the `mlflow run` that started this process.

    It would go on to mark the run FAILED, whatever status its process gave it: MLflow 3.17 compares the status, a text,
    with numbers, and takes every run for one that is still running.
    """
    for process in psutil.Process().parents()[:2]:  # there may be a shell in between
        if _is_mlflow_run(process.cmdline()):
            process.terminate()


def _is_mlflow_run(words: list[str]) -> bool:
    """Whether a command line is `mlflow run …`, started as a script or as a module."""
    names = [word.rsplit("/", 1)[-1] for word in words]
    return any(pair == ("mlflow", "run") for pair in pairwise(names))


def _descendants(process: psutil.Process) -> set[int]:
    try:
        return {child.pid for child in process.children(recursive=True)}
    except psutil.NoSuchProcess:
        return set()
