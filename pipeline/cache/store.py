"""Stores: content-keyed folders in one cache, each published whole or not at all, and checked when it is opened.

A store is built in a temporary folder, described in `store.json` with every file's size and checksum, flushed to the
disk, and renamed. Everything that could change its content is in its key, so a store is never out of date.
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

from filelock import Timeout

from pipeline.cache.hashing import content_key, file_checksum
from pipeline.cache.location import cache_folder, make_folder, report_unwritable, share, shared_lock
from pipeline.cache.markers import (
    BUILDING,
    DISCARDED,
    LOCK,
    USES,
    beside,
    half_done,
    new_name,
    note_open,
)
from pipeline.system.console import say, track
from pipeline.system.disk import report_full_disk

# Fills a folder; gives the SHA-256 of those of its files that it knows, by name.
Build: TypeAlias = Callable[[Path], Mapping[str, str] | None]

DESCRIPTION = "store.json"
MAKE_ROOM = "free some with `python -m pipeline cache clear --max-gb N` or point THAW_CACHE to a larger disk"
_TITLES = {
    "pixels": "the pixel store",
    "activations": "the activation store",
    "artifacts": "a run's fetched artifacts",
    "checkpoints": "the checkpoint",
    "graphs": "the network's ONNX graph",
    "checks": "what is known of a network",
}
_CHUNK_BYTES = 4_000_000
# A process that waits longer for a lock reports it.
_SECONDS_BEFORE_REPORT = 1.0


def open_or_build(kind: str, key_parts: Mapping[str, Any], build: Build) -> tuple[Path, bool]:
    """The store of this `kind` for `key_parts`, and whether it existed.

    If it does not exist, or is damaged, which is reported, `build` is given an empty folder to fill. Other processes
    that want the same store wait for this one. Sizes of files are always checked, contents of files that were modified
    after they were described. UserError if the disk is full, or the cache cannot be written.
    """
    cache = cache_folder()
    store = cache / kind / content_key(key_parts)
    with report_unwritable(), report_full_disk(_title(store), store.parent, MAKE_ROOM), locked(store):
        damage = (find_damage(store) or _find_modified(store)) if store.exists() else ""
        if damage:
            say(f"Damaged: {_title(store)} {store} ({damage}); it is removed and built again.")
            remove(store)
        found = store.exists()
        if not found:
            publish(store, key_parts, build)
        with suppress(OSError):  # a store can be read on a full disk
            beside(store, USES).touch()
            share(beside(store, USES))
            note_open(cache, f"{kind}/{store.name}")
    return store, found


def publish(store: Path, made_from: Mapping[str, Any], build: Build) -> None:
    """Fill a folder with `build`, describe it, flush it to the disk, and rename it to `store` in one step.

    An earlier `store` is removed once the new one is ready. The caller holds the lock: what earlier builders of the
    same store left half-built is removed. UserError if the disk is full; nothing is left behind then.
    """
    with report_unwritable(), report_full_disk(_title(store), store.parent, MAKE_ROOM):
        make_folder(store.parent)
        for left in half_done(store):
            shutil.rmtree(left, ignore_errors=True)
        unfinished = new_name(store, BUILDING)
        unfinished.mkdir()
        try:
            known = build(unfinished)
            describe(unfinished, made_from, known or {})
            for path in (*unfinished.rglob("*"), unfinished):
                share(path)
                _sync(path)
            remove(store)
            unfinished.rename(store)
            _sync(store.parent)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)


def remove(store: Path) -> None:
    """Remove a store, for other processes in one step; the list of the runs that used it stays."""
    if store.exists():
        discarded = store.rename(new_name(store, DISCARDED))
        shutil.rmtree(discarded, ignore_errors=True)


@contextmanager
def locked(store: Path, waiting: str = "") -> Iterator[None]:
    """Holds the lock of a store; if another process holds it, reports that in the words of `waiting`, and waits."""
    lock = shared_lock(beside(store, LOCK))
    with report_unwritable():
        try:
            lock.acquire(timeout=_SECONDS_BEFORE_REPORT)
        except Timeout:
            say(waiting or f"Waiting for another process that is writing {_title(store)} {store}.")
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


def is_whole(store: Path, contents: bool = False) -> bool:
    """Whether `find_damage` finds nothing."""
    return not find_damage(store, contents)


def find_damage(store: Path, contents: bool = False) -> str:
    """What is wrong with a store, in a few words, such as "pixels.npy is missing"; empty if nothing is.

    Every file in its description must exist in its full size, and, with `contents`, with its checksum.
    """
    checksums = {}
    try:
        files = json.loads((store / DESCRIPTION).read_text(encoding="utf-8"))["files"]
        for name, facts in files.items():
            checksums[name], size_bytes = facts["sha256"], facts["bytes"]
            if not (store / name).is_file():
                return f"{name} is missing"
            found_bytes = (store / name).stat().st_size
            if found_bytes != size_bytes:
                return f"{name} has {found_bytes:,} of {size_bytes:,} bytes"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"its {DESCRIPTION} is missing or cannot be read"
    return _find_changed(store, checksums) if contents else ""


def size_bytes(path: Path) -> int:
    """The size of a file, or of all files in a folder."""
    total = 0
    for file in (path, *path.rglob("*")):
        with suppress(OSError):  # it may just have been removed
            total += file.stat().st_size if file.is_file() else 0
    return total


def describe(folder: Path, made_from: Mapping[str, Any], known: Mapping[str, str] = {}) -> None:
    """Write the folder's description: what it was made from, and its files with sizes and checksums. Checksums that
    are `known`, by the names of their files, are not computed."""
    paths = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
    files = {
        name: {"bytes": path.stat().st_size, "sha256": known.get(name) or file_checksum(path)}
        for name, path in paths.items()
        if path.name != DESCRIPTION
    }
    text = json.dumps({"made_from": made_from, "files": files}, indent=2, ensure_ascii=False)
    write_whole(folder / DESCRIPTION, text.encode())


def write_whole(path: Path, content: bytes) -> None:
    """Write a file in one step: a reader sees either the old content or all of the new."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        with unfinished.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        share(unfinished)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _find_modified(store: Path) -> str:
    """What is wrong with the files that were modified after they were described."""
    described_ns = (store / DESCRIPTION).stat().st_mtime_ns
    files = json.loads((store / DESCRIPTION).read_text(encoding="utf-8"))["files"]
    modified = {
        name: facts["sha256"] for name, facts in files.items() if (store / name).stat().st_mtime_ns > described_ns
    }
    damage = _find_changed(store, modified)
    if not damage:
        for name in modified:  # checked once is enough
            with suppress(PermissionError):  # a file of another user
                os.utime(store / name, ns=(described_ns, described_ns))
    return damage


def _find_changed(store: Path, checksums: Mapping[str, str]) -> str:
    """The first file whose content has another checksum, in a few words."""
    digests = {name: hashlib.sha256() for name in checksums}
    size_mb = sum((store / name).stat().st_size for name in checksums) // 10**6
    chunks = track(_chunks(store, checksums), f"checking {_title(store)}", size_mb, "MB", _CHUNK_BYTES // 10**6)
    for name, chunk in chunks:
        digests[name].update(chunk)
    changed = [name for name, digest in digests.items() if digest.hexdigest() != checksums[name]]
    return f"the content of {changed[0]} has changed" if changed else ""


def _chunks(folder: Path, names: Iterable[str]) -> Iterator[tuple[str, bytes]]:
    for name in names:
        with (folder / name).open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                yield name, chunk


def _title(store: Path) -> str:
    """What a store is called in messages, such as "the pixel store"; its kind is the first folder in the cache."""
    kind = store.parent.name
    if store.is_relative_to(cache_folder()):
        kind = store.relative_to(cache_folder()).parts[0]
    return _TITLES.get(kind, f"the {kind} store")


def _sync(path: Path) -> None:
    """Flush a file, or a folder's list of names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
