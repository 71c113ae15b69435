"""All processes of one start have the same name for it, whatever an earlier start has left in the store."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch.distributed as dist

from pipeline.ranks.attempt import attempt_name
from pipeline.ranks.environment import Rank
from pipeline.system.errors import Interrupted


def start(store: dist.Store, processes: int = 3) -> set[str]:
    """The names that so many processes find, each a thread here."""
    with ThreadPoolExecutor(processes) as pool:
        ranks = [Rank(number, processes, number, processes) for number in range(processes)]
        return set(pool.map(lambda rank: attempt_name(store, rank, 30), ranks))


def test_a_start_has_one_name_and_the_next_one_on_the_same_store_has_another():
    store = dist.HashStore()
    names = [start(store) for _ in range(3)]
    assert [len(one) for one in names] == [1, 1, 1]
    assert len(set.union(*names)) == 3


def test_a_process_that_ended_before_the_others_came_is_not_waited_for():
    store = dist.HashStore()
    store.set("hello/1", "of one that was killed")
    assert len(start(store, 2)) == 1


def test_the_leader_waits_for_helpers_for_so_long():
    with pytest.raises(Interrupted, match=r"^Of 3 processes 2 have not started within 0\.05 s; start them all\.$"):
        attempt_name(dist.HashStore(), Rank(0, 3, 0, 3), 0.05)
