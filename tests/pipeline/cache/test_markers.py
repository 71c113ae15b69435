import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pipeline.cache.markers import (
    BUILDING,
    DISCARDED,
    FOLDER,
    beside,
    half_done,
    last_used,
    leave,
    lock_if_free,
    new_name,
    note_open,
    note_use,
    opened_stores,
    remove_dead_markers,
    used_by,
)

PROJECT = Path(__file__).resolve().parents[3]

OPENER = """
import os, signal, sys, time
from pathlib import Path
from pipeline.cache.markers import note_open

signal.signal(signal.SIGINT, signal.default_int_handler)  # which is ignored where tests run in the background
note_open(Path(sys.argv[1]), sys.argv[2])
print(os.getpid(), flush=True)
time.sleep(float(sys.argv[3]))
"""


def opener(cache, store, seconds):
    """A process that has opened a store, and runs for `seconds` more."""
    command = [sys.executable, "-c", OPENER, str(cache), store, str(seconds)]
    process = subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True)
    assert int(process.stdout.readline()) == process.pid
    return process


def end(process, by):
    process.send_signal(by)
    process.communicate(timeout=600)


def markers(cache):
    return [path.name for path in (cache / FOLDER).iterdir()]


def test_nobody_uses_a_cache_that_is_not_there(cache):
    assert opened_stores(cache) == {}
    remove_dead_markers(cache)
    assert not cache.exists()


def test_what_living_processes_have_opened_is_known(cache):
    note_open(cache, "kind/1")
    note_open(cache, "kind/2")
    note_open(cache, "kind/1")
    other = opener(cache, "kind/3", 60)
    assert opened_stores(cache) == {"kind/1": os.getpid(), "kind/2": os.getpid(), "kind/3": other.pid}
    assert len(markers(cache)) == 2
    end(other, signal.SIGKILL)
    assert sorted(opened_stores(cache)) == ["kind/1", "kind/2"]


@pytest.mark.parametrize("seconds", [0, 60])
def test_a_process_that_ends_in_order_leaves_no_marker(cache, seconds):
    process = opener(cache, "kind/1", seconds)
    if seconds:
        end(process, signal.SIGINT)
    else:
        process.wait(timeout=600)
    assert markers(cache) == []


def test_the_marker_of_a_killed_process_is_removed_where_it_is_met(cache):
    for meet in (opened_stores, remove_dead_markers, lambda folder: note_open(folder, "kind/2")):
        end(opener(cache, "kind/1", 60), signal.SIGKILL)
        assert len(markers(cache)) == 1
        meet(cache)
        assert "kind/1" not in opened_stores(cache)
        assert len(markers(cache)) == len(opened_stores(cache))


def test_markers_of_living_processes_stay(cache):
    note_open(cache, "kind/1")
    other = opener(cache, "kind/2", 60)
    remove_dead_markers(cache)
    assert len(markers(cache)) == 2
    end(other, signal.SIGKILL)
    remove_dead_markers(cache)
    assert list(opened_stores(cache)) == ["kind/1"]


def test_a_process_that_left_can_come_back(cache):
    note_open(cache, "kind/1")
    leave()
    assert markers(cache) == []
    assert opened_stores(cache) == {}
    note_open(cache, "kind/2")
    assert opened_stores(cache) == {"kind/2": os.getpid()}


def test_an_empty_marker_is_removed(cache):
    note_open(cache, "kind/1")
    (cache / FOLDER / "host-1-1700000000").touch()
    assert opened_stores(cache) == {"kind/1": os.getpid()}
    assert len(markers(cache)) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="takes fork")
def test_a_forked_child_that_lives_on_does_not_keep_its_parent_alive(cache):
    program = f"""
import os, sys, time
from pathlib import Path
from pipeline.cache.markers import note_open
note_open(Path({str(cache)!r}), "kind/1")
if not os.fork():
    print(os.getpid(), flush=True)
time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", program], cwd=PROJECT, stdout=subprocess.PIPE, text=True)
    child = int(process.stdout.readline())
    process.kill()
    process.wait(timeout=600)
    try:
        assert opened_stores(cache) == {}
    finally:
        os.kill(child, signal.SIGKILL)
        process.stdout.close()


@pytest.mark.parametrize("was_there", [True, False])
def test_a_file_is_locked_if_it_is_free_and_stays_only_if_it_was_there(tmp_path, was_there):
    path = tmp_path / "file"
    if was_there:
        path.touch()
    with lock_if_free(path) as is_free:
        assert is_free
        with lock_if_free(path) as is_free_again:
            assert not is_free_again
    assert path.exists() == was_there


@pytest.fixture
def store(tmp_path):
    (tmp_path / "0abc").mkdir()
    return tmp_path / "0abc"


def test_the_runs_that_used_a_store_are_remembered_once_each_and_in_order(store):
    assert used_by(store) == []
    for run in ("first", "second", "first"):
        note_use(store, run)
    assert used_by(store) == ["first", "second"]


def test_runs_that_use_a_store_at_the_same_time_are_all_remembered(store):
    runs = [f"run{index}" for index in range(40)]
    threads = [threading.Thread(target=note_use, args=(store, run)) for run in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(used_by(store)) == sorted(runs)


def test_a_store_was_last_used_when_a_run_said_so(store):
    os.utime(store, (1000, 1000))
    assert last_used(store) == 1000
    note_use(store, "run")
    os.utime(beside(store, ".uses"), (2000, 2000))
    assert last_used(store) == 2000
    note_use(store, "run")
    assert last_used(store) == pytest.approx(time.time(), abs=10)


def test_what_was_left_half_built_is_found_for_that_store_alone(store):
    others = [store.with_name(".0abcd.building-1"), store.with_name(".0abc.partial"), store.with_name(".0abc.uses.1.2")]
    own = [new_name(store, BUILDING), new_name(store, DISCARDED), new_name(store, BUILDING)]
    for folder in (*others, *own):
        folder.mkdir()
    assert sorted(half_done(store)) == sorted(own)
