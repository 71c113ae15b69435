import threading
import time

import pytest

from pipeline.system import parallel
from pipeline.system.parallel import in_parallel


@pytest.fixture(params=[1, 3, 100])
def most_waiting(request, monkeypatch):
    """How many results may wait, from one at a time to more than there are items."""
    monkeypatch.setattr(parallel, "MOST_WAITING", request.param)
    return request.param


def test_every_item_is_done_once_and_results_come_in_the_order_of_items(most_waiting):
    done = []

    def work(item):
        time.sleep(0.01 * (item % 3 == 0))  # so that later items are ready before earlier ones
        done.append(item)
        return item * item

    assert list(in_parallel(work, range(10))) == [item * item for item in range(10)]
    assert sorted(done) == list(range(10))


def test_no_items_are_no_work():
    assert list(in_parallel(pytest.fail, [])) == []


def test_items_are_worked_on_side_by_side(monkeypatch):
    monkeypatch.setattr(parallel, "own_cores", lambda: 2)
    both_there = threading.Barrier(2)
    assert sorted(in_parallel(lambda item: both_there.wait(timeout=10), "ab")) == [0, 1]


def test_nothing_is_started_before_a_result_is_wanted_and_then_no_more_than_may_wait(monkeypatch):
    monkeypatch.setattr(parallel, "MOST_WAITING", 3)
    started = []
    results = in_parallel(started.append, range(10))
    time.sleep(0.05)
    assert started == []
    for taken, _ in enumerate(results):
        time.sleep(0.02)  # long enough for all that was handed to the threads
        assert len(started) <= taken + 3
    assert len(started) == 10


def test_an_error_comes_up_after_the_results_before_it_and_ends_the_work(most_waiting):
    started = []

    def work(item):
        started.append(item)
        if item == 4:
            raise ValueError("item 4 is bad")
        return item

    results = in_parallel(work, range(1000))
    assert [next(results) for _ in range(4)] == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="item 4 is bad"):
        next(results)
    assert max(started) < 4 + most_waiting
    assert list(results) == []
