import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pipeline.store import cache_folder, content_key, describe, file_checksum, is_whole, open_or_build, write_whole

PROJECT = Path(__file__).resolve().parents[2]
PARTS = {"size_px": 8}


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
    return open_or_build("kind", PARTS, build)[0]


def test_a_store_is_built_once():
    folder, was_there = open_or_build("kind", PARTS, build)
    assert not was_there
    assert built(folder)
    assert open_or_build("kind", PARTS, never) == (folder, True)


def test_a_store_lies_in_the_cache(store, cache):
    assert store.parent == cache / "kind" == cache_folder() / "kind"


def test_other_parts_and_other_kinds_are_other_stores(store):
    assert open_or_build("kind", {"size_px": 9}, build) != (store, True)
    assert not open_or_build("other", PARTS, build)[1]
    assert open_or_build("kind", PARTS, never) == (store, True)


def test_a_store_says_what_it_was_made_from(store):
    description = json.loads((store / "store.json").read_text())
    assert description["made_from"] == PARTS
    assert set(description["files"]) == {"deep/numbers.bin", "text.txt"}
    assert description["files"]["text.txt"] == {"bytes": 9, "sha256": file_checksum(store / "text.txt")}


def test_a_build_that_fails_leaves_nothing_that_opens(cache):
    def fail(folder):
        build(folder)
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        open_or_build("kind", PARTS, fail)
    assert [path for path in (cache / "kind").iterdir() if path.is_dir()] == []
    folder, was_there = open_or_build("kind", PARTS, build)
    assert not was_there
    assert built(folder)


def test_nothing_stands_in_the_store_s_place_while_it_is_built(cache):
    place = cache / "kind" / content_key(PARTS)

    def look(folder):
        assert folder != place
        build(folder)
        assert not place.exists()

    assert open_or_build("kind", PARTS, look)[0] == place
    assert built(place)


def test_whoever_looks_at_any_moment_sees_all_of_a_store_or_none(cache):
    place = cache / "kind" / content_key(PARTS)
    seen = []
    sys.setprofile(lambda *_: seen.append(not place.exists() or is_whole(place)))  # at every call and return
    try:
        open_or_build("kind", PARTS, build)
    finally:
        sys.setprofile(None)
    assert len(seen) > 100
    assert all(seen)


def remove(store):
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
    remove,
    truncate,
    lengthen,
    lose_description,
    halve_description,
    list_files,
    number_files,
    replace_description,
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_store_is_found_and_built_again(store, damage):
    assert is_whole(store)
    damage(store)
    assert not is_whole(store)
    assert not is_whole(store, contents=True)
    assert open_or_build("kind", PARTS, build) == (store, False)
    assert built(store)


def test_a_flipped_bit_is_found_by_the_checksum(store):
    content = bytearray((store / "deep" / "numbers.bin").read_bytes())
    content[100] ^= 1
    (store / "deep" / "numbers.bin").write_bytes(content)
    assert is_whole(store)
    assert not is_whole(store, contents=True)


def test_a_folder_that_is_not_there_is_not_whole(tmp_path):
    assert not is_whole(tmp_path / "nowhere")
    assert not is_whole(tmp_path)


def test_a_folder_described_is_whole(tmp_path):
    build(tmp_path)
    describe(tmp_path, {"by": "hand"})
    assert is_whole(tmp_path, contents=True)


def process(code, *arguments):
    """A Python process of the project, in the cache of this test."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True)


SLOW_BUILDER = """
import sys, time
from pipeline.store import open_or_build

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


def test_processes_that_want_the_same_store_build_it_once(tmp_path):
    processes = [process(SLOW_BUILDER, tmp_path / "log") for _ in range(3)]
    said = sorted(one.communicate(timeout=20)[0].strip() for one in processes)
    assert said == ["False", "True", "True"]
    assert (tmp_path / "log").read_text() == "built\n"


KILLED_BUILDER = """
import os, time
from pipeline.store import open_or_build

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
    builder.communicate(timeout=20)
    assert not (cache / "kind" / content_key(PARTS)).exists()
    folder, was_there = open_or_build("kind", PARTS, build)
    assert not was_there
    assert built(folder)


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
    keys = {content_key(parts) for parts in ({"a": 1}, {"a": 2}, {"b": 1}, {"a": "1"}, {"a": [1]}, {"a": "é"}, {})}
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
