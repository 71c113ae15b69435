"""Near-duplicates across splits: held-out pictures that are nearly identical to a training picture."""

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.system.arrays import Rows
from pipeline.system.device import to_device

Activations = npt.NDArray[np.floating]
# Held-out split, and the split that is searched for its pictures.
ACROSS = (("valid", "train"), ("test", "train"), ("test", "valid"))
CHUNK_ROWS = 4096
COLUMNS = ["row", "path", "split", "label", "twin_row", "twin_path", "twin_split", "twin_label", "similarity"]


def near_duplicates(
    manifest_table: pd.DataFrame,
    activations: Activations,
    similarity: float,
    device: torch.device,
) -> pd.DataFrame:
    """Held-out pictures with a twin in another split, the most similar first: `row`, `path`, `split`, `label`, the
    same of the nearest picture there as `twin_row` and so on, their `similarity`, and whether they are the `same_file`.

    The similarity is the cosine between the pictures' `activations` (manifest's rows, activations), from which the
    mean over all pictures is subtracted first: what all of them share makes no pair similar. It is at least
    `similarity`. Pairs are compared on the `device`; memory does not grow with the number of pictures.
    """
    splits, hashes = manifest_table["split"].to_numpy(), manifest_table["hash"].to_numpy()
    middle = mean_activations(activations)
    found = []
    for held_out, other in ACROSS:
        rows, others = np.flatnonzero(splits == held_out), np.flatnonzero(splits == other)
        nearest, values = _nearest(activations, middle, rows, others, device)
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
    activations: Activations, middle: npt.NDArray[np.float32], rows: Rows, others: Rows, device: torch.device
) -> tuple[Rows, npt.NDArray[np.float32]]:
    """For each of `rows` the nearest of `others`, and how similar it is; -1 where there are no others."""
    nearest, best, centre = [], [], _on(device, middle)
    for start in range(0, len(rows), CHUNK_ROWS):
        own = _directions(_on(device, activations[rows[start : start + CHUNK_ROWS]]), centre)
        value = torch.full((len(own),), -1.0, device=device)
        at = torch.zeros(len(own), dtype=torch.int64, device=device)
        for other_start in range(0, len(others), CHUNK_ROWS):
            chosen = others[other_start : other_start + CHUNK_ROWS]
            nearer, where = (own @ _directions(_on(device, activations[chosen]), centre).T).max(1)
            at = torch.where(nearer > value, _on(device, chosen)[where], at)
            value = torch.maximum(value, nearer)
        nearest.append(at.cpu().numpy())
        best.append(value.cpu().numpy())
    return np.concatenate([np.zeros(0, np.int64), *nearest]), np.concatenate([np.zeros(0, np.float32), *best])


def _on(device: torch.device, array: npt.NDArray[np.generic]) -> Tensor:
    return to_device(torch.from_numpy(array), device)


def _directions(activations: Tensor, centre: Tensor) -> Tensor:
    """Unit vectors (rows, activations) from the centre: their products are cosines."""
    return F.normalize(activations.float() - centre, dim=1)
