"""A manifest's pictures decoded from their files each time they are asked for, each made square."""

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.decode import Decoder, Fit, Pixels, decode_square
from pipeline.errors import UserError
from pipeline.manifest import Manifest
from pipeline.parallel import in_parallel

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.nvjpeg import Header

# Decoded squares that wait to be written take no more.
WAITING_BYTES = 64 * 2**20
# Pictures that a GPU is given at once.
ROWS_OF_A_GPU = 256


class DecodedPixels:
    """What StoredPixels gives, decoded from the pictures' files by as many threads as there are cores, each time; with
    the decoder "nvjpeg" by the GPU, where it takes them."""

    dtype = np.dtype(np.uint8)

    def __init__(self, manifest: Manifest, size_px: int, fit: Fit, decoder: Decoder = "pillow") -> None:
        self.decoder = decoder
        self._root, self._folder = manifest.root, str(manifest.root)
        self._fit, self._size_px, self._grey = fit, size_px, manifest.is_grey
        self._paths, self._hashes = manifest.table["path"].array, manifest.table["hash"].array
        self._pool = ThreadPoolExecutor(os.cpu_count())
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
        for place, square in enumerate(self._pool.map(self._decode, chosen.tolist())):
            pixels[place] = square
        return pixels

    def on_gpu(self, rows: list[int]) -> "Tensor":
        """The squares of these rows in the memory of the GPU that decodes them, (images, size, size, channels)."""
        import torch

        from pipeline.nvjpeg import decode_squares

        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        read = self.read(rows)
        others = [place for place, (_, header) in enumerate(read) if header is None]
        decoded = self._pool.map(lambda place: self._decode_read(rows[place], read[place][0]), others)
        jpegs = [(content, header) for content, header in read if header is not None]
        squares = decode_squares(jpegs, self._size_px, self._fit, self._grey, device)
        if others:
            taken = [place for place, (_, header) in enumerate(read) if header is not None]
            made = torch.from_numpy(np.stack(list(decoded))).to(device)
            squares = torch.cat([squares, made])[np.argsort(taken + others)]
        return squares

    def read(self, rows: list[int]) -> list[tuple[bytearray, "Header | None"]]:
        """The files of these rows, each with what `read_header` says of it. UserError if one is not what it was.

        By one thread, as Python runs one at a time: more of them get in each other's way.
        """
        from pipeline.nvjpeg import read_header

        known = zip(rows, self._paths[rows].tolist(), self._hashes[rows].tolist(), strict=True)
        contents = (self._checked(*one) for one in known)
        return [(content, read_header(content)) for content in contents]

    def blocks(self, first: int) -> tuple[Iterator[Pixels], int]:
        """The squares of all pictures from row number `first` on, decoded ahead, in blocks of so many."""
        if self.decoder == "nvjpeg":
            starts = range(first, len(self), ROWS_OF_A_GPU)
            return in_parallel(lambda start: self[start : start + ROWS_OF_A_GPU], starts, 3, 2), ROWS_OF_A_GPU
        most_waiting = max(WAITING_BYTES // prod(self.shape[1:]), 2 * (os.cpu_count() or 1))
        return in_parallel(lambda row: self._decode(row)[None], range(first, len(self)), most_waiting), 1

    def _decode(self, row: int) -> Pixels:
        return self._decode_read(row, self._read(row))

    def _decode_read(self, row: int, content: bytearray) -> Pixels:
        try:
            return decode_square(bytes(content), self._size_px, self._fit, self._grey)
        except (OSError, ValueError, SyntaxError) as error:
            raise self._changed(row, str(error)) from None

    def _read(self, row: int) -> bytearray:
        return self._checked(row, self._paths[row], self._hashes[row])

    def _checked(self, row: int, path: str, digest: str) -> bytearray:
        """The picture's file, if its content is what it was."""
        try:
            content = _read_file(os.path.join(self._folder, path))
        except OSError as error:
            raise self._changed(row, str(error)) from None
        if hashlib.sha256(content).hexdigest() != digest:
            raise self._changed(row, "its content has changed")
        return content

    def _changed(self, row: int, reason: str) -> UserError:
        if not self._root.exists():
            return UserError(
                f"The pictures lie in {self._root}, which is not on this machine, and their pixels at "
                f"{self._size_px} px are not among the files of the precompute run; run it where the pictures are."
            )
        path = self._root / self._paths[row]
        return UserError(f"The picture {path} is not what it was ({reason}); run precompute again on what is there.")


def _read_file(path: str) -> bytearray:
    """A file's content, by few calls: each gives Python's lock away and has to get it back."""
    file = os.open(path, os.O_RDONLY)
    try:
        content = bytearray(os.fstat(file).st_size)
        place = memoryview(content)
        while place and (count := os.readv(file, [place])):
            place = place[count:]
    finally:
        os.close(file)
    return content


def _to_cpu(squares: "Tensor") -> Pixels:
    import torch

    # Pinned memory is taken up again and again, where new memory would be cleared first.
    there = torch.empty(squares.shape, dtype=squares.dtype, pin_memory=squares.is_cuda)
    pixels: Pixels = there.copy_(squares).numpy()
    return pixels
