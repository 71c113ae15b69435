"""How stored rows come to the device that computes: from its own memory, where they fit, else fetched ahead."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.batches import as_images, fetch_pixels
from pipeline.decode import Pixels
from pipeline.device import sent
from pipeline.pixels import DecodedPixels
from pipeline.splits import Rows

# Of a GPU's free memory: what training takes has to fit beside the rows.
RESIDENT_SHARE = 0.4
# Reading rows from a memory map into pinned memory takes one core of a GPU's host for about 12,000 images of 224 px
# a second.
WORKERS_OF_A_GPU = 4
ROWS_AT_ONCE = 256


def feed(pixels: Pixels, rows: Rows, device: torch.device) -> tuple[Callable[[Rows], Tensor], int]:
    """What fetches images of `rows`, over and over, and by how many threads ahead (see `fetch_ahead`)."""
    held = resident(pixels, rows, device)
    if held is None:
        return fetch_pixels(pixels, device), workers_for(pixels, device)
    return lambda chosen: as_images(held(chosen)), 0


def workers_for(pixels: Pixels, device: torch.device) -> int:
    """By how many threads it pays to fetch ahead.

    Decoding is done by as many threads as there are cores within each of them. On a CPU, reading a store takes too
    little time to be done by another thread than the one that trains.
    """
    if isinstance(pixels, DecodedPixels):
        return 2
    return WORKERS_OF_A_GPU if device.type == "cuda" else 0


def resident(stored: Any, rows: Rows, device: torch.device) -> Callable[[Rows], Tensor] | None:
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
