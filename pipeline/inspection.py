"""Every picture opened once: its content hash, size and mode, or why it cannot be trained on.

What was found is remembered by (path, size, modification time), so that the next start opens nothing again.
"""

import hashlib
import sqlite3
import warnings
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import astuple, dataclass
from io import BytesIO
from pathlib import Path

from PIL import Image

from pipeline.console import track
from pipeline.parallel import in_parallel
from pipeline.store import cache_folder

_SCHEMA = """create table if not exists inspected (
    path text, bytes integer, modified_ns integer,
    hash text, width_px integer, height_px integer, mode text, error text,
    primary key (path, bytes, modified_ns)) without rowid"""


@dataclass(frozen=True)
class Inspected:
    """One picture's SHA-256, size and Pillow mode; `error` is empty if it decodes whole."""

    hash: str
    width_px: int
    height_px: int
    mode: str
    error: str


def inspect_all(paths: Sequence[Path]) -> list[Inspected]:
    """What each file holds, in the order of `paths`; files that are new or have changed are decoded in parallel."""
    keys = [_key(path) for path in paths]
    with closing(_remembered()) as database:
        known = {
            (row[0], row[1], row[2]): Inspected(*row[3:])
            for folder in sorted({str(path.parent) for path in paths})
            for row in database.execute(
                "select * from inspected where path >= ? and path < ?", (f"{folder}/", f"{folder}0")
            )
        }
        new = [index for index, key in enumerate(keys) if key not in known]
        for index, inspected in zip(new, _inspect_in_parallel([paths[index] for index in new]), strict=True):
            known[keys[index]] = inspected
            if inspected.hash:  # what could not be read may be readable next time
                row = (*keys[index], *astuple(inspected))
                database.execute("insert or replace into inspected values (?, ?, ?, ?, ?, ?, ?, ?)", row)
        database.commit()
    return [known[key] for key in keys]


def inspect_picture(path: Path) -> Inspected:
    """Read, hash and decode one file; never raises for what is in it."""
    try:
        content = path.read_bytes()
    except OSError as error:
        return Inspected("", 0, 0, "", f"cannot be read: {error.strerror}")
    digest = hashlib.sha256(content).hexdigest()
    if not content:
        return Inspected(digest, 0, 0, "", "is empty")
    try:
        with warnings.catch_warnings(), Image.open(BytesIO(content)) as picture:
            warnings.simplefilter("ignore")
            picture.load()
            return Inspected(digest, picture.width, picture.height, picture.mode, "")
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise whatever their format's parser does
        reason = " ".join(str(error).replace(str(path), "").split()) or type(error).__name__
        return Inspected(digest, 0, 0, "", f"cannot be decoded: {reason}")


def _key(path: Path) -> tuple[str, int, int]:
    """(path, bytes, modification time in ns); the time is -1 where the file cannot be looked at."""
    try:
        status = path.stat()
    except OSError:
        return str(path), 0, -1
    return str(path), status.st_size, status.st_mtime_ns


def _remembered() -> sqlite3.Connection:
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    database = sqlite3.connect(folder / "inspected.sqlite", timeout=60)
    database.execute(_SCHEMA)
    return database


def _inspect_in_parallel(paths: Sequence[Path]) -> Iterator[Inspected]:
    yield from track(in_parallel(inspect_picture, paths), "inspecting pictures", len(paths), "images")
