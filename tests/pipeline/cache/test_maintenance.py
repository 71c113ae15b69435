import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.cache.maintenance import clear, format_made_from, list_entries, verify
from pipeline.cache.markers import FOLDER, beside, leave, note_use
from pipeline.cache.store import is_whole, locked, open_or_build, publish

PROJECT = Path(__file__).resolve().parents[3]
DAY_SECONDS = 86400


def make(kind, size_px, kilobytes=10, days_ago=0):
    """A store that was last used so many days ago, and that no process has opened."""

    def build(folder):
        (folder / "data.bin").write_bytes(bytes(1000 * kilobytes))

    store, _ = open_or_build(kind, {"size_px": size_px}, build)
    leave()
    used = time.time() - days_ago * DAY_SECONDS
    os.utime(beside(store, ".uses"), (used, used))
    return store


def flip_a_bit(store):
    content = bytearray((store / "data.bin").read_bytes())
    content[1] ^= 1
    (store / "data.bin").write_bytes(content)


def left(cache):
    """All files and folders in the cache but the markers, to a depth of two."""
    return sorted(str(path.relative_to(cache)) for path in cache.glob("*/*") if path.parent.name != FOLDER)


WORKER = """
import sys, time
from pathlib import Path
from pipeline.cache.store import locked, open_or_build

def build(folder):
    (folder / "data.bin").write_bytes(bytes(10))
    if sys.argv[1] == "builds":
        print("ready", flush=True)
        time.sleep(60)

if sys.argv[1] == "trains":
    with locked(Path(sys.argv[2])):
        print("ready", flush=True)
        time.sleep(60)
open_or_build("pixels", {"size_px": 1}, build)
print("ready", flush=True)
time.sleep(60)
"""


@pytest.fixture
def worker():
    """Starts processes that use the cache, and ends them."""
    started = []

    def start(*arguments):
        command = [sys.executable, "-c", WORKER, *map(str, arguments)]
        process = subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout.readline() == "ready\n"
        return process

    yield start
    for process in started:
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=600)


def test_an_empty_cache_has_no_entries_and_is_not_made(cache):
    assert list_entries() == []
    assert list(verify()) == []
    assert list(clear()) == []
    assert not cache.exists()


def test_a_store_is_listed_with_size_use_and_origin(cache):
    store = make("pixels", 64, kilobytes=10, days_ago=3)
    note_use(store, "first")
    note_use(store, "second")
    used = time.time() - 3 * DAY_SECONDS
    os.utime(beside(store, ".uses"), (used, used))
    [entry] = list_entries()
    assert (entry.kind, entry.path, entry.state) == ("pixels", store, "whole")
    assert 10_000 < entry.size_bytes < 11_000
    assert entry.used == pytest.approx(used, abs=1)
    assert entry.made_from == "64 px"
    assert entry.runs == ["first", "second"]


def test_states_are_told_apart(cache):
    whole, damaged, half = make("pixels", 1), make("pixels", 2), make("activations", 1)
    os.truncate(damaged / "data.bin", 10)
    (half / "store.json").unlink()
    leftover = whole.parent / f".{whole.name}.building-1234"
    leftover.mkdir()
    unfinished = whole.parent / f".{whole.name}.uses.12.34"
    unfinished.write_text("a file that was being written")
    (cache / "outbox" / "run").mkdir(parents=True)
    (cache / "inspected.sqlite").write_bytes(b"1234")
    states = {entry.path: entry.state for entry in list_entries()}
    assert states == {
        whole: "whole",
        damaged: "damaged",
        half: "half-built",
        leftover: "half-built",
        unfinished: "half-built",
        cache / "outbox" / "run": "not sent",
        cache / "inspected.sqlite": "remembered",
    }


def test_stores_in_a_folder_of_their_own_are_one_entry(cache):
    store = cache / "checkpoints" / "abc"
    for epoch in (1, 2):
        publish(store / f"{epoch:03d}", {"stage": "fine_tune", "epoch": epoch}, lambda folder: None)
    [entry] = list_entries()
    assert (entry.kind, entry.path, entry.state) == ("checkpoints", store, "whole")
    assert entry.made_from == "fine_tune, epoch 2"
    (store / "001" / "store.json").write_text("{")
    assert [entry.state for entry in list_entries()] == ["damaged"]
    assert [bool(damage) for _, damage in verify()] == [True]


@pytest.mark.parametrize(
    ("made_from", "words"),
    [
        ({"pictures": "1f", "size_px": 300, "fit": "crop", "grey": True, "decoder_version": 1}, "300 px, crop, grey"),
        (
            {"size_px": 96, "grey": False, "backbone": "resnet18", "weights": "sha256:1", "dtype": "float16"},
            "resnet18, 96 px, float16",
        ),
        ({"backbone": "resnet18", "dtype": "float16", "cut": "late"}, "resnet18, float16, cut at late"),
        ({"run_id": "0123456789abcdef", "place": "checkpoint"}, "checkpoint, of run 01234567"),
        ({}, ""),
    ],
)  # fmt: skip
def test_what_a_store_was_made_from_is_given_in_a_few_words(made_from, words):
    assert format_made_from(made_from) == words


def test_every_store_s_contents_are_verified(cache):
    good, bad = make("pixels", 1), make("activations", 2)
    flip_a_bit(bad)
    assert {entry.path: damage for entry, damage in verify()} == {good: "", bad: "the content of data.bin has changed"}
    assert bad.exists()
    list(verify(remove_damaged=True))
    assert not bad.exists()
    assert {entry.path: damage for entry, damage in verify()} == {good: ""}


