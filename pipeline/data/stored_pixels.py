"""Pixels in a memory-mapped store, which is built row by row: a build that was killed is resumed (see `row_file`)."""

import errno
import json
import math
import mmap
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.lib.format import read_array_header_1_0, read_magic

from pipeline.cache.hashing import content_key, library_versions
from pipeline.cache.location import cache_folder
from pipeline.cache.row_file import write_rows
from pipeline.cache.store import DESCRIPTION, open_or_build
from pipeline.data.decode import Decoder, Fit, Pixels
from pipeline.data.decoded_pixels import DecodedPixels
from pipeline.data.joint.decoding import decoded_blocks
from pipeline.data.manifest import Manifest
from pipeline.system.arrays import Rows
from pipeline.system.console import say, track
from pipeline.system.errors import UserError

# Part of the store's key: increase it when `decode` starts to give other pixels.
DECODER_VERSION = 1
# The libraries that the pixels of each decoder hang on: what a GPU cannot decode is left to Pillow.
LIBRARIES: dict[Decoder, tuple[str, ...]] = {"pillow": ("pillow",), "nvjpeg": ("pillow", "torch", "torchvision")}
FILE = "pixels.npy"
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
        checksum = write_rows(unfinished / FILE, source.shape, rows_from)
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
