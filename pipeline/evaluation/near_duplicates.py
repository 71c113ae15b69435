"""Near-duplicates across splits: held-out pictures that are nearly identical to a training picture."""

import numpy as np
import numpy.typing as npt
import pandas as pd

from pipeline.system.arrays import Rows

Activations = npt.NDArray[np.floating]
# Held-out split, and the split that is searched for its pictures.
ACROSS = (("valid", "train"), ("test", "train"), ("test", "valid"))
CHUNK_ROWS = 4096
COLUMNS = ["row", "path", "split", "label", "twin_row", "twin_path", "twin_split", "twin_label", "similarity"]


def near_duplicates(manifest_table: pd.DataFrame, activations: Activations, similarity: float) -> pd.DataFrame:
    """Held-out pictures with a twin in another split, the most similar first: `row`, `path`, `split`, `label`, the
    same of the nearest picture there as `twin_row` and so on, their `similarity`, and whether they are the `same_file`.

    The similarity is the cosine between the pictures' `activations` (manifest's rows, activations), from which the
    mean over all pictures is subtracted first: what all of them share makes no pair similar. It is at least
    `similarity`. Memory does not grow with the number of pictures.
    """
    splits, hashes = manifest_table["split"].to_numpy(), manifest_table["hash"].to_numpy()
    middle = mean_activations(activations)
    found = []
    for held_out, other in ACROSS:
        rows, others = np.flatnonzero(splits == held_out), np.flatnonzero(splits == other)
        nearest, values = _nearest(activations, middle, rows, others)
        exact = {content: row for row, content in zip(others, hashes[others], strict=True)}
        for row, twin, value in zip(rows, nearest, values, strict=True):
            same = exact.get(hashes[row])
            if same is not None or value >= similarity:
                found.append((row, twin if same is None else same, 1.0 if same is not None else float(value)))
    pairs = pd.DataFrame(found, columns=["row", "twin_row", "similarity"]).astype({"row": int, "twin_row": int})
    listed = manifest_table[["path", "split", "label"]]
    pairs = pairs.join(listed, on="row").join(listed.add_prefix("twin_"), on="twin_row")[COLUMNS]
    pairs["same_file"] = hashes[pairs["row"]] == hashes[pairs["twin_row"]]
    return pairs.sort_values("similarity", ascending=False, kind="stable", ignore_index=True)


def mean_activations(activations: Activations) -> npt.NDArray[np.float32]:
    """The mean (activations) over all pictures, a chunk at a time."""
    sums = np.zeros(activations.shape[1], dtype=np.float64)
    for start in range(0, len(activations), CHUNK_ROWS):
        sums += activations[start : start + CHUNK_ROWS].sum(axis=0, dtype=np.float64)
    return (sums / max(len(activations), 1)).astype(np.float32)


def _nearest(
    activations: Activations, middle: npt.NDArray[np.float32], rows: Rows, others: Rows
) -> tuple[Rows, npt.NDArray[np.float32]]:
    """For each of `rows` the nearest of `others`, and how similar it is; -1 where there are no others."""
    nearest = np.zeros(len(rows), dtype=np.int64)
    best = np.full(len(rows), -1, dtype=np.float32)
    for start in range(0, len(rows), CHUNK_ROWS):
        here = slice(start, start + CHUNK_ROWS)
        own = directions(activations, middle, rows[here])
        for other_start in range(0, len(others), CHUNK_ROWS):
            chosen = others[other_start : other_start + CHUNK_ROWS]
            cosines = own @ directions(activations, middle, chosen).T
            at = cosines.argmax(axis=1)
            values = cosines[np.arange(len(at)), at]
            is_nearer = values > best[here]
            nearest[here] = np.where(is_nearer, chosen[at], nearest[here])
            best[here] = np.where(is_nearer, values, best[here])
    return nearest, best


def directions(activations: Activations, middle: npt.NDArray[np.float32], rows: Rows) -> npt.NDArray[np.float32]:
    """Unit vectors (rows, activations) from `middle` to the activations of these rows: their products are cosines."""
    centred = activations[rows].astype(np.float32) - middle
    lengths = np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)
    found: npt.NDArray[np.float32] = centred / lengths
    return found