def test_a_store_that_is_being_written_is_not_verified(cache, worker):
    store = make("checkpoints", 1)
    flip_a_bit(store)
    worker("trains", store)
    assert list(verify(remove_damaged=True)) == []
    assert store.exists()


def test_all_is_cleared_that_no_process_is_using(cache):
    make("pixels", 1)
    make("activations", 1)
    (cache / "inspected.sqlite").write_bytes(b"1234")
    cleared = list(clear())
    assert [why for _, why in cleared] == ["", "", ""]
    assert left(cache) == []
    assert not (cache / "inspected.sqlite").exists()
    assert list_entries() == []


def test_what_was_used_lately_stays(cache):
    make("pixels", 1, days_ago=31)
    young = make("pixels", 2, days_ago=29)
    (cache / "inspected.sqlite").write_bytes(b"1234")
    list(clear(older_than_seconds=30 * DAY_SECONDS))
    assert [entry.path for entry in list_entries() if entry.kind == "pixels"] == [young]
    assert (cache / "inspected.sqlite").exists()


def test_the_least_recently_used_go_until_the_rest_fits(cache):
    middle, last, first = (make("pixels", days, 100, days) for days in (2, 1, 3))
    assert [entry.path for entry, _ in clear(max_bytes=10**6)] == []
    assert [entry.path for entry, _ in clear(max_bytes=250_000)] == [first]
    assert [entry.path for entry, _ in clear(max_bytes=150_000)] == [middle]
    assert last.exists()
    assert [entry.path for entry, _ in clear(max_bytes=0)] == [last]


def test_room_made_by_what_is_half_built_spares_the_rest(cache):
    store = make("pixels", 1, 100, days_ago=9)
    leftover = store.parent / f".{store.name}.building-1234"
    shutil.copytree(store, leftover)
    assert [entry.path for entry, _ in clear(max_bytes=150_000)] == [leftover]


@pytest.mark.parametrize("options", [{}, {"older_than_seconds": DAY_SECONDS}, {"max_bytes": 10**9}], ids=str)
def test_half_built_stores_and_stale_markers_are_always_removed(cache, worker, options):
    killed = worker("builds")
    killed.kill()
    killed.wait(timeout=600)
    gone = worker("opens")
    gone.kill()
    gone.wait(timeout=600)
    shutil.rmtree(next(path for path in (cache / "pixels").iterdir() if path.is_dir() and path.name[0] != "."))
    (cache / "activations").mkdir()
    (cache / "activations" / "0123.lock").touch()
    (cache / "activations" / "0123.uses").touch()
    (cache / "activations" / ".0123.discarded-9").mkdir()
    (cache / "activations" / ".0123.uses.12.34").touch()
    list(clear(**options))
    assert left(cache) == []
    assert list((cache / FOLDER).iterdir()) == []


def test_locks_that_nobody_holds_go_and_the_store_stays(cache):
    store = make("pixels", 1)
    assert beside(store, ".lock").exists()
    list(clear(max_bytes=10**9))
    assert left(cache) == [f"pixels/{store.name}", f"pixels/{store.name}.uses"]
    assert is_whole(store)


def test_what_a_living_process_is_building_stays(cache, worker):
    worker("builds")
    [(entry, why)] = clear()
    assert (entry.state, why) == ("half-built", "a process is writing it")
    assert entry.path.exists()
    assert list(cache.glob("pixels/*.lock"))


def test_what_a_living_process_trains_on_stays(cache, worker):
    store = make("checkpoints", 1)
    other = make("checkpoints", 2)
    (cache / "inspected.sqlite").write_bytes(b"1234")
    worker("trains", store)
    assert {entry.path: why for entry, why in clear()} == {store: "a process is writing it", other: ""}
    assert is_whole(store)
    assert (cache / "inspected.sqlite").exists()


def test_what_a_living_process_has_open_stays(cache, worker):
    process = worker("opens")
    [(entry, why)] = clear()
    assert why == f"process {process.pid} has opened it"
    assert is_whole(entry.path)
    process.kill()
    process.wait(timeout=600)
    assert [why for _, why in clear()] == [""]


def test_room_that_cannot_be_made_by_what_is_open_is_made_by_others(cache, worker):
    worker("opens")
    [open_store] = [entry.path for entry in list_entries()]
    os.utime(beside(open_store, ".uses"), (1000, 1000))
    other = make("pixels", 2, days_ago=1)
    assert [(entry.path, bool(why)) for entry, why in clear(max_bytes=1000)] == [(open_store, True), (other, False)]


def test_what_is_not_sent_yet_stays(cache):
    (cache / "outbox" / "run").mkdir(parents=True)
    (cache / "outbox" / "run" / "1.json").write_text("{}")
    [(entry, why)] = clear()
    assert "python -m pipeline tracking send" in why
    assert (entry.path / "1.json").exists()


def test_to_look_leaves_nothing_behind(cache):
    store = make("pixels", 1)
    beside(store, ".lock").unlink()
    before = left(cache)
    list_entries()
    list(verify())
    assert left(cache) == before


def test_a_lock_that_is_removed_while_another_waits_for_it_still_keeps_others_out(cache):
    store = make("checkpoints", 1)
    with locked(store):
        command = [sys.executable, "-c", WORKER, "trains", str(store)]
        waiting = subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True)
        assert waiting.stdout.readline().startswith("Waiting for another process that is writing the checkpoint")
        beside(store, ".lock").unlink()
    assert waiting.stdout.readline() == "ready\n"
    assert [why for _, why in clear()] == ["a process is writing it"]
    waiting.kill()
    waiting.communicate(timeout=600)
