"""Pixels in a memory-mapped store.

A store is built row by row, with a journal beside it that has a line, with a checksum, for each stretch of rows that is
on the disk: a build that was killed is resumed after the last of these lines.
"""

import errno
import hashlib
import io
import json
import math
import mmap
import os
import shutil
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.lib.format import read_array_header_1_0, read_magic, write_array_header_1_0

from pipeline.cache.hashing import content_key, library_versions
from pipeline.cache.location import cache_folder, make_folder, share
from pipeline.cache.store import DESCRIPTION, open_or_build
from pipeline.data.decode import Decoder, Fit, Pixels
from pipeline.data.decoded_pixels import DecodedPixels
from pipeline.data.joint.decoding import decoded_blocks
from pipeline.data.manifest import Manifest
from pipeline.system.arrays import Rows
from pipeline.system.console import say, track
from pipeline.system.errors import UserError

Shape = tuple[int, int, int, int]

# Part of the store's key: increase it when `decode` starts to give other pixels.
DECODER_VERSION = 1
# The libraries that the pixels of each decoder hang on: what a GPU cannot decode is left to Pillow.
LIBRARIES: dict[Decoder, tuple[str, ...]] = {"pillow": ("pillow",), "nvjpeg": ("pillow", "torch", "torchvision")}
FILE = "pixels.npy"
JOURNAL = "journal"
# A stretch ends after so many bytes or seconds, whichever comes first: a kill loses at most this.
STRETCH_BYTES, STRETCH_SECONDS = 64 * 2**20, 2.0
# Pages that were mapped by reading are released after so many bytes; each row maps some pages around it.
MAPPED_BYTES, AROUND_A_ROW_BYTES = 32 * 2**20, 64 * 2**10
GIB = 2**30


def open_pixels(
    manifest: Manifest,
    size_px: int,
    fit: Fit,
    max_store_gib: float = math.inf,
    fetch: Callable[[Path], bool] = lambda folder: False,
    decoder: Decoder = "pillow",
) -> Pixels:
    """All pictures of `manifest`, in its order, as (images, size, size, channels) of uint8, read by row numbers; one
    channel if all pictures are grey.

    They are in a memory-mapped store. If it does not exist, `fetch` may fill the folder that it is given with a copy of
    it, and returns whether it did; else it is built. If that would take more than `max_store_gib`, or more than the
    disk has, the pictures are decoded at each reading. `decoder` is that of DecodedPixels; if the pictures are not on
    this machine, a fetched store of the other decoder, or of other versions of it, is used too. Raises UserError if a
    picture has changed since the manifest was made.
    """
    source = DecodedPixels(manifest, size_px, fit, decoder)
    gib = math.prod(source.shape) / GIB
    if gib > max_store_gib:
        return _streamed(source, f"more than data.max_store_gib = {max_store_gib:g}")
    key_parts: dict[str, Any] = {
        "pictures": content_key({"hashes": manifest.table["hash"].tolist()}),
        "size_px": size_px,
        "fit": fit,
        "grey": manifest.is_grey,
        "decoder_version": DECODER_VERSION,
        "versions": library_versions(*LIBRARIES[decoder]),
    }
    if decoder != "pillow":
        key_parts["decoder"] = decoder
    if manifest.ranges:
        key_parts["ranges"] = manifest.ranges
    # Beside the store, and protected by its lock.
    unfinished = cache_folder() / "pixels" / f".{content_key(key_parts)}.partial"

    def build(folder: Path) -> dict[str, str] | None:
        fetched = _made_from(folder) if fetch(folder) else None
        if fetched == key_parts:
            return None
        if fetched and not manifest.is_here and _pictures_of(fetched) == _pictures_of(key_parts):
            raise _OtherDecoderError(fetched)
        return {FILE: _build(source, unfinished, folder)}

    try:
        folder, _ = open_or_build("pixels", key_parts, build)
    except _OtherDecoderError as other:
        key_parts = other.made_from
        folder, _ = open_or_build("pixels", key_parts, build)
    except _NoRoomError as error:
        return _streamed(source, str(error))
    shutil.rmtree(unfinished, ignore_errors=True)
    return cast(Pixels, StoredPixels(folder))


