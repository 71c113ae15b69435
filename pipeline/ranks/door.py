"""Where a command meets the other processes of itself: how many there are to be, who leads, who helps. Loads nothing
heavy until it is known that there are several."""

import importlib
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NoReturn

from pipeline.ranks.environment import Rank
from pipeline.system.console import warn
from pipeline.system.errors import UserError
from pipeline.system.memory import keep_freed_memory
from pipeline.system.processes import end_with_parent

OPTION = "processes"
# torch prints what its own code was doing where another process goes away, which is told in a sentence.
NO_TRACES = ("TORCH_CPP_LOG_LEVEL", "ERROR")
DEFAULT = "1"
# Commands for one process, and why.
ALONE = {
    "sweep": "its trials have processes of their own (sweep.workers, sweep.gpus_per_trial)",
    "sweep_head": "it takes seconds",
    "compare": "it computes nothing",
    "try": "it answers for one picture at a time",
}


def asked_processes(name: str, words: Sequence[str], rank: Rank) -> int:
    """How many processes the command `name` is to have, by its option `--processes N` or `--processes=N` among the
    `words`, or by torchrun; UserError for what is no number, for both, and for commands that are for one alone."""
    given = DEFAULT
    for word, following in zip(words, [*words[1:], ""], strict=False):
        if word == f"--{OPTION}":
            given = following
        elif word.startswith(f"--{OPTION}="):
            given = word.partition("=")[2]
    if not given.isdecimal() or int(given) == 0:
        raise UserError(f"{OPTION} is {given!r}; give a whole number from 1 up.")
    processes = int(given)
    if rank.processes > 1 and processes not in (1, rank.processes):
        raise UserError(f"{OPTION} is {processes}, but torchrun has started {rank.processes}; leave {OPTION} out.")
    processes = max(processes, rank.processes)
    if processes > 1 and name in ALONE:
        raise UserError(f"{name} is done by one process, since {ALONE[name]}; run it without torchrun and {OPTION}.")
    return processes


def launch(processes: int, words: Sequence[str]) -> None:
    """Run `python -m stages WORDS` in so many processes, and exit as the one that leads does if that failed."""
    status: int = importlib.import_module("pipeline.ranks.launch").launch(processes, ["-m", "stages", *words])
    if status:
        sys.exit(status)


def leading(rank: Rank) -> AbstractContextManager[None]:
    """A block in which this process leads the others, if there are any."""
    if rank.processes == 1:
        return nullcontext()
    end_with_parent()  # the launcher, when it is killed, leaves its processes running
    os.environ.setdefault(*NO_TRACES)
    led: Any = importlib.import_module("pipeline.ranks.team").led
    block: AbstractContextManager[None] = led(rank)
    return block


def help_leader(rank: Rank, words: Sequence[str]) -> NoReturn:
    """Help the process that leads, and exit when it has ended."""
    if {"--help", "-h"} & set(words):
        sys.exit(0)
    keep_freed_memory()
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # which ends it without a word, until it helps
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
    os.environ.setdefault(*NO_TRACES)
    try:
        status: int = importlib.import_module("pipeline.ranks.team").help_leader(rank)
    except UserError as error:
        warn(str(error))
        status = 2
    sys.exit(status)
