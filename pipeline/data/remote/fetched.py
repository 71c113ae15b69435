"""What was fetched: which files, in which state, and when that was last asked.

It lies beside the files, so that whoever removes them removes it too. A file counts if it has the size that it came in.
"""

import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple

from pipeline.cache.location import make_folder, report_unwritable, share

# Hidden, which no place of a picture is.
NAME, UNFINISHED = ".fetched.sqlite", ".unfinished"
ROWS_AT_ONCE = 500
ABSENT = -1
_SCHEMA = """create table if not exists fetched (
    place text primary key, address text, bytes integer, stamp text, asked_seconds real) without rowid"""


class Fetched(NamedTuple):
    """A file at `place` below its folder, of so many `bytes`; `stamp` is its state as the server told it, and
    `asked_seconds` when that was, since 1970. Where the server did not give it, `bytes` is ABSENT, and `stamp` says
    why."""

    place: str
    address: str
    bytes: int
    stamp: str
    asked_seconds: float


class FetchedFiles:
    """The files in `folder`; see `open_fetched`."""

    def __init__(self, folder: Path, database: sqlite3.Connection) -> None:
        self.folder = folder
        self._database = database

    def find(self, places: Sequence[str]) -> dict[str, Fetched]:
        """Those of `places` that are there as they came."""
        return {one.place: one for one in self._rows(places) if _size(self.folder / one.place) == one.bytes}

    def absences(self, places: Sequence[str]) -> dict[str, str]:
        """Why those of `places` that the server did not give when it was last asked are not there."""
        return {one.place: one.stamp for one in self._rows(places) if one.bytes == ABSENT}

    def _rows(self, places: Sequence[str]) -> Iterator[Fetched]:
        for start in range(0, len(places), ROWS_AT_ONCE):
            some = places[start : start + ROWS_AT_ONCE]
            marks = ",".join("?" * len(some))
            rows = self._database.execute(f"select * from fetched where place in ({marks})", some)
            yield from (Fetched(*row) for row in rows)

    def note(self, files: Sequence[Fetched]) -> None:
        """Remember that these are there, and how."""
        self._database.executemany("insert or replace into fetched values (?, ?, ?, ?, ?)", files)
        self._database.commit()


@contextmanager
def open_fetched(folder: Path) -> Iterator[FetchedFiles]:
    """What is in `folder`, which is made if need be."""
    with report_unwritable():
        make_folder(folder)
        (folder / NAME).open("ab").close()  # SQLite's own errors name no file
    share(folder / NAME)
    with closing(sqlite3.connect(folder / NAME, timeout=60, check_same_thread=False)) as database:
        database.execute(_SCHEMA)
        yield FetchedFiles(folder, database)


def _size(path: Path) -> int | None:
    try:
        return os.stat(path).st_size
    except OSError:
        return None
