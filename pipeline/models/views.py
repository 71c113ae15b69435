"""The store of augmented activations: the frozen layer groups' activations of training pictures varied at random.

It differs from the store of plain activations in kind and layout, and holds rows of the training split alone, so that
neither can be mistaken for the other and no validation picture can be augmented.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from pipeline.cache.hashing import content_key
from pipeline.cache.store import open_or_build
from pipeline.data.augment import Augmentation
from pipeline.data.batches import seed_for
from pipeline.data.decode import Pixels
from pipeline.models.activations import VIEW_ROWS_FILE, VIEWS_FILE, StoreSettings, computed_by, write_activations
from pipeline.models.cut import Halves, cut_network
from pipeline.models.engine.stored_pass import Variation
from pipeline.models.network import Network
from pipeline.system.arrays import Rows, allocate_array


@dataclass(frozen=True)
class Views:
    """`count` views of each of the training `rows`, varied by `augmentation` with random numbers that follow from
    `seed`."""

    rows: Rows
    count: int
    augmentation: Augmentation
    seed: int


def open_views(
    network: Network,
    pixels: Pixels,
    views: Views,
    key_parts: Mapping[str, object],
    settings: StoreSettings,
    halves: Halves | None = None,
) -> Path:
    """The folder of the store of `views`, built unless it is there already.

    `key_parts` are those of the plain store (see `activation_key_parts`), and so are the `halves` of the network. How a
    picture is varied follows from the seed, the view, its index in `views.rows` and the batch size.
    """
    rows = views.rows
    halves = halves or cut_network(network, "head", pixels.shape[1])
    key_parts = computed_by(key_parts, settings.device, halves) | {
        "rows": content_key({"rows": rows.tolist()}),
        "views": views.count,
        "augmentation": asdict(views.augmentation),
        "batch_size": settings.batch_size,
        "seed": views.seed,
    }

    def build(folder: Path) -> None:
        np.save(folder / VIEW_ROWS_FILE, rows)
        stored = allocate_array(folder / VIEWS_FILE, (views.count, len(rows), *halves.shape), settings.dtype)
        for view in range(views.count):
            variation = Variation(views.augmentation, seed_for(views.seed, view))
            write_activations(stored[view], network, pixels, rows, settings, variation, halves)
        stored.flush()

    return open_or_build("views", key_parts, build)[0]
