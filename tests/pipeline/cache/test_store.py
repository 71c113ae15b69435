import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pipeline.cache.hashing import content_key, file_checksum
from pipeline.cache.markers import FOLDER, beside, half_done, last_used, note_use, used_by
from pipeline.cache.store import (
    cache_folder,
    describe,
    find_damage,
    is_whole,
    locked,
    open_or_build,
    publish,
    remove,
    write_whole,
)

PROJECT = Path(__file__).resolve().parents[3]
KEY_PARTS = {"size_px": 8}


def build(folder):
    (folder / "deep").mkdir()
    (folder / "deep" / "numbers.bin").write_bytes(bytes(range(256)))
    (folder / "text.txt").write_text("all of it", encoding="utf-8")


def built(folder):
    return (folder / "deep" / "numbers.bin").read_bytes() == bytes(range(256)) and is_whole(folder, contents=True)


def never(folder):
    raise AssertionError("built though it was there")


@pytest.fixture
def store():
    return open_or_build("kind", KEY_PARTS, build)[0]


def test_a_store_is_built_once():
    folder, was_there = open_or_build("kind", KEY_PARTS, build)
    assert not was_there
    assert built(folder)
    assert open_or_build("kind", KEY_PARTS, never) == (folder, True)


def test_a_store_lies_in_the_cache(store, cache):
    assert store.parent == cache / "kind" == cache_folder() / "kind"


def test_other_key_parts_and_other_kinds_are_other_stores(store):
    assert open_or_build("kind", {"size_px": 9}, build) != (store, True)
    assert not open_or_build("other", KEY_PARTS, build)[1]
    assert open_or_build("kind", KEY_PARTS, never) == (store, True)


def test_a_store_says_what_it_was_made_from(store):
    description = json.loads((store / "store.json").read_text())
    assert description["made_from"] == KEY_PARTS
    assert set(description["files"]) == {"deep/numbers.bin", "text.txt"}
    assert description["files"]["text.txt"] == {"bytes": 9, "sha256": file_checksum(store / "text.txt")}


def test_a_build_that_fails_leaves_nothing_that_opens(cache):
    def fail(folder):
        build(folder)
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        open_or_build("kind", KEY_PARTS, fail)
    assert [path for path in (cache / "kind").iterdir() if path.is_dir()] == []
    folder, was_there = open_or_build("kind", KEY_PARTS, build)
    assert not was_there
    assert built(folder)


def test_a_store_does_not_exist_while_it_is_built(cache):
    store = cache / "kind" / content_key(KEY_PARTS)

    def look(folder):
        assert folder != store
        build(folder)
        assert not store.exists()

    assert open_or_build("kind", KEY_PARTS, look)[0] == store
    assert built(store)


def test_at_any_moment_all_of_a_store_is_visible_or_nothing(cache):
    store = cache / "kind" / content_key(KEY_PARTS)
    seen = []
    sys.setprofile(lambda *_: seen.append(not store.exists() or is_whole(store)))  # at every call and return
    try:
        open_or_build("kind", KEY_PARTS, build)
    finally:
        sys.setprofile(None)
    assert len(seen) > 100
    assert all(seen)


def remove_file(store):
    (store / "text.txt").unlink()


def truncate(store):
    os.truncate(store / "deep" / "numbers.bin", 255)


def lengthen(store):
    with (store / "text.txt").open("ab") as file:
        file.write(b"!")


def lose_description(store):
    (store / "store.json").unlink()


def halve_description(store):
    os.truncate(store / "store.json", (store / "store.json").stat().st_size // 2)


def list_files(store):
    (store / "store.json").write_text('{"files": ["text.txt"]}')


def number_files(store):
    (store / "store.json").write_text('{"files": {"text.txt": 9}}')


def replace_description(store):
    (store / "store.json").write_text("[]")


DAMAGES = [
    remove_file,
    truncate,
    lengthen,
    lose_description,
    halve_description,
    list_files,
    number_files,
    replace_description,
]


def flip_a_bit(store):
    path = store / "deep" / "numbers.bin"
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)


