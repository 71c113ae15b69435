"""A file of pixels that is written row by row and, when the writer is killed, gone on with from the rows it finished.

A journal beside it has a line for each stretch of rows: how many rows there are up to its end, and the stretch's
SHA-256. The line is written when the rows are on the disk, so a row that is not covered is never taken for done.
"""

import hashlib
import io
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


def write_rows(folder: Path, shape: Shape, rows_from: Callable[[int], Iterator[Pixels]]) -> Path:
    """The file in `folder` with all rows of an array of `shape` in uint8, as numpy's .npy.

    `rows_from` is given the number of rows that are finished, and yields the others in order, in arrays of one or more
    of them. What it raises comes up, and the rows before that are kept.
    """
    folder.mkdir(parents=True, exist_ok=True)
    header = io.BytesIO()
    write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
    done = finished_rows(folder, shape)
    with (folder / FILE).open("r+b" if done else "w+b") as file, (folder / JOURNAL).open("ab") as journal:
        if not done:
            journal.truncate(0)
            file.write(header.getvalue())
        file.seek(0, io.SEEK_END)
        _write_stretches(file, journal, done, rows_from(done))
    return folder / FILE


def finished_rows(folder: Path, shape: Shape) -> int:
    """How many rows from the first on are whole in `folder`; what lies behind them is cut off."""
    try:
        lines = (folder / JOURNAL).read_bytes().splitlines(keepends=True)
        with (folder / FILE).open("r+b") as file:
            rows, kept = _whole_stretches(file, lines, shape)
    except OSError:
        return 0
    os.truncate(folder / JOURNAL, kept)
    return rows


def _whole_stretches(file: BinaryIO, lines: list[bytes], shape: Shape) -> tuple[int, int]:
    """(rows, bytes of the journal) up to the first line that is not whole or not true; the file is cut off there."""
    row_bytes = shape[1] * shape[2] * shape[3]
    header = io.BytesIO()
    write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
    rows = kept = 0
    if file.read(len(header.getvalue())) != header.getvalue():
        return 0, 0
    for line in lines:
        end, _, checksum = line.decode(errors="replace").partition(" ")
        if not line.endswith(b"\n") or not end.isdigit() or not rows < int(end) <= shape[0]:
            break
        if _checksum(file, (int(end) - rows) * row_bytes) != checksum.strip():
            break
        rows, kept = int(end), kept + len(line)
    file.truncate(len(header.getvalue()) + rows * row_bytes)
    return rows, kept


def _checksum(file: BinaryIO, count: int) -> str:
    """The SHA-256 of the next `count` bytes, or of as many as there are."""
    digest = hashlib.sha256()
    while count > 0 and (part := file.read(min(count, 2**20))):
        digest.update(part)
        count -= len(part)
    return digest.hexdigest()


def _write_stretches(file: BinaryIO, journal: BinaryIO, row: int, blocks: Iterator[Pixels]) -> None:
    digest, started, size = hashlib.sha256(), time.monotonic(), 0

    def end_stretch() -> None:
        nonlocal digest, started, size
        if size:
            _to_disk(file)
            journal.write(f"{row} {digest.hexdigest()}\n".encode())
            _to_disk(journal)
        digest, started, size = hashlib.sha256(), time.monotonic(), 0

    with ThreadPoolExecutor(1) as beside:
        try:
            for block in blocks:
                content = np.ascontiguousarray(block).data
                # Both take as long, and neither needs Python meanwhile.
                digested = beside.submit(digest.update, content)
                file.write(content)
                digested.result()
                row, size = row + len(block), size + block.nbytes
                if size >= STRETCH_BYTES or time.monotonic() - started >= STRETCH_SECONDS:
                    end_stretch()
        finally:
            end_stretch()


def _to_disk(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
