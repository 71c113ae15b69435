"""What a training stage trains with: batches of the split, and an optimizer over what is thawed."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pipeline.activations import Activations
from pipeline.augment import Augmentation
from pipeline.batches import Batches, fetch_activations
from pipeline.cut import Cut, cut_network
from pipeline.decode import Pixels
from pipeline.feed import feed, resident
from pipeline.layer_groups import Frozen, freeze, layer_groups
from pipeline.manifest import Manifest
from pipeline.mapped import MappedRows
from pipeline.network import Network
from pipeline.optim import build_optimizer
from pipeline.splits import Rows, stratified_fraction
from pipeline.views import PlainAndViews


@dataclass(frozen=True)
class Split:
    """What is trained on and what is validated on: `train` and `valid` are row numbers of `targets`, and of `weights`,
    which say how much each picture counts in training; None where all count alike."""

    train: Rows
    valid: Rows
    targets: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float32] | None = None


def training_split(manifest: Manifest, fraction: float, seed: int) -> Split:
    """The validation split, and a stratified `fraction` of the training split; smaller ones lie within larger ones."""
    train = manifest.rows("train")
    hashes = manifest.table["hash"].iloc[train].tolist()
    chosen = stratified_fraction(manifest.targets[train].tolist(), hashes, fraction, seed)
    return Split(train[chosen], manifest.rows("valid"), manifest.targets, _weights(manifest, train[chosen]))


def _weights(manifest: Manifest, train: Rows) -> npt.NDArray[np.float32] | None:
    """All pictures' weights, or None where those of the rows that are trained on are the same, and say nothing."""
    weights = manifest.table["weight"]
    return None if weights.iloc[train].nunique() < 2 else weights.to_numpy(dtype=np.float32)


def pixel_batches(
    pixels: Pixels, split: Split, augmentation: Augmentation, batch_size: int, device: torch.device, seed: int
) -> tuple[Batches, Batches]:
    """(shuffled, augmented training batches; plain validation batches) of images."""
    fetch, workers = feed(pixels, np.concatenate([split.train, split.valid]), device)
    train = Batches(fetch, split.train, split.targets, batch_size, device, seed, augmentation, workers, split.weights)
    return train, Batches(fetch, split.valid, split.targets, 2 * batch_size, device, workers=workers)


def activation_batches(
    activations: Activations, split: Split, batch_size: int, device: torch.device, seed: int, views: Path | None = None
) -> tuple[Batches, Batches]:
    """(shuffled training batches, validation batches) of stored activations, which are never augmented here.

    With the folder of a store of `views`, an epoch of training has each picture as it is and in each of its views;
    validation reads the plain store alone.
    """
    plain = MappedRows(activations)
    stored: MappedRows | PlainAndViews = plain
    rows, targets, weights = split.train, split.targets, split.weights
    if views is not None:
        stored = PlainAndViews(activations, views)
        rows, targets = stored.with_views(split.train), stored.targets(split.targets)
        weights = None if weights is None else stored.targets(weights)
    train = Batches(_fetch_stored(stored, rows, device), rows, targets, batch_size, device, seed, weights=weights)
    fetch = _fetch_stored(plain, split.valid, device)
    valid_batch_size = batch_size * (8 if activations.ndim == 2 else 2)
    return train, Batches(fetch, split.valid, split.targets, valid_batch_size, device)


def _fetch_stored(stored: MappedRows | PlainAndViews, rows: Rows, device: torch.device) -> Callable[[Rows], Tensor]:
    held = resident(stored, rows, device)
    return fetch_activations(stored, device) if held is None else lambda chosen: held(chosen).float()


def thaw(network: Network, frozen: Frozen, rates: Mapping[str, float], weight_decay: float) -> Optimizer:
    """Freeze what is to stay frozen and thaw the rest; an optimizer over what is thawed, with a rate for each group."""
    freeze(network, frozen)
    return build_optimizer(network, layer_groups(network), rates, weight_decay)


def thaw_above(
    network: Network, cut: Cut, image_px: int, frozen: Frozen, rates: Mapping[str, float], weight_decay: float
) -> tuple[nn.Module, Optimizer]:
    """(what maps activations stored at `cut` to logits, `thaw`'s optimizer over it), for training without what lies
    below, which has to be frozen. UserError if the network cannot be cut there."""
    if cut == "head":
        return network.head, head_optimizer(network.head, rates["head"], weight_decay)
    assert frozen != "none", "the early group lies below the cut"
    return cut_network(network, cut, image_px).above, thaw(network, frozen, rates, weight_decay)


def head_optimizer(head: nn.Module, lr: float, weight_decay: float) -> Optimizer:
    """An optimizer over a head that is trained on stored activations, without its body."""
    return build_optimizer(head, {"head": [name for name, _ in head.named_parameters()]}, {"head": lr}, weight_decay)
