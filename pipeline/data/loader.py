"""Training and validation batches of a split; rows are resident in a GPU's memory if they fit, prefetched otherwise."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.data.augment import Augmentation
from pipeline.data.batches import Batches, as_images, fetch_pixels
from pipeline.data.decode import Pixels
from pipeline.data.decoded_pixels import ROWS_OF_A_GPU, DecodedPixels
from pipeline.data.manifest import Manifest
from pipeline.data.splits import stratified_fraction
from pipeline.data.stored_pixels import StoredPixels
from pipeline.system.arrays import Rows
from pipeline.system.device import pictures_per_pass, to_device

Balance: TypeAlias = Literal["none", "weights", "sampler"]
Fetch: TypeAlias = Callable[[Rows], Tensor]

# Share of a GPU's free memory that rows may take; training needs the rest.
RESIDENT_SHARE = 0.4
# Prefetching threads for pictures that are decoded each time.
WORKERS_THAT_DECODE = 2
# Rows that are copied to a GPU at once.
ROWS_AT_ONCE = 256


@dataclass(frozen=True)
class Split:
    """The rows to train on and the rows to validate on: `train` and `valid` are row numbers of `targets`, and of
    `weights`, which say how much each picture counts in training; None if all count alike. `is_balanced` and `shares`
    are those of Batches."""

    train: Rows
    valid: Rows
    targets: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float32] | None = None
    is_balanced: bool = False
    shares: npt.NDArray[np.float32] | None = None


def training_split(manifest: Manifest, fraction: float, seed: int, balance: Balance = "none") -> Split:
    """The validation split, and a stratified `fraction` of the training split; a larger one contains a smaller one.
    Rare classes count more by their `weights`, or are drawn as often as the others by a `sampler`."""
    train = manifest.rows("train")
    hashes = manifest.table["hash"].iloc[train].tolist()
    chosen = stratified_fraction(manifest.targets[train].tolist(), hashes, fraction, seed)
    rows, weights = train[chosen], _weights(manifest, train[chosen])
    if balance == "weights":
        weights = class_weights(manifest.targets, rows) * (1 if weights is None else weights)
    is_balanced = balance == "sampler"
    return Split(rows, manifest.rows("valid"), manifest.targets, weights, is_balanced, manifest.shares)


def class_weights(targets: npt.NDArray[np.int64], rows: Rows) -> npt.NDArray[np.float32]:
    """A weight for each of `targets`, such that each class weighs the same in all `rows`, whose mean weight is 1."""
    counts = np.bincount(targets[rows], minlength=int(targets.max()) + 1)
    shares = len(rows) / np.maximum(np.count_nonzero(counts) * counts, 1)
    weights: npt.NDArray[np.float32] = shares[targets].astype(np.float32)
    return weights


def pixel_batches(
    pixels: Pixels, split: Split, augmentation: Augmentation, batch_size: int, device: torch.device, seed: int
) -> tuple[Batches, Batches]:
    """(shuffled, augmented training batches; plain validation batches) of images.

    On a CPU validation takes no larger batches, since memory that it alone needs is kept through training.
    """
    fetch, workers = training_fetcher(pixels, np.concatenate([split.train, split.valid]), device)
    train = Batches(
        fetch, split.train, split.targets, batch_size, device, seed, augmentation, workers, split.weights,
        split.is_balanced, split.shares,
    )  # fmt: skip
    valid_batch_size = rows_per_pass(pixels, batch_size, device)
    return train, Batches(fetch, split.valid, split.targets, valid_batch_size, device, workers=workers)


def training_fetcher(pixels: Pixels, rows: Rows, device: torch.device) -> tuple[Fetch, int]:
    """A fetch function for images of `rows`, which are read every epoch, and the number of prefetching threads."""
    gather = resident(pixels, rows, device)
    return prefetching_fetcher(pixels, device) if gather is None else (lambda chosen: as_images(gather(chosen)), 0)


def prefetching_fetcher(pixels: Pixels, device: torch.device) -> tuple[Fetch, int]:
    """A fetch function for images that are read once, and the number of prefetching threads (see `prefetch`).

    Each of these threads decodes with one thread per core. A store is read by one thread for a GPU, and by none for a
    CPU, where reading takes so little time that another thread gains nothing.
    """
    if isinstance(pixels, DecodedPixels):
        on_gpu = device.type == "cuda" and pixels.decoder == "nvjpeg"
        return _fetch_decoded(pixels) if on_gpu else fetch_pixels(pixels, device), WORKERS_THAT_DECODE
    if device.type == "cuda":
        return _fetch_pinned(pixels, device) if isinstance(pixels, StoredPixels) else fetch_pixels(pixels, device), 1
    return fetch_pixels(pixels, device), 0


def rows_per_pass(pixels: Pixels, batch_size: int, device: torch.device) -> int:
    """How many of `pixels` go through a network at a time where nothing is trained (see `pictures_per_pass`); of those
    that are decoded each time no more than a GPU decodes at once, since their files are held meanwhile."""
    count = pictures_per_pass(batch_size, pixels.shape[1], device)
    return min(count, max(batch_size, ROWS_OF_A_GPU)) if isinstance(pixels, DecodedPixels) else count


def resident(stored: Any, rows: Rows, device: torch.device) -> Fetch | None:
    """Copy these rows of an array, memory-mapped or not, to a GPU's memory; gives a function that gathers them there,
    as they are stored. None on a CPU, for pictures that are decoded each time, and if they take too much memory."""
    if device.type != "cuda" or isinstance(stored, DecodedPixels):
        return None
    needed_bytes = len(rows) * int(np.prod(stored.shape[1:])) * stored.dtype.itemsize
    if needed_bytes > RESIDENT_SHARE * torch.cuda.mem_get_info(device)[0]:
        return None
    one = torch.from_numpy(stored[rows[:1]])
    held = torch.empty((len(rows), *one.shape[1:]), dtype=one.dtype, device=device)
    for start in range(0, len(rows), ROWS_AT_ONCE):
        chunk = rows[start : start + ROWS_AT_ONCE]
        held[start:][: len(chunk)] = to_device(torch.from_numpy(stored[chunk]), device)
    positions = np.full(len(stored), -1, dtype=np.int64)
    positions[rows] = np.arange(len(rows))

    def gather(chosen: Rows) -> Tensor:
        return held.index_select(0, to_device(torch.from_numpy(positions[chosen]), device))

    return gather


def _weights(manifest: Manifest, train: Rows) -> npt.NDArray[np.float32] | None:
    """All pictures' weights, or None if those of the training rows are all the same."""
    weights = manifest.table["weight"]
    return None if weights.iloc[train].nunique() < 2 else weights.to_numpy(dtype=np.float32)


def _fetch_pinned(pixels: StoredPixels, device: torch.device) -> Fetch:
    def fetch(rows: Rows) -> Tensor:
        squares = torch.empty((len(rows), *pixels.shape[1:]), dtype=torch.uint8, pin_memory=True)
        pixels.read_into(rows, squares.numpy())
        return as_images(squares.to(device, non_blocking=True))

    return fetch


def _fetch_decoded(pixels: DecodedPixels) -> Fetch:
    return lambda rows: as_images(pixels.on_gpu(rows.tolist()))
