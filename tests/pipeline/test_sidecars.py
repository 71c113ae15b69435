import os
import threading
import time

import pytest

from pipeline.sidecars import BUILDING, DISCARDED, beside, half_done, last_used, new_name, note_use, used_by


@pytest.fixture
def place(tmp_path):
    (tmp_path / "0abc").mkdir()
    return tmp_path / "0abc"


def test_the_runs_that_used_a_store_are_remembered_once_each_and_in_order(place):
    assert used_by(place) == []
    for run in ("first", "second", "first"):
        note_use(place, run)
    assert used_by(place) == ["first", "second"]


def test_runs_that_use_a_store_at_the_same_time_are_all_remembered(place):
    runs = [f"run{index}" for index in range(40)]
    threads = [threading.Thread(target=note_use, args=(place, run)) for run in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(used_by(place)) == sorted(runs)


def test_a_store_was_last_used_when_a_run_said_so(place):
    os.utime(place, (1000, 1000))
    assert last_used(place) == 1000
    note_use(place, "run")
    os.utime(beside(place, ".uses"), (2000, 2000))
    assert last_used(place) == 2000
    note_use(place, "run")
    assert last_used(place) == pytest.approx(time.time(), abs=10)


def test_what_was_left_half_done_is_that_store_s_own(place):
    others = [place.with_name(".0abcd.building-1"), place.with_name(".0abc.partial"), place.with_name(".0abc.uses.1.2")]
    own = [new_name(place, BUILDING), new_name(place, DISCARDED), new_name(place, BUILDING)]
    for folder in (*others, *own):
        folder.mkdir()
    assert sorted(half_done(place)) == sorted(own)
