"""The store of augmented activations: the frozen layer groups' activations of training pictures varied at random.

It is another store than that of plain activations, of another kind and layout, and holds rows of the training split
alone, so that neither can be taken for the other and nothing that is validated on can be augmented.
"""

from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from pipeline.activations import Activations, Dtype, write_activations
from pipeline.augment import Augmentation, augment
from pipeline.batches import seed_for
from pipeline.cut import Halves, cut_network
from pipeline.decode import Pixels
from pipeline.disk import allocate_array
from pipeline.mapped import MappedRows
from pipeline.network import Network
from pipeline.splits import Rows
from pipeline.store import content_key, open_or_build

Number = TypeVar("Number", np.int64, np.float32)

FILE, ROWS_FILE = "views.npy", "rows.npy"


def open_views(
    network: Network,
    pixels: Pixels,
    rows: Rows,
    views: int,
    how: Augmentation,
    parts: Mapping[str, object],
    batch_size: int,
    device: torch.device,
    dtype: Dtype,
    seed: int,
    halves: Halves | None = None,
) -> Path:
    """The folder of the store of `views` varied views of these training rows, built where it is not there already.

    `parts` are those of the plain store (see `store_parts`), and so are the `halves` of the network. How a picture is
    varied follows from the seed, the view, its place among `rows` and the batch size.
    """
    made_from = dict(parts) | {
        "rows": content_key({"rows": rows.tolist()}),
        "views": views,
        "augmentation": asdict(how),
        "batch_size": batch_size,
        "seed": seed,
    }

    halves = halves or cut_network(network, "head", pixels.shape[1])

    def build(folder: Path) -> None:
        np.save(folder / ROWS_FILE, rows)
        stored = allocate_array(folder / FILE, (views, len(rows), *halves.shape), dtype)
        for view in range(views):
            generator = torch.Generator().manual_seed(seed_for(seed, view))
            vary = partial(augment, how=how, generator=generator)
            write_activations(stored[view], network, pixels, rows, batch_size, device, vary, halves.below)
        stored.flush()

    return open_or_build("views", made_from, build)[0]


class PlainAndViews:
    """Plain activations, and behind them each view of each of `rows` as a row of its own; read by row numbers."""

    def __init__(self, plain: Activations, folder: Path) -> None:
        self.plain = MappedRows(plain)
        self.rows: Rows = np.load(folder / ROWS_FILE, allow_pickle=False)
        views: npt.NDArray[Any] = np.load(folder / FILE, mmap_mode="r", allow_pickle=False)
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

    def targets(self, targets: npt.NDArray[Number]) -> npt.NDArray[Number]:
        """The targets of all rows, or their weights, from those of the plain ones."""
        return np.concatenate([targets, np.tile(targets[self.rows], self.views)])
