import threading
import time

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.prefetch import fetch_ahead
from pipeline.splits import Rows

CPU = torch.device("cpu")
PARTS = [np.arange(start, start + 3) for start in range(0, 30, 3)]


def slowest_first(rows: Rows) -> Tensor:
    time.sleep((30 - int(rows[0])) / 3000)
    return torch.from_numpy(rows)


@pytest.mark.parametrize("workers", [0, 1, 2, 5])
def test_parts_come_in_their_order_however_many_fetch_them(workers: int) -> None:
    fetched = list(fetch_ahead(slowest_first, PARTS, CPU, workers))
    assert [part.tolist() for part in fetched] == [part.tolist() for part in PARTS]


def test_the_next_parts_are_fetched_while_one_is_worked_on() -> None:
    begun: list[int] = []
    third = threading.Event()

    def fetch(rows: Rows) -> Tensor:
        begun.append(int(rows[0]))
        if len(begun) == 3:
            third.set()
        return torch.from_numpy(rows)

    fetched = fetch_ahead(fetch, PARTS, CPU, 2)
    next(fetched)
    assert third.wait(5)
    assert len(begun) <= 4  # and no further ahead than that
    fetched.close()


def test_without_workers_nothing_is_fetched_before_it_is_asked_for() -> None:
    begun: list[int] = []

    def fetch(rows: Rows) -> Tensor:
        begun.append(int(rows[0]))
        return torch.from_numpy(rows)

    next(fetch_ahead(fetch, PARTS, CPU, 0))
    assert begun == [0]


@pytest.mark.parametrize("workers", [0, 2])
def test_what_goes_wrong_in_a_thread_comes_up_where_the_part_is_wanted(workers: int) -> None:
    def fetch(rows: Rows) -> Tensor:
        if rows[0] == 9:
            raise RuntimeError("no such row")
        return torch.from_numpy(rows)

    fetched = fetch_ahead(fetch, PARTS, CPU, workers)
    assert [int(next(fetched)[0]) for _ in range(3)] == [0, 3, 6]
    with pytest.raises(RuntimeError, match="no such row"):
        next(fetched)


def test_whoever_stops_early_leaves_no_thread_behind() -> None:
    before = threading.active_count()
    fetched = fetch_ahead(slowest_first, PARTS, CPU, 3)
    next(fetched)
    fetched.close()
    assert threading.active_count() == before
