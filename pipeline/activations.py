"""The activation store: the frozen body's last activations of every picture as it is, computed once.

Only plain, un-augmented pictures go through it, each row belongs to one row of the manifest, and a store is
published whole or not at all (see `store`).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from pipeline.batches import fetch_pixels
from pipeline.console import track
from pipeline.decode import Fit, Pixels
from pipeline.device import mixed_precision
from pipeline.disk import allocate_array
from pipeline.network import Network
from pipeline.splits import Rows
from pipeline.store import content_key, open_or_build

FILE = "activations.npy"
# Goes into the store's key: to be counted up when `Network.activations` starts to give other values.
ACTIVATIONS_VERSION = 1

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
        shape = (len(pixels), network.width)
        stored = allocate_array(folder / FILE, shape, dtype)
        starts = range(0, len(pixels), batch_size)
        for start in track(starts, "precomputing activations", len(pixels), "images", batch_size):
            rows = np.arange(start, min(start + batch_size, len(pixels)), dtype=np.int64)
            stored[rows] = compute_activations(network, pixels, rows, device)
        stored.flush()

    return open_or_build("activations", parts, build)[0]


@torch.no_grad()
def compute_activations(network: Network, pixels: Pixels, rows: Rows, device: torch.device) -> npt.NDArray[np.float32]:
    """The body's last activations (rows, activations) of these rows, in eval mode."""
    network.eval()
    with mixed_precision(device):
        activations = network.activations(fetch_pixels(pixels, device)(rows))
    computed: npt.NDArray[np.float32] = activations.float().cpu().numpy()
    return computed


def read_activations(folder: Path) -> Activations:
    """The stored activations (images, activations) as a read-only memory map."""
    stored: Activations = np.load(folder / FILE, mmap_mode="r", allow_pickle=False)
    return stored