def flip_a_bit_silently(store):
    """As a failing disk would: the time of modification stays."""
    path = store / "deep" / "numbers.bin"
    modified_ns = path.stat().st_mtime_ns
    flip_a_bit(store)
    os.utime(path, ns=(modified_ns, modified_ns))


@pytest.mark.parametrize("damage", DAMAGES)
def test_sizes_are_always_checked(store, damage):
    assert is_whole(store)
    damage(store)
    assert not is_whole(store)
    assert not is_whole(store, contents=True)


@pytest.mark.parametrize("flip", [flip_a_bit, flip_a_bit_silently])
def test_contents_are_checked_on_demand(store, flip):
    flip(store)
    assert is_whole(store)
    assert find_damage(store, contents=True) == "the content of deep/numbers.bin has changed"


@pytest.mark.parametrize("damage", [*DAMAGES, flip_a_bit])
@pytest.mark.parametrize("kind", ["pixels", "activations", "artifacts", "kind"])
def test_a_damaged_store_is_reported_and_built_again(kind, damage, capsys):
    store, _ = open_or_build(kind, KEY_PARTS, build)
    damage(store)
    assert capsys.readouterr().out == ""
    assert open_or_build(kind, KEY_PARTS, build) == (store, False)
    message = capsys.readouterr().out
    assert message.startswith("Damaged: ")
    assert f"{store} (" in message
    assert message.endswith("); it is removed and built again.\n")
    assert message.count("\n") == 1
    assert built(store)
    assert half_done(store) == []
    assert open_or_build(kind, KEY_PARTS, never) == (store, True)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (remove_file, "text.txt is missing"),
        (truncate, "deep/numbers.bin has 255 of 256 bytes"),
        (flip_a_bit, "the content of deep/numbers.bin has changed"),
        (lose_description, "its store.json is missing or cannot be read"),
    ],
)
def test_damage_is_named(store, damage, words):
    damage(store)
    assert find_damage(store, contents=True) == words


def test_a_file_that_was_only_touched_is_checked_once(store, monkeypatch):
    (store / "text.txt").touch()
    assert open_or_build("kind", KEY_PARTS, never) == (store, True)
    flip_a_bit_silently(store)  # in another file, which nothing points at
    os.utime(store / "deep" / "numbers.bin", (0, 0))
    assert open_or_build("kind", KEY_PARTS, never) == (store, True)
    assert (store / "text.txt").stat().st_mtime_ns == (store / "store.json").stat().st_mtime_ns


READER = """
import time
from pipeline.cache.store import open_or_build

open_or_build("kind", {"size_px": 8}, None)
print("open", flush=True)
time.sleep(60)
"""


def test_a_store_is_not_checked_again_because_a_process_that_had_it_open_was_killed(store, cache):
    reader = process(READER)
    assert reader.stdout.readline() == "open\n"
    reader.kill()
    reader.communicate(timeout=600)
    flip_a_bit_silently(store)
    assert open_or_build("kind", KEY_PARTS, never) == (store, True)
    assert {path.suffix for path in (cache / "kind").iterdir() if path.is_file()} == {".lock", ".uses"}


def test_this_process_says_that_it_has_opened_a_store(store, cache):
    marker = next((cache / FOLDER).iterdir())
    assert f"kind/{store.name}" in marker.read_text().splitlines()


def test_to_open_a_store_is_to_use_it(store):
    note_use(store, "run")
    os.utime(beside(store, ".uses"), (1000, 1000))
    assert last_used(store) == 1000
    open_or_build("kind", KEY_PARTS, never)
    assert last_used(store) == pytest.approx(time.time(), abs=10)
    assert used_by(store) == ["run"]


