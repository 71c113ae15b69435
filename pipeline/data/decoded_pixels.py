"""Pixels that are decoded from the pictures' files each time they are read."""

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.data.decode import Decoder, Fit, Pixels, decode_square
from pipeline.data.manifest import Manifest
from pipeline.data.nvjpeg import Header, decode_squares, read_header
from pipeline.system.errors import UserError
from pipeline.system.machine import own_cores
from pipeline.system.parallel import in_parallel

# At most so many bytes of decoded squares wait to be written.
WAITING_BYTES = 64 * 2**20
# Pictures that a GPU decodes at once.
ROWS_OF_A_GPU = 256


class DecodedPixels:
    """A manifest's pictures as squares, read by row numbers like StoredPixels, but decoded at each reading.

    They are decoded by one thread per core of this process; with the decoder "nvjpeg", JPEGs that a GPU can decode are
    decoded there.
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, manifest: Manifest, size_px: int, fit: Fit, decoder: Decoder = "pillow") -> None:
        self.decoder, self.made_from = decoder, (manifest, size_px, fit, decoder)
        self._manifest, self._folder = manifest, str(manifest.root)
        self._fit, self._size_px, self._grey, self._ranges = fit, size_px, manifest.is_grey, manifest.ranges
        self._paths, self._hashes = manifest.table["path"].array, manifest.table["hash"].array
        self._pool = ThreadPoolExecutor(own_cores())
        self.shape: tuple[int, int, int, int] = (len(manifest.table), size_px, size_px, 1 if self._grey else 3)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> Pixels:
        chosen = np.arange(len(self))[rows]
        if chosen.ndim == 0:
            return self._decode(int(chosen))
        if self.decoder == "nvjpeg":
            return _to_cpu(self.on_gpu(chosen.tolist()))
        pixels = np.empty((len(chosen), *self.shape[1:]), dtype=np.uint8)
        for index, square in enumerate(self._pool.map(self._decode, chosen.tolist())):
            pixels[index] = square
        return pixels

    def on_gpu(self, rows: list[int]) -> Tensor:
        """The squares of these rows, (images, size, size, channels), in the memory of the GPU that decodes them."""
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        read = self.read(rows)
        others = [index for index, (_, header) in enumerate(read) if header is None]
        decoded = self._pool.map(lambda index: self._decode_content(rows[index], read[index][0]), others)
        jpegs = [(content, header) for content, header in read if header is not None]
        squares = decode_squares(jpegs, self._size_px, self._fit, self._grey, device)
        if others:
            by_gpu = [index for index, (_, header) in enumerate(read) if header is not None]
            by_pillow = torch.from_numpy(np.stack(list(decoded))).to(device)
            squares = torch.cat([squares, by_pillow])[np.argsort(by_gpu + others)]
        return squares

    def read(self, rows: list[int]) -> list[tuple[bytearray, Header | None]]:
        """The contents of these rows' files, each with the result of `read_header`. UserError if one has changed.

        In one thread: Python runs one at a time, and several would slow each other down.
        """
        expected = zip(rows, self._paths[rows].tolist(), self._hashes[rows].tolist(), strict=True)
        contents = (self._checked(*one) for one in expected)
        return [(content, read_header(content)) for content in contents]

    def blocks(self, first: int) -> tuple[Iterator[Pixels], int]:
        """(blocks of the squares from row number `first` on, decoded ahead; the size of a block in rows)."""
        if self.decoder == "nvjpeg":
            starts = range(first, len(self), ROWS_OF_A_GPU)
            return in_parallel(lambda start: self[start : start + ROWS_OF_A_GPU], starts, 3, 2), ROWS_OF_A_GPU
        most_waiting = max(WAITING_BYTES // prod(self.shape[1:]), 2 * own_cores())
        return in_parallel(lambda row: self._decode(row)[None], range(first, len(self)), most_waiting), 1

    def _decode(self, row: int) -> Pixels:
        return self._decode_content(row, self._read(row))

    def _decode_content(self, row: int, content: bytearray) -> Pixels:
        try:
            return decode_square(bytes(content), self._size_px, self._fit, self._grey, self._ranges)
        except (OSError, ValueError, SyntaxError) as error:
            raise self._changed(row, str(error)) from None

    def _read(self, row: int) -> bytearray:
        return self._checked(row, self._paths[row], self._hashes[row])

    def _checked(self, row: int, path: str, digest: str) -> bytearray:
        """The content of the picture's file; UserError if it has changed."""
        try:
            content = _read_file(os.path.join(self._folder, path))
        except OSError as error:
            raise self._changed(row, str(error)) from None
        if hashlib.sha256(content).hexdigest() != digest:
            raise self._changed(row, "its content has changed")
        return content

    def _changed(self, row: int, reason: str) -> UserError:
        if not self._manifest.is_here:
            return UserError(
                f"The pictures are in {self._manifest.source}, which is not on this machine, and their pixels at "
                f"{self._size_px} px are not among the files of the precompute run; run it where the pictures are."
            )
        path = self._manifest.root / self._paths[row]
        return UserError(f"The picture {path} is not what it was ({reason}); run precompute again.")


def _read_file(path: str) -> bytearray:
    """A file's content, read in few calls: each releases Python's lock and has to acquire it again."""
    file = os.open(path, os.O_RDONLY)
    try:
        content = bytearray(os.fstat(file).st_size)
        rest = memoryview(content)
        while rest and (count := os.readv(file, [rest])):
            rest = rest[count:]
    finally:
        os.close(file)
    return content


def _to_cpu(squares: Tensor) -> Pixels:
    # Pinned memory is reused, while new memory would be cleared first.
    on_cpu = torch.empty(squares.shape, dtype=squares.dtype, pin_memory=squares.is_cuda)
    pixels: Pixels = on_cpu.copy_(squares).numpy()
    return pixels
