"""What both sides do: the pictures, the weights and the sizes, the same for both."""

from dataclasses import dataclass
from pathlib import Path
from random import Random

import pandas as pd

from pipeline.data.manifest import build_manifest
from pipeline.data.readers.sources import list_source

SEED = 0
START_LR, END_LR = 1e-6, 1e-3  # of the finder: so low that no test stops early, so that both take the same steps


@dataclass(frozen=True)
class Work:
    """`backbone` at `image_px` in batches of `batch_size`, on so many of the packaged pictures: `stored` for an epoch
    of the head on stored activations and for its finder, `frozen` for an epoch without them, `unfrozen` for one of all
    layers, `tta` for evaluation with test-time augmentation; `iterations` of the finder; `recipe_epochs` of fastai's
    `fine_tune`, on `recipe_pictures`, of which some are held out (all if it is 0)."""

    backbone: str
    image_px: int = 128
    batch_size: int = 32
    stored: int = 2048
    frozen: int = 2048
    unfrozen: int = 1024
    tta: int = 512
    iterations: int = 100
    recipe_pictures: int = 0
    recipe_epochs: int = 3


def validated(train: int) -> int:
    """How many further pictures an epoch of so many is validated on, on either side."""
    return train // 8


def pictures(count: int) -> dict[Path, str]:
    """So many files of the packaged set, in an order of its own, each with its label."""
    listing = list_source("elpv", [])
    rows = list(range(len(listing.paths)))
    Random(SEED).shuffle(rows)
    return {listing.root / listing.paths[row]: listing.labels[row] for row in rows[:count]}


def recipe_split(work: Work) -> pd.DataFrame:
    """`file`, `label` and `split` of the pictures of the recipe, as the default recipe splits them all."""
    manifest = build_manifest(list_source("elpv", []), 0.15, 0.25, 0.01, SEED)
    files = [Path(manifest.root) / path for path in manifest.table["path"]]
    rows = list(range(len(files)))
    Random(SEED).shuffle(rows)
    return manifest.table[["label", "split"]].assign(file=files).iloc[sorted(rows[: work.recipe_pictures or None])]
