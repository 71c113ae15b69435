"""Content-keyed folders in one cache, each published whole or not at all, and looked over when it is opened.

A store is built beside its place, described in `store.json` with every file's size and checksum, and moved
into place by one rename. Whatever could change its content is in its key, so a store is never out of date.
"""

import hashlib
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeAlias

from filelock import FileLock, Timeout

from pipeline.cache_users import bury_dead, note_open
from pipeline.console import say, track
from pipeline.disk import told_when_full
from pipeline.sidecars import BUILDING, DISCARDED, LOCK, SUSPECT, USES, beside, half_done, new_name

DESCRIPTION = "store.json"
MAKE_ROOM = "free some with `python -m pipeline cache clear --max-gb N` or point THAW_CACHE to a larger disk"

_TITLES = {
    "pixels": "the pixel store",
    "activations": "the activation store",
    "artifacts": "a run's fetched artifacts",
    "checkpoints": "the checkpoint",
}
_CHUNK_BYTES = 4_000_000
# Fills a folder; gives the SHA-256 of those of its files that it knows, by name.
Build: TypeAlias = Callable[[Path], Mapping[str, str] | None]
_SECONDS_BEFORE_TELLING = 1.0


def cache_folder() -> Path:
    """Where stores live: `$THAW_CACHE`, else `thaw` in the user's cache folder."""
    chosen = os.environ.get("THAW_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "thaw"


def content_key(parts: Mapping[str, Any]) -> str:
    """A short name for whatever `parts` say, the same on every machine."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def file_checksum(path: Path) -> str:
    """The file's SHA-256, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def open_or_build(kind: str, parts: Mapping[str, Any], build: Build) -> tuple[Path, bool]:
    """The store of this `kind` for `parts`, and whether it was there already.

    Where it is not, or is damaged, which is said, `build` is given an empty folder to fill. Other processes that want
    the same store wait for this one. Sizes are looked at always; contents where a file was modified after it was
    described, or a process that used the cache was killed since the store was last used. UserError if the disk is full.
    """
    cache = cache_folder()
    place = cache / kind / content_key(parts)
    with told_when_full(_title(place), place.parent, MAKE_ROOM):
        suspect_after_kills(cache)
        with locked(place):
            damage = _damage_on_opening(place) if place.exists() else ""
            if damage:
                say(f"Damaged: {_title(place)} {place} ({damage}); it is removed and built again.")
                remove(place)
            found = place.exists()
            if not found:
                publish(place, parts, build)
            with suppress(OSError):  # on a full disk, what is there can still be read
                beside(place, USES).touch()
                note_open(cache, f"{kind}/{place.name}")
    return place, found


def publish(place: Path, made_from: Mapping[str, Any], build: Build) -> None:
    """Fill a folder with `build`, describe it, make sure that it is on the disk, and move it to `place` in one step.

    What is at `place` gives way once the new folder is ready. Whoever calls this holds a lock: what an earlier builder
    of the same place left half done is removed. UserError if the disk is full; nothing is left behind then.
    """
    with told_when_full(_title(place), place.parent, MAKE_ROOM):
        place.parent.mkdir(parents=True, exist_ok=True)
        for left in half_done(place):
            shutil.rmtree(left, ignore_errors=True)
        unfinished = new_name(place, BUILDING)
        unfinished.mkdir()
        try:
            known = build(unfinished)
            describe(unfinished, made_from, known or {})
            for path in (*unfinished.rglob("*"), unfinished):
                _sync(path)
            remove(place)
            unfinished.rename(place)
            _sync(place.parent)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)


def remove(place: Path) -> None:
    """Take a store away, at once for whoever looks; the runs that used it are remembered."""
    if place.exists():
        discarded = place.rename(new_name(place, DISCARDED))
        shutil.rmtree(discarded, ignore_errors=True)
    beside(place, SUSPECT).unlink(missing_ok=True)