def test_a_store_that_is_built_again_remembers_who_used_it(store):
    note_use(store, "run")
    truncate(store)
    open_or_build("kind", KEY_PARTS, build)
    assert used_by(store) == ["run"]


def build_another(folder):
    (folder / "text.txt").write_text("another")


def test_a_folder_is_published_whole_wherever_it_shall_be(tmp_path):
    store = tmp_path / "deep" / "store"
    publish(store, {"epoch": 1}, build)
    assert built(store)
    assert json.loads((store / "store.json").read_text())["made_from"] == {"epoch": 1}
    assert list(store.parent.iterdir()) == [store]
    publish(store, {"epoch": 2}, build_another)
    assert sorted(path.name for path in store.iterdir()) == ["store.json", "text.txt"]
    assert list(store.parent.iterdir()) == [store]


def test_what_was_published_stays_until_the_next_is_ready(tmp_path):
    store = tmp_path / "store"
    publish(store, {"epoch": 1}, build)

    def fail(folder):
        assert built(store)
        raise RuntimeError

    with pytest.raises(RuntimeError):
        publish(store, {"epoch": 2}, fail)
    assert built(store)
    assert half_done(store) == []


def test_all_is_on_the_disk_before_it_is_renamed(tmp_path, monkeypatch):
    store = tmp_path / "store"
    synced = []
    sync = os.fsync

    def note(descriptor):
        synced.append((os.fstat(descriptor).st_ino, store.exists()))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    publish(store, {}, build)
    inside = [store, store / "store.json", store / "text.txt", store / "deep", store / "deep" / "numbers.bin"]
    assert {(path.stat().st_ino, False) for path in inside} <= set(synced)
    assert synced[-1] == (tmp_path.stat().st_ino, True)


def test_a_store_that_is_removed_is_gone_at_once(store):
    remove(store)
    assert not store.exists()
    assert half_done(store) == []
    remove(store)


HOLDER = """
import sys
from pathlib import Path
from pipeline.cache.store import locked

with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()  # until it is closed
"""


def test_waiting_for_another_process_is_reported(cache, monkeypatch):
    said = []
    store = cache / "pixels" / "abc"
    with process(HOLDER, store) as holder:
        assert holder.stdout.readline() == "held\n"

        def let_go(sentence):
            said.append(sentence)
            holder.stdin.close()

        monkeypatch.setattr("pipeline.cache.store.say", let_go)
        with locked(store):
            pass
    assert said == [f"Waiting for another process that is writing the pixel store {store}."]


def test_a_folder_that_is_not_there_is_not_whole(tmp_path):
    assert not is_whole(tmp_path / "nowhere")
    assert not is_whole(tmp_path)


def test_a_folder_described_is_whole(tmp_path):
    build(tmp_path)
    describe(tmp_path, {"by": "hand"})
    assert is_whole(tmp_path, contents=True)


def test_a_file_whose_checksum_its_builder_knows_is_not_read_for_it(tmp_path, monkeypatch):
    checksums = []
    monkeypatch.setattr(
        "pipeline.cache.store.file_checksum", lambda path: checksums.append(path.name) or file_checksum(path)
    )

    def build_with_checksum(folder):
        build(folder)
        return {"text.txt": file_checksum(folder / "text.txt")}

    publish(tmp_path / "store", {}, build_with_checksum)
    assert checksums == ["numbers.bin"]
    assert is_whole(tmp_path / "store", contents=True)


def process(code, *arguments):
    """A Python process of the project, in the cache of this test."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


SLOW_BUILDER = """
import sys, time
from pipeline.cache.store import open_or_build

def build(folder):
    with open(sys.argv[1], "a") as log:
        log.write("built\\n")
    (folder / "half.txt").write_text("half")
    time.sleep(0.5)
    (folder / "text.txt").write_text("all of it")

