"""The activation store: the frozen layer groups' activations of every picture as it is, computed once.

They are those at a cut: the body's last ones, or the ones that its late layer group is fed. Only plain, un-augmented
pictures go through it, each row belongs to one row of the manifest, and a store is published whole or not at all (see
`store`).
"""

import json
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.batches import fetch_activations
from pipeline.checkpoint import load_checkpoint
from pipeline.console import track
from pipeline.cut import Above, Cut, Halves, cut_network
from pipeline.decode import Fit, Pixels
from pipeline.device import mixed_precision
from pipeline.disk import allocate_array
from pipeline.errors import UserError
from pipeline.feed import reader
from pipeline.mapped import MAPPED_BYTES, MappedRows, let_go
from pipeline.network import Network
from pipeline.prefetch import fetch_ahead
from pipeline.splits import Rows
from pipeline.store import DESCRIPTION, content_key, open_or_build

FILE = "activations.npy"
# Goes into the store's key: to be counted up when `Network.activations` starts to give other values.
ACTIVATIONS_VERSION = 1
# Batches whose activations are on their way from the GPU while it goes on.
IN_FLIGHT = 2
GIB = 2**30

Dtype: TypeAlias = Literal["float16", "float32"]
Activations: TypeAlias = npt.NDArray[np.float16] | npt.NDArray[np.float32]


def store_parts(
    hashes: Sequence[str],
    size_px: int,
    fit: Fit,
    grey: bool,
    backbone: str,
    weights: str,
    dtype: Dtype,
    cut: Cut = "head",
) -> dict[str, object]:
    """Everything that could change the activations of pictures with these content `hashes`, in this order."""
    parts: dict[str, object] = {
        "pictures": content_key({"hashes": list(hashes)}),
        "size_px": size_px,
        "fit": fit,
        "grey": grey,
        "backbone": backbone,
        "weights": weights,
        "dtype": dtype,
        "version": ACTIVATIONS_VERSION,
    }
    return parts if cut == "head" else parts | {"cut": cut}


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
    parts: dict[str, object],
    batch_size: int,
    device: torch.device,
    dtype: Dtype,
    halves: Halves | None = None,
) -> Path:
    """The folder of the store for `parts`, built from `pixels` where it is not there already.

    It holds the activations at the cut between the `halves` of the network; without them, the body's last ones.
    """
    halves = halves or cut_network(network, "head", pixels.shape[1])

    def build(folder: Path) -> None:
        stored = allocate_array(folder / FILE, (len(pixels), *halves.shape), dtype)
        write_activations(stored, network, pixels, np.arange(len(pixels)), batch_size, device, below=halves.below)
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
    below: Callable[[Tensor], Tensor] | None = None,
) -> None:
    """The body's last activations of these rows, in eval mode, into `stored` (rows, activations); of each batch of
    images what `vary` makes of it. With `below`, the activations that that gives.

    Raises UserError where one is too large for float16.
    """
    network.eval()
    parts = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    fetch, workers = reader(pixels, device)
    fetched = track(
        fetch_ahead(fetch, parts, device, workers), "precomputing activations", len(rows), "images", batch_size
    )
    _write(stored, below or network.activations, map(vary, fetched))


def _write(stored: Activations, compute: Callable[[Tensor], Tensor], batches: Iterable[Tensor]) -> None:
    """What `compute` gives for all batches, one after the other."""
    done = written_bytes = 0
    for computed in _computed(compute, batches, torch.float16 if stored.dtype == np.float16 else torch.float32):
        if computed.dtype == np.float16 and not np.isfinite(computed).all():
            raise UserError("Some activations are too large for float16; set precompute.dtype to float32.")
        stored[done : done + len(computed)] = computed
        done, written_bytes = done + len(computed), written_bytes + computed.nbytes
        if written_bytes > MAPPED_BYTES:
            let_go(stored)
            written_bytes = 0


def _computed(
    compute: Callable[[Tensor], Tensor], batches: Iterable[Tensor], dtype: torch.dtype
) -> Iterator[Activations]:
    """The activations of each batch; on a GPU each comes over while the next two are computed."""
    waiting: deque[tuple[Tensor, Any]] = deque()
    for inputs in batches:
        with mixed_precision(inputs.device):
            activations = compute(inputs).float().to(dtype)
        on_gpu = inputs.device.type == "cuda"
        arriving = activations.to("cpu", non_blocking=True)
        waiting.append((arriving, torch.cuda.current_stream(inputs.device).record_event() if on_gpu else None))
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
    """The stored activations (images, …) as a read-only memory map."""
    stored: Activations = np.load(folder / FILE, mmap_mode="r", allow_pickle=False)
    return stored


def read_last_activations(
    folder: Path, checkpoint_folder: Path, cut: Cut, batch_size: int, device: torch.device
) -> Activations:
    """The frozen body's last activations (images, activations), which say how alike pictures are, from the store in
    `folder`: as they are stored, or, where they were cut off below, computed from what is stored by the network of the
    checkpoint; that is done once, and kept in the cache."""
    stored = read_activations(folder)
    if cut == "head":
        return stored
    made_from = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))["made_from"]

    @torch.no_grad()
    def build(place: Path) -> None:
        network, checkpoint = load_checkpoint(checkpoint_folder)
        above = cut_network(network, cut, checkpoint.image_px).above.to(device).eval()
        assert isinstance(above, Above)
        last = allocate_array(place / FILE, (len(stored), network.width), stored.dtype)
        fetch = fetch_activations(MappedRows(stored), device)
        parts = (np.arange(start, min(start + batch_size, len(stored))) for start in range(0, len(stored), batch_size))
        fetched = track(map(fetch, parts), "comparing pictures", len(stored), "images", batch_size)
        _write(last, above.last_activations, fetched)
        last.flush()

    return read_activations(open_or_build("activations", made_from | {"cut": "head", "from": cut}, build)[0])
