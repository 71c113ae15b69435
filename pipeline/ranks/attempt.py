"""Which start of all processes this is. torchrun may start them again with the same store, in which the processes that
were there before have left what they told one another: that one was lost, or asked to stop."""

import time
from datetime import timedelta
from typing import Any
from uuid import uuid4

from pipeline.ranks.environment import Rank
from pipeline.system.errors import Interrupted

SECONDS_BETWEEN_LOOKS = 0.01
HELLO, WELCOME = "hello", "welcome"


def attempt_name(store: Any, rank: Rank, seconds: float) -> str:
    """A name that this start of all processes has alone, the same in each of them, which wait for one another for so
    long. torchrun's own count of restarts may differ from machine to machine."""
    return _welcomed(store, rank, seconds) if rank.number else _welcome_all(store, rank, seconds)


def _welcome_all(store: Any, rank: Rank, seconds: float) -> str:
    """The leader's part: answer all that say hello, also those that are no more, until every process has heard."""
    name, until = uuid4().hex, time.monotonic() + seconds
    missing = set(range(1, rank.processes))
    answered: set[str] = set()
    while missing:
        for number in sorted(missing):
            if store.check([f"{HELLO}/{number}"]) and (one := store.get(f"{HELLO}/{number}").decode()) not in answered:
                store.set(f"{WELCOME}/{one}", name)
                answered.add(one)
        missing = {number for number in missing if not store.check([f"{name}/{number}"])}
        if missing and time.monotonic() > until:
            raise Interrupted(
                f"Of {rank.processes} processes {len(missing)} have not started within {seconds:g} s; start them all."
            )
        time.sleep(SECONDS_BETWEEN_LOOKS)
    return name


def _welcomed(store: Any, rank: Rank, seconds: float) -> str:
    """A helper's part."""
    own = uuid4().hex
    store.set(f"{HELLO}/{rank.number}", own)
    store.wait([f"{WELCOME}/{own}"], timedelta(seconds=seconds))
    name: str = store.get(f"{WELCOME}/{own}").decode()
    store.set(f"{name}/{rank.number}", "")
    return name
