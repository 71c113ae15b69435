"""Files in the cache that are no store: its lock, the runs that used it, and which processes use the cache.

Each process that opens a store holds a lock on a marker of its own, a file that lists the stores it has opened.
"""

import atexit
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from pipeline.cache.location import make_folder, share

# Files beside a store, and temporary folders of stores that are being built or removed.
LOCK, USES = ".lock", ".uses"
BUILDING, DISCARDED = "building", "discarded"
# The folder of the processes' markers.
FOLDER = "processes"
_FIRST_LINE = "opened:\n"

# The locks of this process's markers by cache and process id: a forked child is another process.
_held: dict[tuple[Path, int], FileLock] = {}
_joining = threading.Lock()


def beside(store: Path, suffix: str) -> Path:
    """The file with this suffix beside a store."""
    return store.with_name(store.name + suffix)


def new_name(store: Path, purpose: str) -> Path:
    """An unused name beside a store, for a folder that is being built or has been discarded."""
    return store.with_name(f".{store.name}.{purpose}-{uuid.uuid4().hex[:8]}")


def half_done(store: Path) -> list[Path]:
    """The folders that interrupted builds or removals of a store have left."""
    return [left for purpose in (BUILDING, DISCARDED) for left in store.parent.glob(f".{store.name}.{purpose}-*")]


@contextmanager
def lock_if_free(path: Path) -> Iterator[bool]:
    """Locks a file during the block, unless another process holds it, or another user owns it; gives whether it did.

    If there was no such file, it is removed again.
    """
    was_there = path.exists()
    lock = FileLock(path, blocking=False)
    try:
        lock.acquire()
    except (Timeout, PermissionError):
        yield False
        return
    try:
        yield True
    finally:
        if not was_there:  # a process that waits for the lock notices, and makes a new file
            path.unlink(missing_ok=True)
        lock.release()


def note_use(store: Path, run_id: str) -> None:
    """Record that a run used a store, and that it was used now."""
    if run_id not in used_by(store):
        with beside(store, USES).open("a", encoding="utf-8") as file:  # a short line is written in one piece
            file.write(f"{run_id}\n")
        share(beside(store, USES))
    beside(store, USES).touch()


def used_by(store: Path) -> list[str]:
    """The ids of the runs that used a store, the first one first."""
    uses = beside(store, USES)
    return list(dict.fromkeys(uses.read_text(encoding="utf-8").split())) if uses.exists() else []


def last_used(store: Path) -> float:
    """When a store was last opened, or else last changed, in seconds since 1970."""
    uses = beside(store, USES)
    try:
        return (uses if uses.exists() else store).stat().st_mtime
    except OSError:  # it has just been removed
        return time.time()


def note_open(cache: Path, store: str) -> None:
    """Record in this process's marker, which is created if need be, that it has opened `store`."""
    marker = _join(cache)
    if store not in marker.read_text(encoding="utf-8").splitlines():
        with marker.open("a", encoding="utf-8") as file:
            file.write(f"{store}\n")


def opened_stores(cache: Path) -> dict[str, int]:
    """Stores that living processes have opened, each with the id of one of these processes."""
    remove_dead_markers(cache)
    found: dict[str, int] = {}
    for marker in _markers(cache):
        with suppress(OSError):  # its process has just ended
            stores = marker.read_text(encoding="utf-8").splitlines()[1:]
            found |= dict.fromkeys(stores, int(marker.name.split("-")[-2]))
    return found


def remove_dead_markers(cache: Path) -> None:
    """Remove the markers of processes that were killed."""
    for marker in _markers(cache):
        with lock_if_free(marker) as is_dead:
            if is_dead:
                marker.unlink(missing_ok=True)


def leave() -> None:
    """Remove this process's markers, as is done at its exit."""
    for (cache, pid), lock in list(_held.items()):
        if pid == os.getpid():
            Path(lock.lock_file).unlink(missing_ok=True)
            lock.release(force=True)
            del _held[cache, pid]


def _join(cache: Path) -> Path:
    with _joining:
        lock = _held.get((cache, os.getpid()))
        if lock is None:
            folder = cache / FOLDER
            make_folder(folder)
            remove_dead_markers(cache)
            marker = folder / f"{socket.gethostname()}-{os.getpid()}-{int(time.time())}"
            lock = FileLock(marker, thread_local=False)
            lock.acquire()
            share(marker)
            marker.write_text(_FIRST_LINE, encoding="utf-8")
            atexit.register(leave)
            _held[cache, os.getpid()] = lock
    return Path(lock.lock_file)


def _markers(cache: Path) -> list[Path]:
    return sorted((cache / FOLDER).glob("*-*-*"))
