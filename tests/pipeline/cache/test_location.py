"""Caches that cannot be written, and caches of several users. As root no permission holds, so errors of the system are
also made up, and a read-only disk is mounted where that can be done."""

import errno
import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.cache import location as module
from pipeline.cache.location import cache_folder, check_cache, make_folder, report_unwritable, shared_lock
from pipeline.cache.markers import note_use
from pipeline.cache.store import locked, open_or_build, write_whole
from pipeline.data.inspection import inspect_all
from pipeline.system.errors import UserError
from pipeline.tracking.outbox import Outbox

SENTENCE = r"^The cache .* cannot be written \(.*\); set THAW_CACHE to a folder that you can write, or have"


def build(folder: Path) -> None:
    (folder / "in").mkdir()
    (folder / "in" / "data.bin").write_bytes(b"abc")


USED_BY = {
    "check": check_cache,
    "store": lambda: open_or_build("pixels", {"size_px": 8}, build),
    "lock": lambda: locked(cache_folder() / "checkpoints" / "abc").__enter__(),
    "inspection": lambda: list(inspect_all(Path(), [])),
    "outbox": lambda: Outbox("abc").lock("sqlite:///a.db").__enter__(),
}


@pytest.fixture
def read_only_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "ro,size=1m", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("a read-only disk cannot be mounted here: it takes root")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


@pytest.mark.parametrize("use", USED_BY)
def test_a_cache_on_a_read_only_disk_is_one_sentence(read_only_disk, monkeypatch, use):
    for cache in (read_only_disk, read_only_disk / "thaw"):
        monkeypatch.setenv("THAW_CACHE", str(cache))
        with pytest.raises(UserError, match=SENTENCE):
            USED_BY[use]()


@pytest.mark.parametrize("use", USED_BY)
@pytest.mark.parametrize("below", ["", "thaw"])
def test_a_file_in_the_place_of_the_cache_is_one_sentence(tmp_path, monkeypatch, use, below):
    (tmp_path / "file").touch()
    monkeypatch.setenv("THAW_CACHE", str(tmp_path / "file" / below))
    with pytest.raises(UserError, match=SENTENCE):
        USED_BY[use]()


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EROFS])
def test_another_users_cache_is_one_sentence(cache, monkeypatch, number):
    def refuse(path: object, *_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(os, "mkdir", refuse)
    for use in USED_BY.values():
        with pytest.raises(UserError, match=os.strerror(number)):
            use()


def test_a_folder_in_the_cache_that_cannot_be_written_is_known_at_once(cache, monkeypatch):
    (cache / "pixels").mkdir(parents=True)
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "pixels")
    with pytest.raises(UserError, match=f"Permission denied: {cache / 'pixels'}"):
        check_cache()


def test_files_elsewhere_are_not_taken_for_the_cache(cache, tmp_path):
    with pytest.raises(PermissionError), report_unwritable():
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "picture.png"))


def test_an_error_of_another_kind_is_left_as_it_is(cache):
    with pytest.raises(FileNotFoundError), report_unwritable():
        (cache / "nowhere").read_bytes()


def test_without_a_home_folder_the_cache_needs_a_place(monkeypatch):
    monkeypatch.delenv("THAW_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as for a user whom the system does not know
    with pytest.raises(UserError, match="your home folder is not known here; set THAW_CACHE to a folder"):
        cache_folder()


def test_a_check_leaves_nothing_behind(cache):
    check_cache()
    assert list(cache.iterdir()) == []


def modes(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*")}


def fill(cache: Path) -> None:
    """Use the cache in every way that leaves something in it."""
    store, _ = open_or_build("pixels", {"size_px": 8}, build)
    note_use(store, "run")
    make_folder(cache / "sweeps" / "study")
    write_whole(cache / "sweeps" / "study" / "facts.json", b"{}")
    list(inspect_all(Path(), []))
    with shared_lock(cache / "champions.lock"):
        pass


@pytest.mark.parametrize(("mode", "writers"), [(0o2775, 0o020), (0o777, 0o022), (0o755, 0o000)])
def test_what_is_made_in_a_shared_cache_can_be_written_by_those_who_share_it_and_by_no_others(cache, mode, writers):
    cache.mkdir()
    cache.chmod(mode)
    before = os.umask(0o022)
    try:
        fill(cache)
    finally:
        os.umask(before)
    found = modes(cache)
    assert {"inspected.sqlite", "champions.lock", "processes", "sweeps/study/facts.json"} <= set(found)
    assert {name for name, one in found.items() if one & 0o022 != writers} == set()


def test_a_cache_of_a_group_gives_its_group_to_what_is_made_in_it(cache, monkeypatch):
    cache.mkdir()
    cache.chmod(0o770)
    given = []
    monkeypatch.setattr(module.os, "chown", lambda path, user, group: given.append((Path(path).name, user, group)))
    real = Path.stat

    def of_a_group(path: Path, **options: bool) -> os.stat_result:
        found = real(path, **options)
        return os.stat_result([*found[:5], 4711, *found[6:]]) if path == cache else found

    monkeypatch.setattr(Path, "stat", of_a_group)
    make_folder(cache / "pixels")
    assert given == [("pixels", -1, 4711)]