folder, was_there = open_or_build("kind", {"size_px": 8}, build)
assert (folder / "text.txt").read_text() == "all of it"
print(was_there)
"""


@pytest.mark.parametrize("damaged", [False, True])
def test_four_processes_that_want_the_same_store_build_it_once(tmp_path, damaged):
    if damaged:
        store, _ = open_or_build("kind", KEY_PARTS, build)
        truncate(store)
    processes = [process(SLOW_BUILDER, tmp_path / "log") for _ in range(4)]
    outputs = [one.communicate(timeout=600)[0].splitlines() for one in processes]
    assert sorted(lines[-1] for lines in outputs) == ["False", "True", "True", "True"]
    assert sum("Damaged: the kind store" in line for lines in outputs for line in lines) == damaged
    assert (tmp_path / "log").read_text() == "built\n"


KILLED_BUILDER = """
import os, time
from pipeline.cache.store import open_or_build

def build(folder):
    (folder / "text.txt").write_text("half of it")
    print("building", flush=True)
    time.sleep(60)

open_or_build("kind", {"size_px": 8}, build)
"""


def test_a_builder_that_was_killed_leaves_neither_a_store_nor_a_lock(cache):
    builder = process(KILLED_BUILDER)
    assert builder.stdout.readline() == "building\n"
    builder.kill()
    builder.communicate(timeout=600)
    store = cache / "kind" / content_key(KEY_PARTS)
    assert not store.exists()
    assert len(half_done(store)) == 1
    folder, was_there = open_or_build("kind", KEY_PARTS, build)
    assert not was_there
    assert built(folder)
    assert half_done(store) == []


def test_a_reader_never_sees_half_of_a_file(tmp_path):
    path = tmp_path / "file"
    contents = {letter * 300_000 for letter in (b"a", b"b")}
    write_whole(path, b"a" * 300_000)
    done = threading.Event()

    def write():
        for _ in range(15):
            for content in contents:
                write_whole(path, content)
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    while not done.is_set():
        assert path.read_bytes() in contents
    writer.join()
    assert list(tmp_path.glob(".file*")) == []


def test_a_file_that_cannot_be_written_keeps_its_old_content_and_leaves_nothing_beside_it(tmp_path):
    with pytest.raises(TypeError):
        write_whole(tmp_path / "file", None)
    assert list(tmp_path.iterdir()) == []
    write_whole(tmp_path / "file", b"old")
    with pytest.raises(TypeError):
        write_whole(tmp_path / "file", None)
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]
    assert (tmp_path / "file").read_bytes() == b"old"


def test_a_key_depends_on_every_part_and_not_on_their_order():
    assert content_key({"a": 1, "b": 2}) == content_key({"b": 2, "a": 1})
    keys = {
        content_key(key_parts) for key_parts in ({"a": 1}, {"a": 2}, {"b": 1}, {"a": "1"}, {"a": [1]}, {"a": "é"}, {})
    }
    assert len(keys) == 7


def test_a_key_is_the_same_on_every_machine():
    assert content_key({"b": 1, "a": "é"}) == "799d49d45db67c58d990c30f098c2001"


@pytest.mark.parametrize(
    ("set_to", "folder"),
    [
        ({"THAW_CACHE": "/here"}, Path("/here")),
        ({"THAW_CACHE": "/here", "XDG_CACHE_HOME": "/there"}, Path("/here")),
        ({"XDG_CACHE_HOME": "/there"}, Path("/there/thaw")),
        ({}, Path.home() / ".cache" / "thaw"),
        ({"THAW_CACHE": "~/mine"}, Path.home() / "mine"),
        ({"THAW_CACHE": "", "XDG_CACHE_HOME": ""}, Path.home() / ".cache" / "thaw"),
    ],
    ids=str,
)
def test_the_cache_lies_where_the_environment_says(monkeypatch, set_to, folder):
    monkeypatch.delenv("THAW_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    for name, value in set_to.items():
        monkeypatch.setenv(name, value)
    assert cache_folder() == folder
