"""Lists, verifies and clears the cache: each store with its size, its last use and its state."""

import json
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.cache.location import cache_folder
from pipeline.cache.markers import FOLDER as PROCESSES
from pipeline.cache.markers import (
    LOCK,
    USES,
    beside,
    last_used,
    lock_if_free,
    opened_stores,
    remove_dead_markers,
    used_by,
)
from pipeline.cache.store import DESCRIPTION, find_damage, remove, size_bytes

WHOLE, DAMAGED, HALF_BUILT, UNSENT = "whole", "damaged", "half-built", "not sent"
REMEMBERED, FETCHED = "remembered", "fetched"
OUTBOX = "outbox"
INSPECTED = "inspected.sqlite"
# The folder of pictures that a table names by their addresses; one entry, since sets share them.
PICTURES = "pictures"
# How the parts of a store's key are written in a listing.
_FORMATS = {
    "size_px": "{} px",
    "fit": "{}",
    "backbone": "{}",
    "dtype": "{}",
    "cut": "cut at {}",
    "decoder": "{}",
    "precision": "{}",
    "place": "{}",
    "stage": "{}",
    "run_id": "of run {:.8}",
    "epoch": "epoch {}",
}


@dataclass(frozen=True)
class Entry:
    """An entry of the cache, last used at `used` (seconds since 1970), with what it was `made_from` in a few words.

    `state` is "whole", "damaged" or "half-built" for a store, "not sent" in the outbox, "remembered" for the
    hashes of pictures, and "fetched" for pictures from elsewhere.
    """

    kind: str
    path: Path
    size_bytes: int
    used: float
    made_from: str
    runs: list[str]
    state: str

    @property
    def store(self) -> Path:
        """The store that this is, or was to become."""
        return self.path.with_name(self.path.name.lstrip(".").split(".")[0])


def list_entries() -> list[Entry]:
    """All entries of the cache, by kind, the last used first. Sizes are checked, contents are not."""
    cache = cache_folder()
    found = [_entry(path) for kind in _kinds(cache) for path in sorted(kind.iterdir()) if not _is_sidecar(path)]
    inspected = cache / INSPECTED
    if inspected.exists():
        used = inspected.stat().st_mtime
        found.append(Entry("inspected", inspected, size_bytes(inspected), used, "pictures' hashes", [], REMEMBERED))
    pictures = cache / PICTURES
    if pictures.is_dir():
        facts = size_bytes(pictures), last_used(pictures), "pictures from elsewhere", used_by(pictures)
        found.append(Entry(PICTURES, pictures, *facts, FETCHED))
    return sorted(found, key=lambda entry: (entry.kind, -entry.used))


def verify(remove_damaged: bool = False) -> Iterator[tuple[Entry, str]]:
    """Yield each store with what is wrong with it by the checksums of its contents, which is empty if nothing is.

    With `remove_damaged`, damaged stores are removed. A store that a process is writing is left out.
    """
    for entry in list_entries():
        with lock_if_free(beside(entry.store, LOCK)) as is_free:
            if not is_free or entry.state not in (WHOLE, DAMAGED) or not entry.path.exists():
                continue
            damages = (find_damage(store, contents=True) for store in _stores(entry.path))
            damage = next(filter(None, damages), "")
            if damage and remove_damaged:
                remove(entry.store)
        yield entry, damage


def clear(older_than_seconds: float | None = None, max_bytes: float | None = None) -> Iterator[tuple[Entry, str]]:
    """Remove stores: all of them; or those not used for `older_than_seconds`, and then the least recently used until
    the rest takes no more than `max_bytes`. Yields each with why it stays, which is empty if it was removed.

    Half-built stores are always removed, and so are markers and locks that no process holds. Stores that a living
    process is writing or has opened stay, and so does the outbox, since its entries exist nowhere else.
    """
    cache = cache_folder()
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
    remove_dead_markers(cache)
    _remove_stray_sidecars(cache)


def format_made_from(made_from: Mapping[str, Any]) -> str:
    """What a store was made from, in a few words, such as "resnet18, 128 px, crop, grey"; hashes are left out."""
    order = {key: index for index, key in enumerate(("place", "run_id", "stage", "epoch", "backbone"))}
    words = []
    for key, value in sorted(made_from.items(), key=lambda item: order.get(item[0], len(order))):
        if key in _FORMATS:
            words.append(_FORMATS[key].format(value))
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
    made_from = format_made_from(_made_from(stores[-1]))
    return Entry(kind, path, size_bytes(path), last_used(path), made_from, used_by(path), state)


def _stores(path: Path) -> list[Path]:
    """The store at `path`, or the stores in it if it is a folder of stores."""
    within = sorted(description.parent for description in path.glob(f"*/{DESCRIPTION}"))
    return [path] if (path / DESCRIPTION).exists() or not within else within


def _made_from(store: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError, KeyError, TypeError):
        return dict(json.loads((store / DESCRIPTION).read_text(encoding="utf-8"))["made_from"])
    return {}


def _remove_unused(cache: Path, entry: Entry) -> str:
    """Remove an entry, or say why it stays."""
    if entry.state == UNSENT:
        return "it is not sent yet; `python -m pipeline tracking send` sends it"
    with lock_if_free(beside(entry.store, LOCK)) as is_free:
        if not is_free:
            return "a process is writing it"
        pid = opened_stores(cache).get(f"{entry.kind}/{entry.path.name}")
        if pid is not None:
            return f"process {pid} has opened it"
        if entry.path == entry.store:
            remove(entry.store)
        elif entry.path.is_dir():
            shutil.rmtree(entry.path, ignore_errors=True)
        else:
            entry.path.unlink(missing_ok=True)
    return ""


def _remove_stray_sidecars(cache: Path) -> None:
    for store in {path.with_suffix("") for kind in _kinds(cache) for path in kind.iterdir() if _is_sidecar(path)}:
        with lock_if_free(beside(store, LOCK)) as is_free:
            if is_free:
                for suffix in (LOCK,) if store.exists() else (USES, LOCK):
                    beside(store, suffix).unlink(missing_ok=True)


def _kinds(cache: Path) -> list[Path]:
    inside = cache.iterdir() if cache.exists() else ()  # unlike glob, that does not take a folder for empty
    return sorted(path for path in inside if path.is_dir() and path.name not in (PROCESSES, PICTURES))


def _is_sidecar(path: Path) -> bool:
    return path.suffix in (LOCK, USES) and not path.is_dir()
