"""How stored rows come to the device that computes: from its own memory, where they fit, else fetched ahead."""

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from pipeline.batches import as_images, fetch_pixels
from pipeline.decode import Pixels
from pipeline.decoded_pixels import DecodedPixels
from pipeline.device import sent
from pipeline.pixels import StoredPixels
from pipeline.splits import Rows

# Of a GPU's free memory: what training takes has to fit beside the rows.
RESIDENT_SHARE = 0.4
WORKERS_THAT_DECODE = 2
ROWS_AT_ONCE = 256

Fetch: TypeAlias = Callable[[Rows], Tensor]


def feed(pixels: Pixels, rows: Rows, device: torch.device) -> tuple[Fetch, int]:
    """What fetches images of `rows`, which are wanted over and over, and by how many threads ahead."""
    held = resident(pixels, rows, device)
    return reader(pixels, device) if held is None else (lambda chosen: as_images(held(chosen)), 0)


def reader(pixels: Pixels, device: torch.device) -> tuple[Fetch, int]:
    """What fetches images that are wanted once, and by how many threads ahead it pays to do so (see `fetch_ahead`).

    Decoding is done by as many threads as there are cores within each of them. A store is read by one thread for a
    GPU, and by none for a CPU, which takes so little time for it that another thread gains nothing.
    """
    if isinstance(pixels, DecodedPixels):
        on_gpu = device.type == "cuda" and pixels.decoder == "nvjpeg"
        fetch = _decoded_there(pixels) if on_gpu else fetch_pixels(pixels, device)
        return fetch, WORKERS_THAT_DECODE
    if device.type == "cuda":
        return (
            _into_pinned_memory(pixels, device) if isinstance(pixels, StoredPixels) else fetch_pixels(pixels, device)
        ), 1
    return fetch_pixels(pixels, device), 0


def _into_pinned_memory(pixels: StoredPixels, device: torch.device) -> Fetch:
    def fetch(rows: Rows) -> Tensor:
        squares = torch.empty((len(rows), *pixels.shape[1:]), dtype=torch.uint8, pin_memory=True)
        pixels.read_into(rows, squares.numpy())
        return as_images(squares.to(device, non_blocking=True))

    return fetch


def _decoded_there(pixels: DecodedPixels) -> Fetch:
    return lambda rows: as_images(pixels.on_gpu(rows.tolist()))


def resident(stored: Any, rows: Rows, device: torch.device) -> Fetch | None:
    """Puts these rows of an array, memory-mapped or not, into a GPU's memory; what gathers them there, as they are
    stored. None on a CPU, where the rows are decoded when they are read, and where they would take too much."""
    if device.type != "cuda" or isinstance(stored, DecodedPixels):
        return None
    size_bytes = len(rows) * int(np.prod(stored.shape[1:])) * stored.dtype.itemsize
    if size_bytes > RESIDENT_SHARE * torch.cuda.mem_get_info(device)[0]:
        return None
    parts = [rows[start : start + ROWS_AT_ONCE] for start in range(0, len(rows), ROWS_AT_ONCE)]
    of_part = torch.from_numpy(stored[rows[:1]])
    held = torch.empty((len(rows), *of_part.shape[1:]), dtype=of_part.dtype, device=device)
    for number, part in enumerate(parts):
        held[number * ROWS_AT_ONCE :][: len(part)] = sent(torch.from_numpy(stored[part]), device)
    places = np.full(len(stored), -1, dtype=np.int64)
    places[rows] = np.arange(len(rows))

    def gather(chosen: Rows) -> Tensor:
        return held.index_select(0, sent(torch.from_numpy(places[chosen]), device))

    return gather
