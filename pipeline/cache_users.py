"""Which processes use a cache, and which of them ended without a word.

A process that uses a cache keeps a marker in its folder `processes`, and holds the lock on that file. The kernel gives
the lock back however the process ends, while the file goes only when it ends in order: a marker that nobody holds tells
of a process that was killed, or of a machine that stopped. In the marker stand the stores that the process has opened.
"""

import atexit
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

FOLDER = "processes"
_BURIAL = ".lock"
_FIRST_LINE = "opened:\n"
# Of this process: for each cache, the marker's lock. A forked child is another process.
_held: dict[tuple[Path, int], FileLock] = {}
_joining = threading.Lock()


def note_open(cache: Path, store: str) -> None:
    """Say in this process's marker, which is made where it is missing, that it has opened `store`."""
    marker = _join(cache)
    if store not in marker.read_text(encoding="utf-8").splitlines():
        with marker.open("a", encoding="utf-8") as file:
            file.write(f"{store}\n")


def opened(cache: Path) -> dict[str, int]:
    """Stores that living processes have opened, each with the id of one of these processes."""
    found: dict[str, int] = {}
    for marker in _markers(cache):
        with _held_if_dead(marker) as is_dead:
            if not is_dead and marker.is_file():
                stores = marker.read_text(encoding="utf-8").splitlines()[1:]
                found |= dict.fromkeys(stores, int(marker.name.split("-")[-2]))
    return found


def bury_dead(cache: Path) -> Iterator[float]:
    """When each process first used the cache (seconds since 1970) that ended without a word.

    Its marker goes once the caller has done what there is to do about it; other callers wait until then.
    """
    own = _held.get((cache, os.getpid()))
    if all(str(marker) == str(own.lock_file if own else "") for marker in _markers(cache)):
        return
    with FileLock(cache / FOLDER / _BURIAL):
        for marker in _markers(cache):
            with _held_if_dead(marker) as is_dead:
                if is_dead:
                    yield float(marker.name.split("-")[-1])
                    marker.unlink(missing_ok=True)


def leave() -> None:
    """Take this process's markers away, as it does by itself when it ends in order."""
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
            folder.mkdir(parents=True, exist_ok=True)
            marker = folder / f"{socket.gethostname()}-{os.getpid()}-{int(time.time())}"
            lock = FileLock(marker, thread_local=False)
            lock.acquire()
            marker.write_text(_FIRST_LINE, encoding="utf-8")
            atexit.register(leave)
            _held[cache, os.getpid()] = lock
    return Path(lock.lock_file)


@contextmanager
def _held_if_dead(marker: Path) -> Iterator[bool]:
    """Whether nobody holds the marker; if so, it is held until the end."""
    lock = FileLock(marker, blocking=False, thread_local=False)
    try:
        lock.acquire()
    except Timeout:
        yield False
        return
    try:
        if marker.stat().st_size:
            yield True
        else:  # its process has just left, and to lock the file was to make it anew
            marker.unlink(missing_ok=True)
            yield False
    finally:
        lock.release()


def _markers(cache: Path) -> list[Path]:
    folder = cache / FOLDER
    return sorted(path for path in folder.iterdir() if path.name != _BURIAL) if folder.is_dir() else []