class StoredPixels:
    """An array of uint8 in a memory-mapped .npy file, read by any index that numpy takes for the first axis.

    It gives copies, and releases the pages that were read now and then, so that memory stays flat for files of any
    size.
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.decoder: Decoder = _made_from(folder).get("decoder", "pillow")
        self._file = (folder / FILE).open("rb")
        read_magic(self._file)
        self.shape: tuple[int, ...] = read_array_header_1_0(self._file)[0]
        self._start = self._file.tell()
        self._map = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
        self._array = np.frombuffer(self._map, np.uint8, offset=self._start).reshape(self.shape)
        self._mapped_bytes = 0

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def nbytes(self) -> int:
        """The size of the whole array in bytes."""
        return math.prod(self.shape)

    def __getitem__(self, rows: Any) -> Pixels:
        chosen: Pixels = self._array[rows]
        if chosen.base is not None:
            chosen = chosen.copy()
        self._mapped_bytes += chosen.nbytes + chosen.size // self._array[0].size * AROUND_A_ROW_BYTES
        if self._mapped_bytes > MAPPED_BYTES:
            self._map.madvise(mmap.MADV_DONTNEED)
            self._mapped_bytes = 0
        return chosen

    def read_into(self, rows: Rows, squares: Pixels) -> None:
        """Copy these rows into an array of their shape, such as one in pinned memory. They are read from the file and
        not through the map, which is faster for whole rows."""
        row_bytes = math.prod(self.shape[1:])
        for row, square in zip(rows.tolist(), squares, strict=True):
            if os.preadv(self._file.fileno(), [square], self._start + row * row_bytes) != row_bytes:
                raise OSError(f"{self.folder / FILE} ends before row {row}")


def decoder_of(pixels: Pixels) -> Decoder:
    """What decoded these pixels of `open_pixels`."""
    decoder: Decoder = getattr(pixels, "decoder", "pillow")
    return decoder


class _OtherDecoderError(Exception):
    """The fetched store is of the other decoder, or of another version of it."""

    def __init__(self, made_from: dict[str, Any]) -> None:
        super().__init__()
        self.made_from = made_from


class _NoRoomError(Exception):
    """The disk has too little room for the store."""


def _streamed(source: DecodedPixels, reason: str) -> Pixels:
    gib = math.prod(source.shape) / GIB
    say(
        f"  pixels at {source.shape[1]} px would take {gib:,.1f} GiB, {reason}: pictures are decoded as they are needed"
    )
    return cast(Pixels, source)


def _made_from(folder: Path) -> dict[str, Any]:
    """The key parts of a store, by its description; none if that cannot be read."""
    try:
        return dict(json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))["made_from"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _pictures_of(key_parts: dict[str, Any]) -> dict[str, Any]:
    """The key parts that do not say what decoded the pictures."""
    return {name: part for name, part in key_parts.items() if name not in ("decoder", "versions")}


def _build(source: DecodedPixels, unfinished: Path, folder: Path) -> str:
    """Write FILE in `unfinished`, then move it into `folder`; its SHA-256."""
    written = (unfinished / FILE).stat().st_size if (unfinished / FILE).is_file() else 0
    free = shutil.disk_usage(folder).free + written
    if math.prod(source.shape) > free:
        raise _NoRoomError(f"more than the {free / GIB:,.1f} GiB that are free in {cache_folder()}")

    def rows_from(start: int) -> Iterator[Pixels]:
        if start:
            say(f"  decoding is resumed after the {start:,} pictures that were done before")
        blocks, size = decoded_blocks(source, start)
        return track(blocks, f"decoding to {source.shape[1]} px", len(source) - start, "images", size)

    try:
        checksum = write_rows(unfinished, source.shape, rows_from)
    except (UserError, OSError) as error:
        if isinstance(error, OSError) and error.errno != errno.ENOSPC:
            raise
        shutil.rmtree(unfinished, ignore_errors=True)  # changed pictures make another store next time
        if isinstance(error, OSError):
            raise _NoRoomError(f"more than there is room for in {cache_folder()}") from None
        raise
    try:
        # A second name for the file, so that a kill before it is published loses nothing.
        os.link(unfinished / FILE, folder / FILE)
    except OSError:  # on a file system without hard links
        (unfinished / FILE).rename(folder / FILE)
    return checksum


def write_rows(folder: Path, shape: Shape, rows_from: Callable[[int], Iterator[Pixels]]) -> str:
    """Write FILE in `folder`: all rows of an array of `shape` in uint8, as numpy's .npy. Gives the file's SHA-256.

    `rows_from` is called with the number of finished rows, and yields the others in order, in arrays of one or more. If
    it raises an error, the rows before are kept.
    """
    make_folder(folder)
    done, digest = finished_rows(folder, shape)
    with (folder / FILE).open("r+b" if done else "w+b") as file, (folder / JOURNAL).open("ab") as journal:
        share(folder / FILE)
        share(folder / JOURNAL)
        if not done:
            journal.truncate(0)
            file.write(_header(shape))
        file.seek(0, io.SEEK_END)
        blocks = rows_from(done)
        with ExitStack() as stack:
            if isinstance(blocks, Generator):  # whoever else decodes them has to hear of an error
                stack.callback(blocks.close)
            _write_stretches(file, journal, digest, done, blocks)
    return digest.hexdigest()


def finished_rows(folder: Path, shape: Shape) -> tuple[int, "hashlib._Hash"]:
    """The number of finished rows in `folder`, and the SHA-256 of the file up to their end, to be continued; what
    follows them is cut off."""
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
    file: BinaryIO, journal: BinaryIO, digest: "hashlib._Hash", row: int, blocks: Iterator[Pixels]
) -> None:
    """Write the rows from number `row` on, update `digest`, and add a line to the journal after each stretch."""
    started, size = time.monotonic(), 0

    def end_stretch() -> None:
        nonlocal started, size
        if size:
            _to_disk(file)
            digested.result()
            journal.write(f"{row} {digest.hexdigest()}\n".encode())
            _to_disk(journal)
        started, size = time.monotonic(), 0

    with ThreadPoolExecutor(1) as pool:
        try:
            for block in blocks:
                content = np.ascontiguousarray(block).data
                # Digesting takes as long as writing, and both release Python's lock.
                digested = pool.submit(digest.update, content)
                file.write(content)
                row, size = row + len(block), size + block.nbytes
                if size >= STRETCH_BYTES or time.monotonic() - started >= STRETCH_SECONDS:
                    end_stretch()
        finally:
            end_stretch()


def _to_disk(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
