import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.cache_users import FOLDER, bury_dead, leave, note_open, opened

PROJECT = Path(__file__).resolve().parents[2]
OPENER = """
import os, sys, time
from pathlib import Path
from pipeline.cache_users import note_open

note_open(Path(sys.argv[1]), sys.argv[2])
print(os.getpid(), flush=True)
time.sleep(float(sys.argv[3]))
"""


def opener(cache, store, seconds):
    """A process that has opened a store, and goes on for `seconds`."""
    command = [sys.executable, "-c", OPENER, str(cache), store, str(seconds)]
    process = subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True)
    assert int(process.stdout.readline()) == process.pid
    return process


def end(process, by):
    process.send_signal(by)
    process.communicate(timeout=20)


@pytest.fixture
def dead(cache):
    """When the process was started that has opened kind/1 and was killed."""
    now = time.time()
    end(opener(cache, "kind/1", 60), signal.SIGKILL)
    return now


def markers(cache):
    return [path.name for path in (cache / FOLDER).iterdir() if not path.name.startswith(".")]


def test_nobody_uses_a_cache_that_is_not_there(cache):
    assert opened(cache) == {}
    assert list(bury_dead(cache)) == []
    assert not cache.exists()


def test_what_living_processes_have_opened_is_known(cache):
    note_open(cache, "kind/1")
    note_open(cache, "kind/2")
    note_open(cache, "kind/1")
    other = opener(cache, "kind/3", 60)
    assert opened(cache) == {"kind/1": os.getpid(), "kind/2": os.getpid(), "kind/3": other.pid}
    assert len(markers(cache)) == 2
    end(other, signal.SIGKILL)
    assert sorted(opened(cache)) == ["kind/1", "kind/2"]


@pytest.mark.parametrize("seconds", [0, 60])
def test_a_process_that_ends_in_order_leaves_no_marker(cache, seconds):
    process = opener(cache, "kind/1", seconds)
    if seconds:
        end(process, signal.SIGINT)
    else:
        process.wait(timeout=20)
    assert markers(cache) == []
    assert list(bury_dead(cache)) == []


def test_a_process_that_was_killed_is_buried_once(cache, dead):
    assert len(markers(cache)) == 1
    assert list(bury_dead(cache)) == [pytest.approx(dead, abs=10)]
    assert markers(cache) == []
    assert list(bury_dead(cache)) == []


def test_a_process_that_died_is_seen_by_one_that_goes_on(cache):
    note_open(cache, "kind/1")
    other = opener(cache, "kind/2", 60)
    assert list(bury_dead(cache)) == []
    end(other, signal.SIGKILL)
    assert len(list(bury_dead(cache))) == 1
    assert list(opened(cache)) == ["kind/1"]


def test_the_dead_stay_until_all_is_done_about_them(cache, dead):
    for _ in bury_dead(cache):
        break
    assert len(list(bury_dead(cache))) == 1


def test_to_look_who_is_alive_buries_nobody(cache, dead):
    assert opened(cache) == {}
    assert len(list(bury_dead(cache))) == 1


def test_a_process_that_left_can_come_back(cache):
    note_open(cache, "kind/1")
    leave()
    assert markers(cache) == []
    assert opened(cache) == {}
    note_open(cache, "kind/2")
    assert opened(cache) == {"kind/2": os.getpid()}


def test_a_marker_that_came_to_be_by_being_looked_at_tells_of_nobody(cache, dead):
    (cache / FOLDER / "host-1-1700000000").touch()
    assert len(list(bury_dead(cache))) == 1
    assert markers(cache) == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="takes fork")
def test_a_forked_child_that_lives_on_does_not_keep_its_parent_alive(cache):
    program = f"""
import os, sys, time
from pathlib import Path
from pipeline.cache_users import note_open
note_open(Path({str(cache)!r}), "kind/1")
child = os.fork()
if not child:
    time.sleep(60)
print(child, flush=True)
time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", program], cwd=PROJECT, stdout=subprocess.PIPE, text=True)
    child = int(process.stdout.readline())
    process.kill()
    process.wait(timeout=20)
    try:
        assert len(list(bury_dead(cache))) == 1
    finally:
        os.kill(child, signal.SIGKILL)
        process.stdout.close()
