"""Cross-validation of the head: what heads on stored activations make of training pictures that they never saw."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch

from pipeline.data.batches import Batches
from pipeline.data.loader import training_split
from pipeline.data.manifest import Manifest
from pipeline.data.splits import assign_folds, units_of
from pipeline.models.activations import Activations, activation_batches
from pipeline.system.arrays import Rows
from pipeline.system.console import track
from pipeline.training.heads.many_heads import AS_ALONE, HeadSetting, count_at_once, train_stack
from pipeline.training.heads.stacked_heads import HeadShape, StackedHeads

# Linear heads, whatever head is trained: they find as many wrong labels as those with a hidden layer, in a twentieth
# of the time. They are trained at a low rate for few epochs, since heads that fit wrong labels too doubt fewer of them.
HIDDEN, BATCH_SIZE = 0, 64
WEIGHT_DECAY, EPOCHS = 0.01, 5
# The rate times the number of activations: BatchNorm scales these, and a step of AdamW then moves a logit as far,
# however many there are (Yang et al. 2021, "Tensor Programs V").
RATE_BY_WIDTH = 0.8
# So many at least, where pictures are few.
FEWEST_STEPS = 100


def cross_validate(
    stored: Activations, manifest: Manifest, folds: int, seed: int, device: torch.device
) -> npt.NDArray[np.float64]:
    """The class probabilities (training pictures, classes) of each training picture, by a head that was trained on the
    other `folds` and on the validation pictures.

    `stored` are the body's last activations of the manifest's pictures. Copies, and pictures of a group, are in one
    fold. Soft labels and weights count as in training.
    """
    split = training_split(manifest, 1.0, seed)
    known = np.concatenate([split.train, split.valid])
    held_out = _deal(manifest, split.train, folds, seed)
    trained_on = [np.setdiff1d(known, rows) for rows in held_out]
    batch_size = min(BATCH_SIZE, *map(len, trained_on))
    batches, _ = activation_batches(stored, replace(split, train=known), batch_size, device, seed)
    by_fold = [replace(batches, rows=rows, seed=seed + fold) for fold, rows in enumerate(trained_on)]
    shape = HeadShape(stored.shape[1], len(manifest.classes), HIDDEN)
    at_once = count_at_once(shape, batch_size, device)
    lots = [slice(start, start + at_once) for start in range(0, len(by_fold), at_once)]
    epochs = max(EPOCHS, -(-FEWEST_STEPS // min(map(len, by_fold))))
    steps = epochs * sum(min(map(len, by_fold[lot])) for lot in lots)
    ticks = track(range(steps), "cross-validating labels", steps, "steps")
    found = np.zeros((len(manifest.table), shape.classes))
    for lot in lots:
        stack = _train(by_fold[lot], shape, epochs, lambda: next(ticks))
        for head, rows in enumerate(held_out[lot]):
            found[rows] = _probabilities(stack, head, replace(batches, rows=rows, seed=None))
    for _ in ticks:
        pass
    return found[split.train]


def _deal(manifest: Manifest, train: Rows, folds: int, seed: int) -> list[Rows]:
    """The training rows of each fold, those that have any."""
    table = manifest.table.iloc[train]
    units = units_of(table["hash"].tolist(), table["group"].tolist())
    fold_of = assign_folds(manifest.targets[train].tolist(), units, folds, seed)
    return [train[fold_of == fold] for fold in np.unique(fold_of)]


def _train(by_fold: Sequence[Batches], shape: HeadShape, epochs: int, tick: Callable[[], object]) -> StackedHeads:
    """A head for each of these batches, by their seed."""
    settings = [
        HeadSetting(RATE_BY_WIDTH / shape.width, WEIGHT_DECAY, stored_epochs=epochs, seed=one.seed or 0)
        for one in by_fold
    ]
    stack = StackedHeads(shape, [(one.seed, 0.0) for one in settings], by_fold[0].device)
    for _ in train_stack(stack, settings, by_fold, AS_ALONE, tick):
        pass
    return stack


def _probabilities(stack: StackedHeads, head: int, batches: Batches) -> npt.NDArray[np.float64]:
    """The class probabilities (rows, classes) of all rows of the batches, in their order, by one head of the stack."""
    logits = [stack.validate(inputs)[:, head] for inputs, _ in batches.epoch(0)]
    probabilities: npt.NDArray[np.float64] = torch.cat(logits).double().softmax(1).cpu().numpy()
    return probabilities
