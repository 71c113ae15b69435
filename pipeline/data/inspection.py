"""Inspects every picture once: its content hash, size and mode, or why it cannot be trained on.

Results are remembered by (path, size, modification time), so that the next start opens no picture again.
"""

import hashlib
import json
import os
import sqlite3
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, nullcontext
from itertools import chain
from pathlib import Path
from typing import NamedTuple, TypeAlias

from pipeline.cache.location import cache_folder, check_cache, report_unwritable, share
from pipeline.data.decode import loaded, upright_size
from pipeline.data.deep import measure, mode_of
from pipeline.ranks.environment import own_rank
from pipeline.system.console import track
from pipeline.system.later import later
from pipeline.system.parallel import Item, Result, in_parallel

# The table gets a new name when its columns or their meaning change.
_SCHEMA = """create table if not exists inspected_deep (
    path text primary key, bytes integer, modified_ns integer,
    hash text, width_px integer, height_px integer, mode text, span text) without rowid"""
# Results are written to the database after so many pictures for each process.
PICTURES_AT_ONCE = 256
MOST_AT_ONCE = 16_384  # SQLite takes 32,766 paths in a query
# A path, and what `_file_state` gives of it.
File: TypeAlias = tuple[str, int, int]


class Inspected(NamedTuple):
    """One picture's SHA-256, its size when it is upright (turned by its EXIF orientation), its mode (see
    `deep.mode_of`), and if it is deep the span of its numbers, as JSON; `error` is empty if it can be decoded
    completely."""

    hash: str
    width_px: int
    height_px: int
    mode: str
    span: str
    error: str


def inspect_all(root: Path, paths: Sequence[str]) -> Iterator[Inspected]:
    """Inspect the files at `paths` below `root`, in this order; new and changed files are decoded in parallel, by
    helpers too if there are any.

    Pictures that could not be decoded are tried again each time, since a decoder may have been installed meanwhile.
    """
    processes = own_rank().processes
    shared = later("pipeline.data.joint.sharing.shared") if processes > 1 else nullcontext  # which loads torch
    with closing(_open_database()) as database, shared(inspect_files) as inspect:
        at_once = min(PICTURES_AT_ONCE * processes, MOST_AT_ONCE)
        starts = range(0, len(paths), at_once)
        chunks = (_inspect_chunk(database, root, paths[start : start + at_once], inspect) for start in starts)
        yield from track(chain.from_iterable(chunks), "inspecting pictures", len(paths), "images")


def inspect_picture(path: Path) -> Inspected:
    """Read, hash and decode one file; no content raises an error."""
    try:
        content = path.read_bytes()
    except (OSError, ValueError) as error:
        return Inspected("", 0, 0, "", "", f"cannot be read: {getattr(error, 'strerror', None) or error}")
    digest = hashlib.sha256(content).hexdigest()
    if not content:
        return Inspected(digest, 0, 0, "", "", "is empty")
    try:
        # A JPEG that is complete at its smallest scale is complete.
        with loaded(content, least_px=1) as picture:
            mode, span = mode_of(picture, content), measure(picture, content)
        return Inspected(digest, *upright_size(content), mode, json.dumps(span) if span else "", "")
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise any error that a parser of their format does
        reason = " ".join(str(error).replace(str(path), "").split()) or type(error).__name__
        return Inspected(digest, 0, 0, "", "", f"cannot be decoded: {reason}")


def inspect_files(files: Sequence[File]) -> list[Inspected | None]:
    """Inspect files by several threads; None for those that on this machine have another size or time."""
    return _without_warnings(_inspect_if_same, files)


def _without_warnings(inspect: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # only errors matter
        return list(in_parallel(inspect, items))


def _inspect_if_same(file: File) -> Inspected | None:
    path, *state = file
    return inspect_picture(Path(path)) if _file_state(path) == tuple(state) else None


def _inspect_chunk(
    database: sqlite3.Connection,
    root: Path,
    relative_paths: Sequence[str],
    inspect: Callable[[Sequence[File]], list[Inspected | None]],
) -> list[Inspected]:
    keys = {path: _file_state(path) for path in (os.path.join(root, relative) for relative in relative_paths)}
    marks = ",".join("?" * len(keys))
    rows = database.execute(f"select * from inspected_deep where path in ({marks})", list(keys))
    found = {
        path: Inspected(digest, width, height, mode, span, "")
        for path, size, modified, digest, width, height, mode, span in rows
        if (size, modified) == keys[path]
    }
    new = [path for path in keys if path not in found]
    if new:
        inspected = zip(new, inspect([(path, *keys[path]) for path in new]), strict=True)
        results = {path: one for path, one in inspected if one is not None}
        rest = [path for path in new if path not in results]  # of helpers that do not see this very file
        results |= zip(rest, _without_warnings(inspect_picture, [Path(path) for path in rest]), strict=True)
        good = [(path, *keys[path], *one[:-1]) for path, one in results.items() if not one.error]
        database.executemany("insert or replace into inspected_deep values (?, ?, ?, ?, ?, ?, ?, ?)", good)
        database.commit()
        found |= results
    return [found[path] for path in keys]


def _file_state(path: str) -> tuple[int, int]:
    """(bytes, modification time in ns); the time is -1 if they cannot be read."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return 0, -1
    return status.st_size, status.st_mtime_ns


def _open_database() -> sqlite3.Connection:
    check_cache()
    path = cache_folder() / "inspected.sqlite"
    with report_unwritable():
        path.open("ab").close()  # SQLite's own errors name no file
    share(path)
    database = sqlite3.connect(path, timeout=60)
    database.execute(_SCHEMA)
    return database