@contextmanager
def locked(place: Path, waiting: str = "") -> Iterator[None]:
    """Hold the lock of a store; where another process holds it, that is said (`waiting`), and waited for."""
    place.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(beside(place, LOCK))
    try:
        lock.acquire(timeout=_SECONDS_BEFORE_TELLING)
    except Timeout:
        say(waiting or f"Waiting for another process that is writing {_title(place)} {place}.")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def suspect_after_kills(cache: Path) -> None:
    """For each process that was killed, mark every store that was published or opened since it started: its content is
    looked at when it is opened next."""
    for since in bury_dead(cache):
        for description in cache.glob(f"*/*/{DESCRIPTION}"):
            place = description.parent
            if any(file.exists() and file.stat().st_mtime >= since for file in (description, beside(place, USES))):
                beside(place, SUSPECT).touch()


def is_whole(folder: Path, contents: bool = False) -> bool:
    """Whether `find_damage` finds none."""
    return not find_damage(folder, contents)


def find_damage(folder: Path, contents: bool = False) -> str:
    """What is wrong with a store, in a few words, such as "pixels.npy is missing"; empty if nothing is.

    Every file in its description has to be there in its full size, and, with `contents`, with its checksum.
    """
    checksums = {}
    try:
        files = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))["files"]
        for name, facts in files.items():
            checksums[name], size_bytes = facts["sha256"], facts["bytes"]
            if not (folder / name).is_file():
                return f"{name} is missing"
            found_bytes = (folder / name).stat().st_size
            if found_bytes != size_bytes:
                return f"{name} has {found_bytes:,} of {size_bytes:,} bytes"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"its {DESCRIPTION} is missing or cannot be read"
    return _find_changed(folder, checksums) if contents else ""


def size_bytes(folder: Path) -> int:
    """How much all its files take."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def describe(folder: Path, parts: Mapping[str, Any], known: Mapping[str, str] = {}) -> None:
    """Write the folder's description: what it was made from, and its files with sizes and checksums; those that are
    `known` are taken as they are."""
    paths = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
    files = {
        name: {"bytes": path.stat().st_size, "sha256": known.get(name) or file_checksum(path)}
        for name, path in paths.items()
        if path.name != DESCRIPTION
    }
    text = json.dumps({"made_from": parts, "files": files}, indent=2, ensure_ascii=False)
    write_whole(folder / DESCRIPTION, text.encode())


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees either the old content or all of the new."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        with unfinished.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _damage_on_opening(place: Path) -> str:
    is_suspect = beside(place, SUSPECT).exists()
    damage = find_damage(place, contents=is_suspect)
    if not damage and not is_suspect:
        return _find_modified(place)
    if not damage:
        beside(place, SUSPECT).unlink(missing_ok=True)
    return damage


def _find_modified(place: Path) -> str:
    """What is wrong with those files that were modified after they were described."""
    described_ns = (place / DESCRIPTION).stat().st_mtime_ns
    files = json.loads((place / DESCRIPTION).read_text(encoding="utf-8"))["files"]
    modified = {
        name: facts["sha256"] for name, facts in files.items() if (place / name).stat().st_mtime_ns > described_ns
    }
    damage = _find_changed(place, modified)
    if not damage:
        for name in modified:  # looked at once is enough
            os.utime(place / name, ns=(described_ns, described_ns))
    return damage


def _find_changed(folder: Path, checksums: Mapping[str, str]) -> str:
    """The first file whose content has another checksum."""
    digests = {name: hashlib.sha256() for name in checksums}
    size_mb = sum((folder / name).stat().st_size for name in checksums) // 10**6
    chunks = track(_chunks(folder, checksums), f"checking {_title(folder)}", size_mb, "MB", _CHUNK_BYTES // 10**6)
    for name, chunk in chunks:
        digests[name].update(chunk)
    changed = [name for name, digest in digests.items() if digest.hexdigest() != checksums[name]]
    return f"the content of {changed[0]} has changed" if changed else ""


def _chunks(folder: Path, names: Iterable[str]) -> Iterator[tuple[str, bytes]]:
    for name in names:
        with (folder / name).open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                yield name, chunk


def _title(place: Path) -> str:
    """What a store is called, such as "the pixel store"; its kind is the first folder in the cache."""
    kind = place.parent.name
    if place.is_relative_to(cache_folder()):
        kind = place.relative_to(cache_folder()).parts[0]
    return _TITLES.get(kind, f"the {kind} store")


def _sync(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
