"""What lies in the cache: each store with its size, its use and its state; and how to check and to clear it."""

import json
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from pipeline.cache_users import FOLDER as PROCESSES
from pipeline.cache_users import opened
from pipeline.sidecars import LOCK, SUSPECT, USES, beside, last_used, used_by
from pipeline.store import DESCRIPTION, cache_folder, find_damage, remove, suspect_after_kills

WHOLE, DAMAGED, HALF_BUILT, UNSENT, REMEMBERED = "whole", "damaged", "half-built", "not sent", "remembered"
OUTBOX = "outbox"
INSPECTED = "inspected.sqlite"

_SPELLED = {
    "size_px": "{} px",
    "fit": "{}",
    "backbone": "{}",
    "dtype": "{}",
    "cut": "cut at {}",
    "place": "{}",
    "stage": "{}",
    "run_id": "of run {:.8}",
    "epoch": "epoch {}",
}


@dataclass(frozen=True)
class Entry:
    """Something in the cache, used last at `used` (seconds since 1970), with what it was `made_from` in a few words.

    `state` is "whole", "damaged" or "half-built" for a store, "not sent" for what is in the outbox, and "remembered"
    for the hashes of pictures.
    """

    kind: str
    path: Path
    size_bytes: int
    used: float
    made_from: str
    runs: list[str]
    state: str

    @property
    def place(self) -> Path:
        """The store that this is, or was on its way to be."""
        return self.path.with_name(self.path.name.lstrip(".").split(".")[0])


def list_entries() -> list[Entry]:
    """All that is in the cache, by kind, the last used first. Sizes are looked at, contents are not."""
    cache = cache_folder()
    found = [_entry(path) for kind in _kinds(cache) for path in sorted(kind.iterdir()) if not _is_sidecar(path)]
    inspected = cache / INSPECTED
    if inspected.exists():
        used = inspected.stat().st_mtime
        found.append(Entry("inspected", inspected, _size_bytes(inspected), used, "pictures' hashes", [], REMEMBERED))
    return sorted(found, key=lambda entry: (entry.kind, -entry.used))


def verify(remove_damaged: bool = False) -> Iterator[tuple[Entry, str]]:
    """Each store, and what is wrong with it by its contents' checksums, which is empty if nothing is.

    With `remove_damaged`, those go. A store that a process is writing is left out.
    """
    for entry in list_entries():
        with _lock_if_free(entry.place) as is_free:
            if not is_free or entry.state not in (WHOLE, DAMAGED) or not entry.path.exists():
                continue
            damages = (find_damage(store, contents=True) for store in _stores(entry.path))
            damage = next(filter(None, damages), "")
            if not damage:
                beside(entry.place, SUSPECT).unlink(missing_ok=True)
            elif remove_damaged:
                remove(entry.place)
        yield entry, damage


def clear(older_than_seconds: float | None = None, max_bytes: float | None = None) -> Iterator[tuple[Entry, str]]:
    """Remove stores: all of them; or those not used for `older_than_seconds`, and then the least recently used until
    the rest takes no more than `max_bytes`. Yields each with why it stays, which is empty if it is gone.

    What is half-built goes in any case, and so do markers and locks that nobody holds. What a living process is writing
    or has opened stays, and what is in the outbox, for it is nowhere else.
    """
    cache = cache_folder()
    suspect_after_kills(cache)
    everything = older_than_seconds is None and max_bytes is None
    entries = sorted(list_entries(), key=lambda entry: (entry.state != HALF_BUILT, entry.used))
    left_bytes = sum(entry.size_bytes for entry in entries)
    now = time.time()
    stays = False
    for entry in entries:
        is_old = older_than_seconds is not None and entry.used < now - older_than_seconds
        is_too_much = max_bytes is not None and left_bytes > max_bytes
        if entry.state != REMEMBERED and (everything or is_old or is_too_much or entry.state == HALF_BUILT):
            why = _remove_unused(cache, entry)
            left_bytes -= 0 if why else entry.size_bytes
            stays |= bool(why)
            yield entry, why
    if everything and not stays:
        for entry in (entry for entry in entries if entry.state == REMEMBERED):
            entry.path.unlink(missing_ok=True)
            yield entry, ""
    _remove_stray_sidecars(cache)


