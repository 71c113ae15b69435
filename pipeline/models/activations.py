"""The activation store: the frozen layer groups' activations of every picture as it is, computed once.

They are those at a cut: the body's last ones, or the inputs of its late layer group. Only plain, un-augmented pictures
are stored here, each row belongs to one row of the manifest, and a store is published whole or not at all (see
`store`).
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.cache.hashing import content_key, library_versions
from pipeline.cache.store import DESCRIPTION, open_or_build
from pipeline.data.batches import Batches, fetch_activations
from pipeline.data.decode import Decoder, Pixels
from pipeline.data.loader import Split, resident
from pipeline.models.checkpoint import Checkpoint, load_checkpoint
from pipeline.models.cut import Above, Cut, Halves, cut_network
from pipeline.models.engine.stored_pass import (
    Activations as Activations,  # their home, for all that stores and reads activations
)
from pipeline.models.engine.stored_pass import Dtype as Dtype
from pipeline.models.engine.stored_pass import StoreSettings as StoreSettings
from pipeline.models.engine.stored_pass import compute_activations, write_arrays
from pipeline.models.engine.stored_pass import write_activations as write_activations
from pipeline.models.network import Network
from pipeline.system.arrays import MappedRows, Rows, allocate_array
from pipeline.system.console import track
from pipeline.system.device import pictures_per_pass, precision_of
from pipeline.system.errors import UserError

FILE, VIEWS_FILE, VIEW_ROWS_FILE = "activations.npy", "views.npy", "rows.npy"
# A part of the store's key: to be counted up when `Network.activations` starts to give other values.
ACTIVATIONS_VERSION = 1
GIB = 2**30
_Number = TypeVar("_Number", np.int64, np.float32)


def activation_key_parts(
    hashes: Sequence[str],
    checkpoint: Checkpoint,
    weights: str,
    dtype: Dtype,
    cut: Cut = "head",
    decoder: Decoder = "pillow",
) -> dict[str, object]:
    """Everything that could change the activations of pictures with these content `hashes`, in this order, in the body
    of `checkpoint` with these `weights`; but for the precision, which follows from where they are computed."""
    key_parts: dict[str, object] = {
        "pictures": content_key({"hashes": list(hashes)}),
        "size_px": checkpoint.image_px,
        "fit": checkpoint.fit,
        "grey": checkpoint.grey,
        "backbone": checkpoint.backbone,
        "weights": weights,
        "dtype": dtype,
        "version": ACTIVATIONS_VERSION,
        "versions": library_versions("torch", "torchvision", "timm", "pillow"),
    }
    if decoder != "pillow":
        key_parts["decoder"] = decoder
    if checkpoint.ranges:
        key_parts["ranges"] = checkpoint.ranges
    return key_parts if cut == "head" else key_parts | {"cut": cut}


def check_store_size(rows: int, shape: Sequence[int], dtype: Dtype, max_store_gib: float) -> None:
    """Raises UserError if `rows` of activations of this `shape` take more than `max_store_gib`."""
    gib = rows * math.prod(shape) * np.dtype(dtype).itemsize / GIB
    if gib > max_store_gib:
        raise UserError(
            f"{rows:,} rows of activations of shape {' x '.join(map(str, shape))} would take {gib:,.2f} GiB, more than "
            f"data.max_store_gib = {max_store_gib:g} allows; raise it, lower precompute.image_px or precompute.views, "
            "or set precompute.cut to head."
        )


def open_activations(
    network: Network,
    pixels: Pixels,
    key_parts: Mapping[str, object],
    settings: StoreSettings,
    halves: Halves | None = None,
) -> Path:
    """The folder of the store for `key_parts`, built from `pixels` unless it is there already.

    It holds the activations at the cut between the `halves` of the network; without them, the body's last ones.
    """
    halves = halves or cut_network(network, "head", pixels.shape[1])

    def build(folder: Path) -> None:
        stored = allocate_array(folder / FILE, (len(pixels), *halves.shape), settings.dtype)
        write_activations(stored, network, pixels, np.arange(len(pixels)), settings, halves=halves)
        stored.flush()

    return open_or_build("activations", computed_by(key_parts, settings.device, halves), build)[0]


def with_precision(key_parts: Mapping[str, object], device: torch.device) -> dict[str, object]:
    """`key_parts` of activations that are computed on `device`."""
    precision = precision_of(device)
    return dict(key_parts) if precision == "float32" else {**key_parts, "precision": precision}


def computed_by(key_parts: Mapping[str, object], device: torch.device, halves: Halves) -> dict[str, object]:
    """`key_parts` of activations that the lower one of these `halves` computes on `device`."""
    engine = {"engine": dict(halves.engine)} if halves.engine else {}
    return with_precision(key_parts, device) | engine


def read_activations(folder: Path) -> Activations:
    """The stored activations (images, …) as a read-only memory map."""
    stored: Activations = np.load(folder / FILE, mmap_mode="r", allow_pickle=False)
    return stored


def read_last_activations(
    folder: Path, checkpoint_folder: Path, cut: Cut, batch_size: int, device: torch.device
) -> Activations:
    """The frozen body's last activations (images, activations), which show how similar pictures are, from the store in
    `folder`: as they are stored, or, if the `cut` is below them, computed from those that are stored by the network of
    the checkpoint, once; they are kept in the cache."""
    stored = read_activations(folder)
    if cut == "head":
        return stored
    made_from = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))["made_from"]

    @torch.no_grad()
    def build(last_folder: Path) -> None:
        network, checkpoint = load_checkpoint(checkpoint_folder)
        network.move_to(device, len(stored) * checkpoint.image_px**2)
        above = cut_network(network, cut, checkpoint.image_px).above.eval()
        assert isinstance(above, Above)
        last = allocate_array(last_folder / FILE, (len(stored), network.width), stored.dtype)
        fetch = fetch_activations(MappedRows(stored), device)
        count = pictures_per_pass(batch_size, checkpoint.image_px, device)
        chunks = (np.arange(start, min(start + count, len(stored))) for start in range(0, len(stored), count))
        fetched = track(map(fetch, chunks), "comparing pictures", len(stored), "images", count)
        write_arrays(last, compute_activations(above.last_activations, fetched, stored.dtype.name))
        last.flush()

    key_parts = made_from | {"cut": "head", "from": cut, "precision_above": precision_of(device)}
    return read_activations(open_or_build("activations", key_parts, build)[0])


class PlainAndViews:
    """Plain activations, followed by each view of each of `rows` as a row of its own; read by row numbers."""

    def __init__(self, plain: Activations, folder: Path) -> None:
        self.plain = MappedRows(plain)
        self.rows: Rows = np.load(folder / VIEW_ROWS_FILE, allow_pickle=False)
        views: npt.NDArray[Any] = np.load(folder / VIEWS_FILE, mmap_mode="r", allow_pickle=False)
        self.views, self._varied = len(views), MappedRows(views.reshape(-1, *views.shape[2:]))
        self.dtype = plain.dtype
        self.shape: tuple[int, ...] = (len(plain) + len(self._varied), *plain.shape[1:])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Rows) -> Activations:
        chosen = np.empty((len(rows), *self.shape[1:]), dtype=self.dtype)
        is_varied = rows >= len(self.plain)
        chosen[~is_varied] = self.plain[rows[~is_varied]]
        chosen[is_varied] = self._varied[rows[is_varied] - len(self.plain)]
        return chosen

    def with_views(self, rows: Rows) -> Rows:
        """These plain training rows, and all of their views."""
        starts = len(self.plain) + len(self.rows) * np.arange(self.views)
        varied = starts[:, None] + np.searchsorted(self.rows, rows)
        return np.concatenate([rows, varied.ravel()])

    def targets(self, targets: npt.NDArray[_Number]) -> npt.NDArray[_Number]:
        """The targets of all rows, or their weights or shares, from those of the plain ones."""
        return np.concatenate([targets, *[targets[self.rows]] * self.views])


def activation_batches(
    activations: Activations, split: Split, batch_size: int, device: torch.device, seed: int, views: Path | None = None
) -> tuple[Batches, Batches]:
    """(shuffled training batches, validation batches) of stored activations, which are never augmented here.

    With the folder of a store of `views`, an epoch of training has each picture as it is and in each of its views;
    validation reads the plain store alone.
    """
    plain = MappedRows(activations)
    stored: MappedRows | PlainAndViews = plain
    rows, targets, weights, shares = split.train, split.targets, split.weights, split.shares
    if views is not None:
        stored = PlainAndViews(activations, views)
        rows, targets = stored.with_views(split.train), stored.targets(split.targets)
        weights = None if weights is None else stored.targets(weights)
        shares = None if shares is None else stored.targets(shares)
    fetch = _fetch_stored(stored, rows, device)
    train = Batches(
        fetch, rows, targets, batch_size, device, seed, None, 0, weights, split.is_balanced, shares
    )  # fmt: skip
    fetch = _fetch_stored(plain, split.valid, device)
    valid_batch_size = batch_size * (8 if activations.ndim == 2 else 2)
    return train, Batches(fetch, split.valid, split.targets, valid_batch_size, device)


def _fetch_stored(stored: MappedRows | PlainAndViews, rows: Rows, device: torch.device) -> Callable[[Rows], Tensor]:
    held = resident(stored, rows, device)
    return fetch_activations(stored, device) if held is None else lambda chosen: held(chosen).float()
