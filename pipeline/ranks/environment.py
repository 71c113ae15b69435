"""Which one of several processes this is, by the variables that torchrun sets. Imports nothing heavy."""

import os
from collections.abc import MutableMapping
from dataclasses import dataclass

_HIDES_ALL = ("", "-1")


@dataclass(frozen=True)
class Rank:
    """Process `number` of `processes`, counted from 0; on its own machine, `local_number` of `local_processes`."""

    number: int = 0
    processes: int = 1
    local_number: int = 0
    local_processes: int = 1

    @property
    def leads(self) -> bool:
        """Whether this is the process that runs the command, and not one that helps it."""
        return self.number == 0


def own_rank() -> Rank:
    """This process among those that torchrun started; the only one where it was started otherwise."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    if not all(os.environ.get(name, "").isdecimal() for name in names) or "MASTER_ADDR" not in os.environ:
        return Rank()
    return Rank(*(int(os.environ[name]) for name in names))


def take_own_gpu(rank: Rank, environment: MutableMapping[str, str] = os.environ) -> None:
    """Let this process see one GPU alone, that of its local number, before torch is loaded: threads start on the first
    GPU that they see, whatever another thread chose. Where there are fewer GPUs it sees none."""
    if rank.processes == 1:
        return
    given = environment.get("CUDA_VISIBLE_DEVICES")
    if given is None:
        environment["CUDA_VISIBLE_DEVICES"] = str(rank.local_number)
    elif given.strip() not in _HIDES_ALL:
        visible = [one.strip() for one in given.split(",")]
        environment["CUDA_VISIBLE_DEVICES"] = visible[rank.local_number] if rank.local_number < len(visible) else "-1"