def spell(made_from: Mapping[str, Any]) -> str:
    """What a store was made from, in a few words, such as "resnet18, 128 px, crop, grey"; hashes are left out."""
    order = {key: index for index, key in enumerate(("place", "run_id", "stage", "epoch", "backbone"))}
    words = []
    for key, value in sorted(made_from.items(), key=lambda item: order.get(item[0], len(order))):
        if key in _SPELLED:
            words.append(_SPELLED[key].format(value))
        elif value is True:
            words.append(key)
    return ", ".join(words)


def _entry(path: Path) -> Entry:
    kind = path.parent.name
    stores = _stores(path)
    if kind == OUTBOX:
        state = UNSENT
    elif path.name.startswith(".") or not all((store / DESCRIPTION).exists() for store in stores):
        state = HALF_BUILT
    else:
        state = DAMAGED if any(find_damage(store) for store in stores) else WHOLE
    size_bytes = _size_bytes(path)
    return Entry(kind, path, size_bytes, last_used(path), spell(_made_from(stores[-1])), used_by(path), state)


def _stores(path: Path) -> list[Path]:
    """The store at `path`, or, where it is a folder of stores, these."""
    within = sorted(description.parent for description in path.glob(f"*/{DESCRIPTION}"))
    return [path] if (path / DESCRIPTION).exists() or not within else within


def _made_from(store: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError, KeyError, TypeError):
        return dict(json.loads((store / DESCRIPTION).read_text(encoding="utf-8"))["made_from"])
    return {}


def _remove_unused(cache: Path, entry: Entry) -> str:
    """Remove it, or say why it stays."""
    if entry.state == UNSENT:
        return "it is not sent yet; `python -m pipeline tracking send` sends it"
    with _lock_if_free(entry.place) as is_free:
        if not is_free:
            return "a process is writing it"
        pid = opened(cache).get(f"{entry.kind}/{entry.path.name}")
        if pid is not None:
            return f"process {pid} has opened it"
        if entry.path == entry.place:
            remove(entry.place)
        elif entry.path.is_dir():
            shutil.rmtree(entry.path, ignore_errors=True)
        else:
            entry.path.unlink(missing_ok=True)
    return ""


def _remove_stray_sidecars(cache: Path) -> None:
    for place in {path.with_suffix("") for kind in _kinds(cache) for path in kind.iterdir() if _is_sidecar(path)}:
        with _lock_if_free(place) as is_free:
            if is_free:
                for suffix in (LOCK,) if place.exists() else (USES, SUSPECT, LOCK):
                    beside(place, suffix).unlink(missing_ok=True)


@contextmanager
def _lock_if_free(place: Path) -> Iterator[bool]:
    """Whether nobody holds the lock of a store; if so, it is held until the end, and a file made for that goes."""
    path = beside(place, LOCK)
    was_there = path.exists()
    lock = FileLock(path, blocking=False)
    try:
        lock.acquire()
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        if not was_there:  # whoever waits for it sees that it has gone, and makes another
            path.unlink(missing_ok=True)
        lock.release()


def _kinds(cache: Path) -> list[Path]:
    return sorted(path for path in cache.glob("*") if path.is_dir() and path.name != PROCESSES)


def _is_sidecar(path: Path) -> bool:
    return path.suffix in (LOCK, USES, SUSPECT) and not path.is_dir()


def _size_bytes(path: Path) -> int:
    total = 0
    for file in (path, *path.rglob("*")):
        with suppress(OSError):  # it may be going just now
            total += file.stat().st_size if file.is_file() else 0
    return total
