"""One pass over the pictures gives one table of predictions, from which every number about a model is derived."""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from pipeline.data.augment import take_view
from pipeline.data.batches import prefetch
from pipeline.data.decode import Pixels
from pipeline.data.loader import prefetching_fetcher, rows_per_pass
from pipeline.models.engine.passes import Frozen
from pipeline.system.arrays import Rows
from pipeline.system.console import track
from pipeline.system.device import mixed_precision

Probabilities = npt.NDArray[np.float64]
SMALLEST = 1e-12


@torch.no_grad()
def predict(
    network: Frozen,
    pixels: Pixels,
    rows: Rows,
    batch_size: int,
    device: torch.device,
    views: Tensor | None = None,
    description: str = "predicting",
) -> Probabilities:
    """Class probabilities (rows, classes), in eval mode; with `views` (number, 2, 3), the mean of the probabilities
    over these fixed views of each picture (see `augment.view_matrices`), all in one batch. A GPU takes more than
    `batch_size` at a time if that is faster."""
    network.eval()
    at_once = rows_per_pass(pixels, batch_size, device)
    count = at_once if views is None else max(at_once // len(views), 1)
    chunks = []
    for images in _images(pixels, rows, count, device, description):
        if views is None:
            chunks.append(_probabilities(network, images))
        else:
            seen = _probabilities(network, _views(images, views))
            chunks.append(seen.view(len(views), len(images), -1).mean(0))
    return torch.cat(chunks).cpu().numpy()


@torch.no_grad()
def predict_with_activations(
    network: Frozen,
    pixels: Pixels,
    rows: Rows,
    batch_size: int,
    device: torch.device,
    description: str = "predicting",
    kept: Rows | None = None,
) -> tuple[Probabilities, npt.NDArray[np.float16]]:
    """The result of `predict`, and from the same pass the head's input (rows, activations); with `kept`, only those of
    these rows, in the order of `rows`."""
    network.eval()
    chunks, seen, done = [], [], 0
    is_kept = torch.from_numpy(np.ones(len(rows), dtype=bool) if kept is None else np.isin(rows, kept))
    for images in _images(pixels, rows, rows_per_pass(pixels, batch_size, device), device, description):
        with mixed_precision(device):
            activations, logits = network.with_activations(images)
        chunks.append(logits.double().softmax(1))
        chosen = is_kept[done : done + len(images)].to(device)
        seen.append(activations[chosen].half().cpu())
        done += len(images)
    return torch.cat(chunks).cpu().numpy(), torch.cat(seen).numpy()


def predictions_table(
    manifest_rows: pd.DataFrame, classes: Sequence[str], plain: Probabilities, tta: Probabilities
) -> pd.DataFrame:
    """A row per picture: `row`, `path`, `hash` (of its content), `split`, `label`, `predicted`, `loss`, `confidence`, a
    column `probability/<class>` each, and the same with TTA as `tta_predicted`, `tta_loss` and
    `tta_probability/<class>`.

    `manifest_rows` is the part of the manifest's table that was predicted, with the manifest's row numbers as its
    index; `plain` and `tta` are (rows, classes).
    """
    names = np.array(classes)
    targets = manifest_rows["label"].map({label: index for index, label in enumerate(classes)}).to_numpy()
    table = manifest_rows[["path", "hash", "split", "label"]].copy()
    table.insert(0, "row", manifest_rows.index)
    for prefix, probabilities in (("", plain), ("tta_", tta)):
        of_label = probabilities[np.arange(len(targets)), targets]
        table[f"{prefix}predicted"] = names[probabilities.argmax(1)]
        table[f"{prefix}loss"] = losses(of_label)
        table[f"{prefix}confidence"] = probabilities.max(1)
        columns = [f"{prefix}probability/{label}" for label in classes]
        table = pd.concat([table, pd.DataFrame(probabilities, index=table.index, columns=columns)], axis=1)
    return table


def losses(of_label: Probabilities) -> Probabilities:
    """The cross-entropies of pictures whose true labels have these probabilities; finite for a probability of 0."""
    finite: Probabilities = -np.log(np.maximum(of_label, SMALLEST))
    return finite


def _images(pixels: Pixels, rows: Rows, batch_size: int, device: torch.device, description: str) -> Iterator[Tensor]:
    chunks = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    fetch, workers = prefetching_fetcher(pixels, device)
    fetched = prefetch(fetch, chunks, device, workers)
    yield from track(fetched, description, len(rows), "images", batch_size)


def _probabilities(network: Frozen, images: Tensor) -> Tensor:
    with mixed_precision(images.device):
        logits = network(images)
    probabilities: Tensor = logits.double().softmax(1)
    return probabilities


def _views(images: Tensor, matrices: Tensor) -> Tensor:
    """All images (N, …) in the first view, then all in the second, and so on, (views × N, …)."""
    return torch.cat([take_view(images, matrix) for matrix in matrices])
