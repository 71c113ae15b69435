"""The training pictures that a model's activations place nearest to a new one, kept small beside an evaluation.

At most `evaluate.neighbours` pictures are kept, as their activations and a thumbnail each: some 6 kB a picture.
"""

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image

from pipeline.data.decode import Pixels
from pipeline.evaluation.near_duplicates import Activations, mean_activations
from pipeline.system.arrays import Rows
from pipeline.system.parallel import in_parallel
from pipeline.system.tables import read_table, write_table

# The artifact folder of a run of evaluate.
NEIGHBOURS = "neighbours"
PICTURES, ACTIVATIONS, THUMBNAILS, FACTS = "pictures.csv", "activations.npy", "thumbnails.npy", "facts.json"
THUMBNAIL_PX = 96
JPEG_QUALITY = 80
# A picture is unlike all of training if it is less similar to any kept picture than this share of validation pictures.
UNLIKE_SHARE = 0.02
CHUNK_ROWS = 1024
PICTURES_AT_ONCE = 256


@dataclass(frozen=True)
class Neighbour:
    """A training picture: its `label`, its `path` in the data, how similar it is (-1 to 1) and a small JPEG of it."""

    label: str
    path: str
    similarity: float
    thumbnail: bytes


@dataclass(frozen=True)
class Neighbours:
    """Kept training pictures: a table with `path`, `label` and `thumbnail_bytes`, the JPEGs one after the other, and
    their `activations` (pictures, activations). `trained_on` is how many pictures training had in all; a picture whose
    similarity to all of them is below `least_similarity` is unlike them."""

    pictures: pd.DataFrame
    activations: Activations
    thumbnails: npt.NDArray[np.uint8]
    trained_on: int
    least_similarity: float

    @cached_property
    def _directions(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        return _middle_and_directions(self.activations)

    def nearest(self, activations: Activations, number: int) -> list[Neighbour]:
        """The `number` pictures nearest to one with these activations (activations), the nearest first."""
        middle, own = self._directions
        similarities = own @ directions(activations[None], middle, np.zeros(1, dtype=np.int64))[0]
        ends = self.pictures["thumbnail_bytes"].to_numpy().cumsum()
        return [
            Neighbour(
                str(self.pictures["label"].iloc[at]),
                str(self.pictures["path"].iloc[at]),
                float(similarities[at]),
                self.thumbnails[ends[at] - self.pictures["thumbnail_bytes"].iloc[at] : ends[at]].tobytes(),
            )
            for at in np.argsort(-similarities, kind="stable")[:number]
        ]


def choose_kept(rows: Rows, labels: Sequence[str], most: int, seed: int) -> Rows:
    """At most `most` of these rows, in their order; as many of each of their `labels` as there are, before others have
    more."""
    drawn = np.random.default_rng(seed).permutation(len(rows))
    of_label = pd.Series(np.asarray(labels, dtype=object)[drawn])
    turn = of_label.groupby(of_label).cumcount()
    chosen = drawn[np.argsort(turn.to_numpy(), kind="stable")[:most]]
    return rows[np.sort(chosen)]


def least_similarity(kept: Activations, validation: Activations) -> float:
    """The similarity to the nearest of the `kept` pictures that all but a few validation pictures reach; -1 without
    any."""
    if not len(kept) or not len(validation):
        return -1.0
    middle, own = _middle_and_directions(kept)
    nearest = [
        (directions(validation, middle, rows) @ own.T).max(axis=1)
        for rows in np.array_split(np.arange(len(validation)), -(-len(validation) // CHUNK_ROWS))
    ]
    return float(np.quantile(np.concatenate(nearest), UNLIKE_SHARE))


def save_neighbours(
    pictures: pd.DataFrame,
    pixels: Pixels,
    activations: Activations,
    validation: Activations,
    trained_on: int,
    folder: Path,
) -> None:
    """Write what `load_neighbours` reads into `folder`: `pictures` is the part of the manifest's table that is kept,
    with row numbers of `pixels` as its index, and `activations` are theirs; `validation` those of the validation split.
    """
    files = _thumbnails(pixels, pictures.index.to_numpy())
    table = pictures[["path", "label"]].assign(thumbnail_bytes=[len(file) for file in files])
    write_table(table, folder / PICTURES)
    np.save(folder / ACTIVATIONS, activations.astype(np.float16))
    np.save(folder / THUMBNAILS, np.frombuffer(b"".join(files), dtype=np.uint8))
    facts = {"trained_on": trained_on, "least_similarity": least_similarity(activations, validation)}
    (folder / FACTS).write_text(json.dumps(facts), encoding="utf-8")


def load_neighbours(folder: Path) -> Neighbours:
    """What `save_neighbours` wrote."""
    facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
    return Neighbours(
        read_table(folder / PICTURES, ("path", "label")),
        np.load(folder / ACTIVATIONS, allow_pickle=False),
        np.load(folder / THUMBNAILS, allow_pickle=False),
        int(facts["trained_on"]),
        float(facts["least_similarity"]),
    )


def directions(activations: Activations, middle: npt.NDArray[np.float32], rows: Rows) -> npt.NDArray[np.float32]:
    """Unit vectors (rows, activations) from `middle` to the activations of these rows: their products are cosines."""
    centred = activations[rows].astype(np.float32) - middle
    lengths = np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)
    found: npt.NDArray[np.float32] = centred / lengths
    return found


def _middle_and_directions(kept: Activations) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """The mean of the kept activations, and the unit vectors (kept, activations) from it to each of them."""
    middle = mean_activations(kept)
    return middle, directions(kept, middle, np.arange(len(kept)))


def _thumbnails(pixels: Pixels, rows: Rows) -> list[bytes]:
    """A small JPEG of each of these rows. Read many at a time, since a GPU may decode them."""
    blocks = (pixels[rows[start : start + PICTURES_AT_ONCE]] for start in range(0, len(rows), PICTURES_AT_ONCE))
    return [file for block in blocks for file in in_parallel(_thumbnail, list(block))]


def _thumbnail(picture: Pixels) -> bytes:
    image = Image.fromarray(picture.squeeze(-1) if picture.shape[-1] == 1 else picture)
    image.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=JPEG_QUALITY)
    return file.getvalue()
