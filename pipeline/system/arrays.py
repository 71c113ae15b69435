"""Arrays in files: allocated on the disk before they are written, and read without keeping their pages in memory."""

import errno
import math
import mmap
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from numpy.lib.format import dtype_to_descr, open_memmap, write_array_header_1_0

Rows = npt.NDArray[np.int64]

# A writer of a memory-mapped array releases its pages after so much.
MAPPED_BYTES = 32 * 2**20
_NOT_SUPPORTED = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)


def allocate_array(path: Path, shape: Sequence[int], dtype: npt.DTypeLike) -> "np.memmap[Any, np.dtype[Any]]":
    """A new `.npy` file of zeros, as a memory map that can be written to.

    Its blocks are allocated before it is mapped: on a full disk, writing into the map of a file with holes kills the
    process (SIGBUS). If there is no room for it, raises OSError with `needed_bytes` and leaves no file behind.
    """
    dtype = np.dtype(dtype)
    header = {"shape": tuple(shape), "fortran_order": False, "descr": dtype_to_descr(dtype)}
    needed_bytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    try:
        with path.open("wb") as file:
            write_array_header_1_0(file, header)
            _allocate(file, file.tell() + needed_bytes)
    except OSError as error:
        path.unlink(missing_ok=True)
        error.needed_bytes = needed_bytes  # type: ignore[attr-defined]
        raise
    mapped: np.memmap[Any, np.dtype[Any]] = open_memmap(path, mode="r+")
    return mapped


def release_pages(array: npt.NDArray[Any]) -> None:
    """Release the pages of a memory-mapped array; other arrays are left alone.

    Nothing is lost: the system keeps pages that were written until they are on the disk.
    """
    mapped = getattr(array, "_mmap", None)
    if mapped is not None:
        mapped.madvise(mmap.MADV_DONTNEED)


class MappedRows:
    """An array whose rows are copied by their numbers.

    If the array is the whole of a memory-mapped file, its rows are read from the file and not through the map: for one
    row the system may map a megabyte around it. Rows that are vectors are too small for that to pay.
    """

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
        for row, values in zip(rows.tolist(), chosen, strict=True):
            if os.preadv(self._file.fileno(), [values], self._start + row * row_bytes) != row_bytes:
                raise OSError(f"{self._file.name} ends before row {row}")
        return chosen


def _allocate(file: BinaryIO, size_bytes: int) -> None:
    try:
        os.posix_fallocate(file.fileno(), 0, size_bytes)
    except AttributeError:  # macOS has no such call
        _fill(file, size_bytes)
    except OSError as error:
        if error.errno not in _NOT_SUPPORTED:
            raise
        _fill(file, size_bytes)


def _fill(file: BinaryIO, size_bytes: int) -> None:
    """Write zeros up to `size_bytes`, for file systems that cannot allocate."""
    zeros = bytes(2**20)
    while (left := size_bytes - file.tell()) > 0:
        file.write(zeros[:left])
    file.flush()
    os.fsync(file.fileno())


def _start_in_file(array: npt.NDArray[Any]) -> int | None:
    """The offset of the array in its file, if it is mapped in row order up to the file's end."""
    if not isinstance(array, np.memmap) or array.filename is None or not array.flags.c_contiguous:
        return None
    is_whole = array.offset + array.nbytes == Path(array.filename).stat().st_size
    return int(array.offset) if is_whole else None
