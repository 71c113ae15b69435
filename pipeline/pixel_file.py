"""A file of pixels that is written row by row and, when the writer is killed, gone on with from the rows it finished.

A journal beside it has a line for each stretch of rows: how many rows there are up to its end, and the SHA-256 of the
file up to there. The line is written when the rows are on the disk, so a row that is not covered is never taken for
done; and the last line has the checksum of the whole file, which so is never read again for it.
"""

import hashlib
import io
import math
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.lib.format import write_array_header_1_0

from pipeline.decode import Pixels

FILE = "pixels.npy"
JOURNAL = "journal"
# A stretch ends after so much, whichever comes first: what a kill can cost at most.
STRETCH_BYTES, STRETCH_SECONDS = 64 * 2**20, 2.0

Shape = tuple[int, int, int, int]


def write_rows(folder: Path, shape: Shape, rows_from: Callable[[int], Iterator[Pixels]]) -> str:
    """Write FILE in `folder`: all rows of an array of `shape` in uint8, as numpy's .npy. Gives the file's SHA-256.

    `rows_from` is given the number of rows that are finished, and yields the others in order, in arrays of one or more
    of them. What it raises comes up, and the rows before that are kept.
    """
    folder.mkdir(parents=True, exist_ok=True)
    done, digest = finished_rows(folder, shape)
    with (folder / FILE).open("r+b" if done else "w+b") as file, (folder / JOURNAL).open("ab") as journal:
        if not done:
            journal.truncate(0)
            file.write(_header(shape))
        file.seek(0, io.SEEK_END)
        _write_stretches(file, journal, digest, done, rows_from(done))
    return digest.hexdigest()


def finished_rows(folder: Path, shape: Shape) -> tuple[int, "hashlib._Hash"]:
    """How many rows from the first on are whole in `folder`, and the SHA-256 of the file up to their end, to be gone on
    with; what lies behind them is cut off."""
    header = _header(shape)
    try:
        lines = (folder / JOURNAL).read_bytes().splitlines(keepends=True)
        with (folder / FILE).open("r+b") as file:
            if file.read(len(header)) != header:
                return 0, hashlib.sha256(header)
            rows, kept, digest = _whole_stretches(file, lines, shape)
            file.truncate(len(header) + rows * math.prod(shape[1:]))
    except OSError:
        return 0, hashlib.sha256(header)
    os.truncate(folder / JOURNAL, kept)
    return rows, digest


def _whole_stretches(file: BinaryIO, lines: list[bytes], shape: Shape) -> tuple[int, int, "hashlib._Hash"]:
    """(rows, bytes of the journal, digest) up to the first line that is not whole or not true; `file` has been read up
    to its first row."""
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
    """The next `count` bytes, or as many as there are, into `digest`."""
    while count > 0 and (part := file.read(min(count, 2**20))):
        digest.update(part)
        count -= len(part)


def _header(shape: Shape) -> bytes:
    header = io.BytesIO()
    write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return header.getvalue()


def _write_stretches(
    file: BinaryIO, journal: BinaryIO, digest: "hashlib._Hash", row: int, blocks: Iterator[Pixels]
) -> None:
    """The rows from number `row` on into both files and `digest`, which is that of what lies before them."""
    started, size = time.monotonic(), 0

    def end_stretch() -> None:
        nonlocal started, size
        if size:
            _to_disk(file)
            digested.result()
            journal.write(f"{row} {digest.hexdigest()}\n".encode())
            _to_disk(journal)
        started, size = time.monotonic(), 0

    with ThreadPoolExecutor(1) as beside:
        try:
            for block in blocks:
                content = np.ascontiguousarray(block).data
                # Both take as long, and neither needs Python meanwhile; the last one to be digested is waited for.
                digested = beside.submit(digest.update, content)
                file.write(content)
                row, size = row + len(block), size + block.nbytes
                if size >= STRETCH_BYTES or time.monotonic() - started >= STRETCH_SECONDS:
                    end_stretch()
        finally:
            end_stretch()


def _to_disk(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
