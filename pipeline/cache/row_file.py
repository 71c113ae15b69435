"""A file of rows that is written row by row, such as a store's pixels.

A journal beside it has a line, with a checksum, for each stretch of rows that is on the disk: what was killed is
resumed after the last of these lines.
"""

import hashlib
import io
import math
import os
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from io import FileIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from numpy.lib.format import write_array_header_1_0

from pipeline.cache.location import make_folder, share

Shape = tuple[int, ...]
Numbers = npt.NDArray[np.uint8]

JOURNAL = "journal"
# A stretch ends after so many bytes or seconds, whichever comes first: a kill loses at most this.
STRETCH_BYTES, STRETCH_SECONDS = 64 * 2**20, 2.0


def write_rows(path: Path, shape: Shape, rows_from: Callable[[int], Iterator[Numbers]]) -> str:
    """Write the file at `path`: all rows of an array of `shape` in uint8, as numpy's .npy. Gives its SHA-256.

    `rows_from` is called with the number of finished rows, and yields the others in order, in arrays of one or more. If
    it raises an error, the rows before are kept.
    """
    make_folder(path.parent)
    done, digest = finished_rows(path, shape)
    with FileIO(path, "r+" if done else "w+") as file, journal_of(path).open("ab") as journal:
        share(path)
        share(journal_of(path))
        if not done:
            journal.truncate(0)
            _write_all(file, memoryview(_header(shape)))
        file.seek(0, io.SEEK_END)
        blocks = rows_from(done)
        with ExitStack() as stack:
            if isinstance(blocks, Generator):  # whoever else decodes them has to hear of an error
                stack.callback(blocks.close)
            _write_stretches(file, journal, digest, done, blocks)
    return digest.hexdigest()


def journal_of(path: Path) -> Path:
    """The journal of the file at `path`."""
    return path.with_name(JOURNAL)


def finished_rows(path: Path, shape: Shape) -> tuple[int, "hashlib._Hash"]:
    """The number of finished rows of the file at `path`, and its SHA-256 up to their end, to be continued; what follows
    them is cut off."""
    header = _header(shape)
    try:
        lines = journal_of(path).read_bytes().splitlines(keepends=True)
        with path.open("r+b") as file:
            if file.read(len(header)) != header:
                return 0, hashlib.sha256(header)
            rows, kept, digest = _whole_stretches(file, lines, shape)
            file.truncate(len(header) + rows * math.prod(shape[1:]))
    except OSError:
        return 0, hashlib.sha256(header)
    os.truncate(journal_of(path), kept)
    return rows, digest


def _whole_stretches(file: BinaryIO, lines: list[bytes], shape: Shape) -> tuple[int, int, "hashlib._Hash"]:
    """(rows, bytes of the journal, digest) up to the first line that is incomplete or does not match; `file` has been
    read up to its first row."""
    rows, kept, digest = 0, 0, hashlib.sha256(_header(shape))
    for line in lines:
        end, _, checksum = line.decode(errors="replace").partition(" ")
        if not line.endswith(b"\n") or not end.isdigit() or not rows < int(end) <= shape[0]:
            break
        further = digest.copy()
        _digest(file, (int(end) - rows) * math.prod(shape[1:]), further)
        if further.hexdigest() != checksum.strip():
            break
        rows, kept, digest = int(end), kept + len(line), further
    return rows, kept, digest


def _digest(file: BinaryIO, count: int, digest: "hashlib._Hash") -> None:
    """Update `digest` with the next `count` bytes, or with all that are left."""
    while count > 0 and (chunk := file.read(min(count, 2**20))):
        digest.update(chunk)
        count -= len(chunk)


def _header(shape: Shape) -> bytes:
    header = io.BytesIO()
    write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return header.getvalue()


def _write_stretches(
    file: FileIO, journal: BinaryIO, digest: "hashlib._Hash", row: int, blocks: Iterator[Numbers]
) -> None:
    """Write the rows from number `row` on, update `digest`, and add a line to the journal after each stretch.

    Digesting a stretch, writing it and having it on the disk take about as long each, and all of them release Python's
    lock: each has a thread, and the disk still takes one stretch while the next one is written.
    """
    started, size = time.monotonic(), 0
    with ThreadPoolExecutor(1) as digesting, ThreadPoolExecutor(1) as writing, ThreadPoolExecutor(1) as ending:
        written: Future[Any] = writing.submit(int)  # nothing
        ended = written

        def end_stretch() -> None:
            nonlocal started, size, ended
            ended.result()  # of the stretch before: blocks of no more than two stretches wait in memory
            if size:
                ended = ending.submit(_end_stretch, file, journal, row, digesting.submit(digest.hexdigest), written)
            started, size = time.monotonic(), 0

        try:
            for block in blocks:
                content = np.ascontiguousarray(block).data.cast("B")
                digesting.submit(digest.update, content)
                written = writing.submit(_write_after, file, content, written)
                row, size = row + len(block), size + block.nbytes
                if size >= STRETCH_BYTES or time.monotonic() - started >= STRETCH_SECONDS:
                    end_stretch()
        finally:
            end_stretch()
            ended.result()


def _write_after(file: FileIO, content: memoryview, before: "Future[Any]") -> None:
    """Write all of the content, unless what comes before it could not be written."""
    before.result()
    _write_all(file, content)


def _write_all(file: FileIO, content: memoryview) -> None:
    """Write all of the content; the system may take less at a time."""
    while content:
        content = content[file.write(content) :]


def _end_stretch(file: FileIO, journal: BinaryIO, row: int, digest: "Future[str]", written: "Future[Any]") -> None:
    written.result()
    os.fsync(file.fileno())
    journal.write(f"{row} {digest.result()}\n".encode())
    journal.flush()
    os.fsync(journal.fileno())
