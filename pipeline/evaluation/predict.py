"""One pass over the pictures gives one table of predictions, from which every number about a model is derived."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from pipeline.data.augment import take_view
from pipeline.data.batches import prefetch
from pipeline.data.decode import Pixels
from pipeline.data.loader import prefetching_fetcher, rows_per_pass
from pipeline.models.engine.helpers import opened
from pipeline.models.engine.passes import Frozen, SharedPass
from pipeline.models.engine.spread import Work
from pipeline.ranks.exchange import collect
from pipeline.ranks.team import deal, processes, together
from pipeline.system.arrays import Rows
from pipeline.system.console import track
from pipeline.system.device import choose_device, mixed_precision

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
    `batch_size` at a time if that is faster, and helpers take their part, if there are any."""
    if isinstance(network, SharedPass):
        found = _predict_together(network, pixels, rows, Asked(batch_size, views, description))
        return np.concatenate([probabilities for probabilities, _ in found])
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
    if isinstance(network, SharedPass):
        kept = rows if kept is None else kept
        found = _predict_together(network, pixels, rows, Asked(batch_size, None, description, kept))
        return np.concatenate([one[0] for one in found]), np.concatenate([one[1] for one in found])
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


@dataclass(frozen=True)
class Asked:
    """How rows are predicted: the arguments of `predict`, or with `kept` those of `predict_with_activations`."""

    batch_size: int
    views: Tensor | None
    description: str
    kept: Rows | None = None

    def of(
        self, network: Frozen, pixels: Pixels, rows: Rows, device: torch.device
    ) -> tuple[Probabilities, npt.NDArray[np.float16]]:
        """The probabilities and the activations of these rows; no activations where none are asked for."""
        if self.kept is None:
            views, none = self.views, np.empty((len(rows), 0), dtype=np.float16)
            return predict(network, pixels, rows, self.batch_size, device, views, self.description), none
        return predict_with_activations(network, pixels, rows, self.batch_size, device, self.description, self.kept)


def predict_share(work: Work, rows: Rows, asked: Asked) -> None:
    """A helper's part of these rows, sent to the leader."""
    here = opened(work)
    assert here.frozen is not None
    frozen = here.frozen.own if isinstance(here.frozen, SharedPass) else here.frozen
    for array in asked.of(frozen, here.pixels, rows[deal().stretch(len(rows))], choose_device(work.device)):
        collect(array)


def _predict_together(
    network: SharedPass, pixels: Pixels, rows: Rows, asked: Asked
) -> list[tuple[Probabilities, npt.NDArray[np.float16]]]:
    """What all processes find for their stretches of the rows, in the rows' order."""
    device = choose_device(network.spread.work.device)
    if len(rows) < processes():
        return [asked.of(network.own, pixels, rows, device)]
    with together(predict_share, network.spread.work, rows, asked):
        network.spread.provide()
        found = asked.of(network.own, pixels, rows[deal().stretch(len(rows))], device)
        return list(zip(*(collect(array) for array in found), strict=True))


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
