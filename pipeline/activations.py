"""The activation store: the frozen body's last activations of every picture as it is, computed once.

Only plain, un-augmented pictures go through it, each row belongs to one row of the manifest, and a store is
published whole or not at all (see `store`).
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.console import track
from pipeline.decode import Fit, Pixels
from pipeline.device import mixed_precision
from pipeline.disk import allocate_array
from pipeline.feed import reader
from pipeline.network import Network
from pipeline.prefetch import fetch_ahead
from pipeline.splits import Rows
from pipeline.store import content_key, open_or_build

FILE = "activations.npy"
# Goes into the store's key: to be counted up when `Network.activations` starts to give other values.
ACTIVATIONS_VERSION = 1
# Batches whose activations are on their way from the GPU while it goes on.
IN_FLIGHT = 2

Dtype: TypeAlias = Literal["float16", "float32"]
Activations: TypeAlias = npt.NDArray[np.float16] | npt.NDArray[np.float32]


def store_parts(
    hashes: Sequence[str], size_px: int, fit: Fit, grey: bool, backbone: str, weights: str, dtype: Dtype
) -> dict[str, object]:
    """Everything that could change the activations of pictures with these content `hashes`, in this order."""
    return {
        "pictures": content_key({"hashes": list(hashes)}),
        "size_px": size_px,
        "fit": fit,
        "grey": grey,
        "backbone": backbone,
        "weights": weights,
        "dtype": dtype,
        "version": ACTIVATIONS_VERSION,
    }


def open_activations(
    network: Network, pixels: Pixels, parts: dict[str, object], batch_size: int, device: torch.device, dtype: Dtype
) -> Path:
    """The folder of the store for `parts`, built from `pixels` where it is not there already."""

    def build(folder: Path) -> None:
        stored = allocate_array(folder / FILE, (len(pixels), network.width), dtype)
        write_activations(stored, network, pixels, np.arange(len(pixels)), batch_size, device)
        stored.flush()

    return open_or_build("activations", parts, build)[0]


@torch.no_grad()
def write_activations(
    stored: Activations,
    network: Network,
    pixels: Pixels,
    rows: Rows,
    batch_size: int,
    device: torch.device,
    vary: Callable[[Tensor], Tensor] = lambda images: images,
) -> None:
    """The body's last activations of these rows, in eval mode, into `stored` (rows, activations); of each batch of
    images what `vary` makes of it."""
    network.eval()
    parts = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    fetch, workers = reader(pixels, device)
    fetched = track(
        fetch_ahead(fetch, parts, device, workers), "precomputing activations", len(rows), "images", batch_size
    )
    done = 0
    for computed in _computed(
        network, map(vary, fetched), torch.float16 if stored.dtype == np.float16 else torch.float32
    ):
        stored[done : done + len(computed)] = computed
        done += len(computed)


def _computed(network: Network, batches: Iterable[Tensor], dtype: torch.dtype) -> Iterator[Activations]:
    """The activations of each batch; on a GPU each comes over while the next two are computed."""
    waiting: deque[tuple[Tensor, Any]] = deque()
    for images in batches:
        with mixed_precision(images.device):
            activations = network.activations(images).float().to(dtype)
        on_gpu = images.device.type == "cuda"
        arriving = activations.to("cpu", non_blocking=True)
        waiting.append((arriving, torch.cuda.current_stream(images.device).record_event() if on_gpu else None))
        if len(waiting) > (IN_FLIGHT if on_gpu else 0):
            yield _arrived(*waiting.popleft())
    while waiting:
        yield _arrived(*waiting.popleft())


def _arrived(activations: Tensor, there: Any) -> Activations:
    if there is not None:
        there.synchronize()
    arrived: Activations = activations.numpy()
    return arrived


def compute_activations(network: Network, pixels: Pixels, rows: Rows, device: torch.device) -> npt.NDArray[np.float32]:
    """The body's last activations (rows, activations) of these rows, in eval mode, in one batch."""
    computed = np.empty((len(rows), network.width), dtype=np.float32)
    write_activations(computed, network, pixels, rows, len(rows), device)
    return computed


def read_activations(folder: Path) -> Activations:
    """The stored activations (images, activations) as a read-only memory map."""
    stored: Activations = np.load(folder / FILE, mmap_mode="r", allow_pickle=False)
    return stored
