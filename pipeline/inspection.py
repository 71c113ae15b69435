"""Every picture opened once: its content hash, size and mode, or why it cannot be trained on.

What was found is remembered by (path, size, modification time), so that the next start opens nothing again.
"""

import hashlib
import os
import sqlite3
import warnings
from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from pipeline.console import track
from pipeline.parallel import in_parallel
from pipeline.picture_file import loaded, upright_size
from pipeline.store import cache_folder

# A new name for the table wherever its columns, or what stands in them, change.
_SCHEMA = """create table if not exists inspected_upright (
    path text primary key, bytes integer, modified_ns integer,
    hash text, width_px integer, height_px integer, mode text) without rowid"""
# So many pictures are held at a time, and what was found is written down after each so many.
PICTURES_AT_ONCE = 256


class Inspected(NamedTuple):
    """One picture's SHA-256, its size as it is looked at (turned as its EXIF says) and its Pillow mode; `error` is
    empty if it decodes whole."""

    hash: str
    width_px: int
    height_px: int
    mode: str
    error: str


def inspect_all(root: Path, paths: Sequence[str]) -> Iterator[Inspected]:
    """What each file, by its path below `root`, holds, in the order of `paths`; files that are new or have changed
    are decoded in parallel. What could not be decoded is tried again each time, as a decoder may have come."""
    with closing(_remembered()) as database:
        starts = range(0, len(paths), PICTURES_AT_ONCE)
        parts = (_inspect_part(database, root, paths[start : start + PICTURES_AT_ONCE]) for start in starts)
        yield from track(chain.from_iterable(parts), "inspecting pictures", len(paths), "images")


def inspect_picture(path: Path) -> Inspected:
    """Read, hash and decode one file; never raises for what is in it."""
    try:
        content = path.read_bytes()
    except (OSError, ValueError) as error:
        return Inspected("", 0, 0, "", f"cannot be read: {getattr(error, 'strerror', None) or error}")
    digest = hashlib.sha256(content).hexdigest()
    if not content:
        return Inspected(digest, 0, 0, "", "is empty")
    try:
        # A JPEG that is whole at its smallest scale is whole.
        with loaded(content, least_px=1) as picture:
            mode = picture.mode
        return Inspected(digest, *upright_size(content), mode, "")
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise whatever their format's parser does
        reason = " ".join(str(error).replace(str(path), "").split()) or type(error).__name__
        return Inspected(digest, 0, 0, "", f"cannot be decoded: {reason}")


def _inspect_part(database: sqlite3.Connection, root: Path, paths: Sequence[str]) -> list[Inspected]:
    keys = {place: _key(place) for place in (os.path.join(root, path) for path in paths)}
    marks = ",".join("?" * len(keys))
    rows = database.execute(f"select * from inspected_upright where path in ({marks})", list(keys))
    found = {
        place: Inspected(content, width, height, mode, "")
        for place, size, modified, content, width, height, mode in rows
        if (size, modified) == keys[place]
    }
    new = [place for place in keys if place not in found]
    if new:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what Pillow finds odd, only what stops it matters
            results = dict(zip(new, in_parallel(inspect_picture, [Path(place) for place in new]), strict=True))
        good = [(place, *keys[place], *one[:-1]) for place, one in results.items() if not one.error]
        database.executemany("insert or replace into inspected_upright values (?, ?, ?, ?, ?, ?, ?)", good)
        database.commit()
        found |= results
    return [found[place] for place in keys]


def _key(place: str) -> tuple[int, int]:
    """(bytes, modification time in ns); the time is -1 where the file cannot be looked at."""
    try:
        status = os.stat(place)
    except (OSError, ValueError):
        return 0, -1
    return status.st_size, status.st_mtime_ns


def _remembered() -> sqlite3.Connection:
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    database = sqlite3.connect(folder / "inspected.sqlite", timeout=60)
    database.execute(_SCHEMA)
    return database
