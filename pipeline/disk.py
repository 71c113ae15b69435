"""A disk that is full: told in one sentence, never by a signal, and with nothing half-written."""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from numpy.lib.format import dtype_to_descr, open_memmap, write_array_header_1_0
from rich.filesize import decimal

from pipeline.errors import UserError

_FULL = (errno.ENOSPC, errno.EDQUOT)
# Where a library raises an error of its own: how safetensors and SQLite spell a full disk.
_WORDS = (
    *(f"(os error {number})" for number in _FULL),
    *(f"[Errno {number}]" for number in _FULL),  # shutil's list of what it could not copy
    "database or disk is full",
)
_NOT_SUPPORTED = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)


def allocate_array(path: Path, shape: Sequence[int], dtype: npt.DTypeLike) -> "np.memmap[Any, np.dtype[Any]]":
    """A new `.npy` file of zeros, as a memory map that can be written to.

    Its blocks are taken from the disk before it is mapped: writing into the map of a file with holes kills the
    process (SIGBUS) when the disk is full. OSError, with `needed_bytes`, if there is no room for it; the file is then
    not there.
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


@contextmanager
def told_when_full(what: str, folder: Path | None = None, advice: str = "") -> Iterator[None]:
    """Turns whatever a full disk or quota raises within it into a UserError of one sentence.

    `what` was being written into `folder`, such as "the pixel store"; `advice` says how to make room there. Where the
    error names a file elsewhere, that place is told. Without a `folder`, it is whichever is fuller: the folder for
    temporary files or the working folder.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        full = _find_full(error)
        if full is None:
            raise
        named = _named(full)
        if folder is None or (named and not named.is_relative_to(folder.absolute())):
            folder = named or min(Path(tempfile.gettempdir()), Path.cwd(), key=free_bytes)
            advice = ""
        raise UserError(_sentence(what, folder, advice or _advice(folder), full)) from error


def free_bytes(folder: Path) -> int:
    """What is free on the disk of `folder`, which need not be there yet."""
    return shutil.disk_usage(_existing(folder)).free


def _sentence(what: str, folder: Path, advice: str, full: BaseException) -> str:
    needed = getattr(full, "needed_bytes", None)
    room = f"{decimal(free_bytes(folder))} free"
    if needed is not None:
        room = f"{decimal(needed)} needed, {room}"
    why = "The quota is used up on" if getattr(full, "errno", None) == errno.EDQUOT else "No space left on"
    return (
        f"{why} the disk of {folder} while writing {what} ({room}); {advice}, and run the same command again: it goes "
        "on from there."
    )


def _named(full: BaseException) -> Path | None:
    """The folder of the file that the error names, if it names one."""
    named = getattr(full, "filename", None)
    return Path(named).absolute().parent if isinstance(named, str | os.PathLike) else None


def _advice(folder: Path) -> str:
    if folder.resolve().is_relative_to(Path(tempfile.gettempdir()).resolve()):
        return "free some there or point TMPDIR to a larger disk"
    return "free some there"


def _find_full(error: BaseException | None) -> BaseException | None:
    """The error that tells of a full disk: this one, or one that it was raised for."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL:
            return error
        if any(words in str(error) for words in _WORDS):
            return error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return None


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
    """Zeros up to `size_bytes`, for file systems that take no blocks in advance."""
    zeros = bytes(2**20)
    while (left := size_bytes - file.tell()) > 0:
        file.write(zeros[:left])
    file.flush()
    os.fsync(file.fileno())


def _existing(folder: Path) -> Path:
    folder = folder.absolute()
    return next(place for place in (folder, *folder.parents) if place.exists())
