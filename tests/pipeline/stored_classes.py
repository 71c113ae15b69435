"""Stored activations with classes in them, and heads trained alone on them, for the tests of many heads at once."""

from dataclasses import replace

import numpy as np
import torch
from torch import nn

from pipeline.data.batches import Batches, fetch_activations
from pipeline.models.network import build_head
from pipeline.recipe.training_sections import TrainingOptions
from pipeline.training.fit import Phase, fit
from pipeline.training.heads.many_heads import AS_ALONE, HeadSetting, SharedSettings
from pipeline.training.heads.stacked_heads import HeadShape
from pipeline.training.optim import AS_EVER, build_optimizer
from pipeline.training.records import EpochRecord

CPU = torch.device("cpu")
WIDTH, CLASSES = 20, 3


def stored_batches(train: int = 70, batch_size: int = 16, valid: int = 37) -> tuple[Batches, Batches]:
    """Training and validation batches; neither count is a whole number of batches."""
    random = np.random.default_rng(0)
    targets = random.integers(0, CLASSES, train + valid)
    activations = random.random((train + valid, WIDTH)) + 0.5 * np.eye(CLASSES, WIDTH)[targets]
    fetch = fetch_activations(activations.astype(np.float16), CPU)
    rows = np.arange(train + valid)
    return (
        Batches(fetch, rows[:train], targets, batch_size, CPU, seed=0),
        Batches(fetch, rows[train:], targets, 25, CPU),
    )


def shape(hidden: int) -> HeadShape:
    """Of a head on these activations."""
    return HeadShape(WIDTH, CLASSES, hidden)


def new_head(
    one: HeadSetting, hidden: int, options: TrainingOptions = AS_EVER
) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A head and its optimizer, as train_head makes them."""
    torch.manual_seed(one.seed)
    head = build_head(WIDTH, CLASSES, hidden, one.dropout)
    names = {"head": [name for name, _ in head.named_parameters()]}
    return head, build_optimizer(head, names, {"head": one.lr}, one.weight_decay, options)


def trained_alone(
    one: HeadSetting, hidden: int, batches: tuple[Batches, Batches], shared: SharedSettings = AS_ALONE
) -> tuple[nn.Module, list[EpochRecord]]:
    """The head and its epochs, by the training loop of all stages."""
    train, valid = batches
    head, optimizer = new_head(one, hidden, shared.options)
    train = replace(train, seed=one.seed)
    told = {"warm_up": shared.warm_up, "options": shared.options}
    phase = Phase(head, optimizer, train, valid, [one.stored_epochs], one.label_smoothing, **told)
    return head, [moment for moment in fit(phase) if isinstance(moment, EpochRecord)]
