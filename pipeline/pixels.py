"""The pixels of a manifest's pictures, each made square: from a store, where it may be that large, else decoded anew
each time they are asked for. Both give the same bytes for the same rows."""

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

from pipeline.console import say, track
from pipeline.decode import Decoder, Fit, Pixels
from pipeline.decoded_pixels import DecodedPixels
from pipeline.errors import UserError
from pipeline.manifest import Manifest
from pipeline.pixel_file import FILE, write_rows
from pipeline.splits import Rows
from pipeline.store import DESCRIPTION, cache_folder, content_key, open_or_build

# Goes into the store's key: to be counted up when `decode` starts to give other pixels.
DECODER_VERSION = 1
# Pages of the store that were mapped by reading are let go of after so much; a row brings some that lie around it.
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
    """All pictures of `manifest`, in its order, as (images, size, size, channels) of uint8, to be read by row numbers;
    one channel where all pictures are grey.

    They lie in a memory-mapped store, which is built where it is not there, by `fetch` if that says that it has filled
    the folder it is given with a store made from the same. Where that would take more than `max_store_gib`, or
    than the disk has, they are decoded whenever they are asked for. `decoder` is that of DecodedPixels; where the
    pictures themselves are not, a store that was fetched may be of the other one. Raises UserError if a picture is no
    longer what it was when the manifest was made.
    """
    source = DecodedPixels(manifest, size_px, fit, decoder)
    gib = math.prod(source.shape) / GIB
    if gib > max_store_gib:
        return _streamed(source, f"more than data.max_store_gib = {max_store_gib:g}")
    parts: dict[str, Any] = {
        "pictures": content_key({"hashes": manifest.table["hash"].tolist()}),
        "size_px": size_px,
        "fit": fit,
        "grey": manifest.is_grey,
        "decoder_version": DECODER_VERSION,
    }
    if decoder != "pillow":
        parts["decoder"] = decoder
    # Beside the store, whose lock is its own.
    unfinished = cache_folder() / "pixels" / f".{content_key(parts)}.partial"

    def build(folder: Path) -> dict[str, str] | None:
        fetched = _made_from(folder) if fetch(folder) else None
        if fetched == parts:
            return None
        if fetched and not manifest.root.exists() and _but_for_the_decoder(fetched) == _but_for_the_decoder(parts):
            raise _OtherDecoderError(fetched)
        return {FILE: _build(source, unfinished, folder)}

    try:
        folder, _ = open_or_build("pixels", parts, build)
    except _OtherDecoderError as other:  # what there is, where the pictures themselves are not
        parts = other.made_from
        folder, _ = open_or_build("pixels", parts, build)
    except _NoRoomError as error:
        return _streamed(source, str(error))
    shutil.rmtree(unfinished, ignore_errors=True)
    return cast(Pixels, StoredPixels(folder))


class StoredPixels:
    """An array of uint8 in a .npy file, memory-mapped, that is read by whatever index numpy takes for the first axis.

    What it gives are copies, and pages that were read are given back now and then, so that memory stays flat however
    large the file is.
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, folder: Path) -> None:
        self.folder = folder
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
        """The size of all of it."""
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

    def read_into(self, rows: Rows, place: Pixels) -> None:
        """Copy these rows into an array of their shape, such as one in pinned memory: past the map, which is faster for
        whole rows."""
        row_bytes = math.prod(self.shape[1:])
        for row, square in zip(rows.tolist(), place, strict=True):
            if os.preadv(self._file.fileno(), [square], self._start + row * row_bytes) != row_bytes:
                raise OSError(f"{self.folder / FILE} ends before row {row}")


class _OtherDecoderError(Exception):
    """The store that was fetched was decoded in the other way."""

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


def _made_from(folder: Path) -> Any:
    """What a store that was fetched says of itself; its description then gives way to a new one."""
    try:
        return json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))["made_from"]
    except (OSError, ValueError, KeyError):
        return None


def _but_for_the_decoder(parts: dict[str, Any]) -> dict[str, Any]:
    return {name: part for name, part in parts.items() if name != "decoder"}


def _build(source: DecodedPixels, unfinished: Path, folder: Path) -> str:
    """Write FILE into `folder`, by way of `unfinished`; its SHA-256."""
    written = (unfinished / FILE).stat().st_size if (unfinished / FILE).is_file() else 0
    free = shutil.disk_usage(folder).free + written
    if math.prod(source.shape) > free:
        raise _NoRoomError(f"more than the {free / GIB:,.1f} GiB that are free in {cache_folder()}")

    def rows_from(start: int) -> Iterator[Pixels]:
        if start:
            say(f"  decoding goes on after the {start:,} pictures that were done before")
        blocks, size = source.blocks(start)
        return track(blocks, f"decoding to {source.shape[1]} px", len(source) - start, "images", size)

    try:
        checksum = write_rows(unfinished, source.shape, rows_from)
    except (UserError, OSError) as error:
        if isinstance(error, OSError) and error.errno != errno.ENOSPC:
            raise
        shutil.rmtree(unfinished, ignore_errors=True)  # pictures that have changed are another store next time
        if isinstance(error, OSError):
            raise _NoRoomError(f"more than there is room for in {cache_folder()}") from None
        raise
    try:
        # A second name for the file, so that being killed before it is published costs nothing.
        os.link(unfinished / FILE, folder / FILE)
    except OSError:  # where a file system has no such names
        (unfinished / FILE).rename(folder / FILE)
    return checksum
