"""Memory maps that give their pages back, so that memory stays flat however large the file is."""

import mmap
from typing import Any

import numpy.typing as npt

from pipeline.splits import Rows

# Pages that were mapped by reading are let go of after so much; a row brings some that lie around it.
MAPPED_BYTES, AROUND_A_ROW_BYTES = 32 * 2**20, 64 * 2**10


def let_go(array: npt.NDArray[Any]) -> None:
    """Give back the pages of a memory-mapped file, written ones too, which the system keeps on their way to the disk;
    of what is no such map, nothing."""
    mapped = getattr(array, "_mmap", None)
    if mapped is not None:
        mapped.madvise(mmap.MADV_DONTNEED)


class MappedRows:
    """Copies of an array's rows, by their numbers; where it is memory-mapped, pages are given back now and then."""

    def __init__(self, array: npt.NDArray[Any]) -> None:
        self._array = array
        self.shape: tuple[int, ...] = array.shape
        self.dtype = array.dtype
        self._mapped_bytes = 0

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Rows) -> npt.NDArray[Any]:
        chosen: npt.NDArray[Any] = self._array[rows]
        self._mapped_bytes += chosen.nbytes + len(chosen) * AROUND_A_ROW_BYTES
        if self._mapped_bytes > MAPPED_BYTES:
            let_go(self._array)
            self._mapped_bytes = 0
        return chosen
