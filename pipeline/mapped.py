"""Memory-mapped arrays read and written without their pages staying in memory, however large the file is."""

import math
import mmap
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.splits import Rows

# What is written is let go of after so much.
MAPPED_BYTES = 32 * 2**20


def let_go(array: npt.NDArray[Any]) -> None:
    """Give back the pages of a memory-mapped file, written ones too, which the system keeps on their way to the disk;
    of what is no such map, nothing."""
    mapped = getattr(array, "_mmap", None)
    if mapped is not None:
        mapped.madvise(mmap.MADV_DONTNEED)


class MappedRows:
    """Copies of an array's rows, by their numbers. Where it is all of a memory-mapped file, they are read past the map,
    since at a touch of one row the system may map a megabyte around it; but not where a row is a vector, which is so
    small that reading it by itself would take longer than that is worth."""

    def __init__(self, array: npt.NDArray[Any]) -> None:
        self._array = array
        self.shape: tuple[int, ...] = array.shape
        self.dtype = array.dtype
        self._start = _start_in_file(array) if array.ndim > 2 else None
        self._file = None
        if self._start is not None:
            self._file = Path(array.filename).open("rb")  # type: ignore[attr-defined]  # noqa: SIM115

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Rows) -> npt.NDArray[Any]:
        if self._file is None or self._start is None:
            in_memory: npt.NDArray[Any] = self._array[rows]
            return in_memory
        chosen = np.empty((len(rows), *self.shape[1:]), self.dtype)
        row_bytes = math.prod(self.shape[1:]) * self.dtype.itemsize
        for row, place in zip(rows.tolist(), chosen, strict=True):
            if os.preadv(self._file.fileno(), [place], self._start + row * row_bytes) != row_bytes:
                raise OSError(f"{self._file.name} ends before row {row}")
        return chosen


def _start_in_file(array: npt.NDArray[Any]) -> int | None:
    """Where in its file the array begins, if it is one that is mapped to the file's end, row after row."""
    if not isinstance(array, np.memmap) or array.filename is None or not array.flags.c_contiguous:
        return None
    is_whole = array.offset + array.nbytes == Path(array.filename).stat().st_size
    return int(array.offset) if is_whole else None
