"""Several processes of the project that work together, as torchrun starts them, but forked (see forked_processes)."""

import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from pipeline.ranks.environment import own_rank
from pipeline.ranks.team import help_leader, led
from pipeline.system.processes import raise_on_signals
from tests.forked_processes import Forked, run_module
from tests.stages.watching import undrawn

Environment = Mapping[str, str]


def environments(common: Environment, processes: int, own: Sequence[Environment] = ()) -> list[dict[str, str]]:
    """What torchrun tells each process, beside what they have in common and what is each one's `own`."""
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    world = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    world |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    return [
        {**common, **world, "RANK": str(number), "LOCAL_RANK": str(number), **(own[number] if own else {})}
        for number in range(processes)
    ]


def start_command(words: Sequence[str], given: Sequence[dict[str, str]]) -> list[Forked]:
    """`python -m stages WORDS` in several processes, which have these environments; no figure is rendered."""
    return [Forked(_command, list(words), environment=environment) for environment in given]


def start_led(lead: Callable[..., None], arguments: Sequence[Any], given: Sequence[dict[str, str]]) -> list[Forked]:
    """Processes of which the first does `lead(*arguments)`, and the others help it."""
    return [Forked(_work, lead, tuple(arguments), environment=environment) for environment in given]


def run_led(lead: Callable[..., None], *arguments: Any, processes: int = 2, cache: Path) -> None:
    """The same, until all have ended without an error."""
    started = start_led(lead, arguments, environments({"THAW_CACHE": str(cache)}, processes))
    printed = [one.communicate(100)[0] for one in started]
    assert [one.returncode for one in started] == [0] * processes, "\n".join(printed)


def _command(words: list[str]) -> None:
    with undrawn():
        run_module("stages", words)


def _work(lead: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    rank = own_rank()
    if rank.number:
        sys.exit(help_leader(rank))
    raise_on_signals()
    with led(rank):
        lead(*arguments)
