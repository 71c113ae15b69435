"""Thaw's side: the functions that its stages call, and for the recipe the stages themselves."""

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer

from benchmarks.side_by_side.sides import serve
from benchmarks.side_by_side.work import END_LR, SEED, START_LR, Work, pictures, recipe_split, validated
from pipeline import tracking
from pipeline.data.augment import augmentation, view_matrices
from pipeline.data.batches import Batches
from pipeline.data.decode import Pixels, decode_square
from pipeline.data.loader import Split, pixel_batches
from pipeline.evaluation.predict import predict
from pipeline.models.activations import StoreSettings, activation_batches, write_activations
from pipeline.models.body import load_weights
from pipeline.models.checkpoint import Checkpoint, build_network, load_checkpoint
from pipeline.models.cut import cut_network
from pipeline.models.engine.passes import frozen_below, frozen_network
from pipeline.models.layer_groups import FixedStatistics
from pipeline.models.network import Network
from pipeline.models.weights import PACKAGES, Weights, find_weights
from pipeline.recipe.recipe_file import override_recipe, read_recipe
from pipeline.recipe.schema import LrFind, Recipe
from pipeline.runs.fingerprint import PROJECT
from pipeline.runs.upstream import Upstream, chain_from
from pipeline.runs.work.materials import pixels_of
from pipeline.system.device import choose_device
from pipeline.system.memory import keep_freed_memory
from pipeline.training.fit import Phase, fit
from pipeline.training.lr_finder import range_test
from pipeline.training.optim import head_optimizer, thaw
from pipeline.training.schedule import group_rates
from stages import fine_tune, lr_find, precompute, train_head

DEVICE = choose_device("auto")
ON_GPU = DEVICE.type == "cuda"
DEFAULTS = Recipe()
Act = Callable[[], dict[str, float]]


def checkpoint_of(work: Work) -> Checkpoint:
    """How its network is built."""
    return Checkpoint(work.backbone, ["a", "b"], 512, 0.5, work.image_px, "crop", True)


def network_of(work: Work) -> Network:
    """A network with the packaged ImageNet weights, or random ones where there is no package."""
    torch.manual_seed(SEED)
    network = build_network(checkpoint_of(work))
    is_packaged = work.backbone in PACKAGES
    weights = find_weights(work.backbone, "auto", SEED) if is_packaged else Weights("random", None, "random")
    load_weights(network.body, work.backbone, weights)
    return network.to(DEVICE)


@cache
def read(train: int, valid: int, work: Work) -> tuple[Pixels, Split]:
    """Decoded pictures, the last of which are for validation, as the pixel store has them."""
    label_of = pictures(train + valid)
    squares = [decode_square(file.read_bytes(), work.image_px, "crop", True) for file in label_of]
    targets = np.array([label == "defective" for label in label_of.values()], dtype=np.int64)
    return np.stack(squares), Split(np.arange(train), np.arange(train, len(squares)), targets)


def write(pixels: Pixels, work: Work) -> np.ndarray:
    """The activations of all pictures, as precompute computes them."""
    network = network_of(work)
    halves = cut_network(network, "head", work.image_px)
    halves = frozen_below(network, checkpoint_of(work), halves, pixels, len(pixels))
    stored = np.empty((len(pixels), network.width), dtype=np.float16)
    settings = StoreSettings(DEFAULTS.precompute.batch_size, "float16", DEVICE)
    write_activations(stored, network, pixels, np.arange(len(pixels)), settings, halves=halves)
    return stored


@cache
def stored_batches(work: Work) -> tuple[Batches, Batches]:
    """Batches of stored activations."""
    pixels, split = read(work.stored, validated(work.stored), work)
    return activation_batches(write(pixels, work), split, work.batch_size, DEVICE, SEED)


def varied_batches(work: Work) -> tuple[Batches, Batches]:
    """Batches of pictures, varied as the default recipe varies them."""
    pixels, split = read(work.unfrozen, validated(work.unfrozen), work)
    how = augmentation(**DEFAULTS.augment.model_dump())
    return pixel_batches(pixels, split, how, work.batch_size, DEVICE, SEED)


def finder(
    module: nn.Module, optimizer: Optimizer, batches: Batches, work: Work, fixed: FixedStatistics = "none"
) -> Act:
    """A range test."""
    settings = LrFind(iterations=work.iterations, start_lr=START_LR, end_lr=END_LR)

    def act() -> dict[str, float]:
        range_test(module, optimizer, batches, settings, fixed)
        return {}

    return act


def epoch(phase: Phase, *, is_warmed: bool = ON_GPU) -> Act:
    """One epoch with validation; if it `is_warmed`, the second, which finds the step captured."""
    epochs = fit(replace(phase, cycle_epochs=[2 if is_warmed else 1]))
    if is_warmed:
        next(epochs)

    def act() -> dict[str, float]:
        next(epochs)
        return {}

    return act


def precompute_pass(work: Work) -> Act:
    """The one pass of the frozen body that head epochs and the head's finder stand on."""
    pixels, _ = read(work.stored, validated(work.stored), work)

    def act() -> dict[str, float]:
        write(pixels, work)
        return {}

    if ON_GPU:
        act()
    return act


def head_epoch(work: Work) -> Act:
    """An epoch of the head on stored activations, after a first one."""
    network = network_of(work)
    optimizer = head_optimizer(network.head, 1e-3, 0.01)
    return epoch(Phase(network.head, optimizer, *stored_batches(work), [1], 0.1), is_warmed=True)


def head_finder(work: Work) -> Act:
    """The range test of the head, on stored activations, after a first one."""
    head, (train, _) = network_of(work).head, stored_batches(work)
    act = finder(head, head_optimizer(head, 1e-3, 0.01), train, work)
    act()
    return act


def unfrozen_epoch(work: Work) -> Act:
    """An epoch of all layers."""
    network = network_of(work)
    optimizer = thaw(network, "none", group_rates(1e-3, 3), 0.01)
    return epoch(Phase(network, optimizer, *varied_batches(work), [1], 0.1, "all"))


def unfrozen_finder(work: Work) -> Act:
    """The range test of all layers."""
    network = network_of(work)
    optimizer = thaw(network, "none", group_rates(1e-3, 3), 0.01)
    act = finder(network, optimizer, varied_batches(work)[0], work, "all")
    if ON_GPU:
        act()
    return act


def tta(work: Work) -> Act:
    """Pictures in four views, as `evaluate` predicts them: as they are, and then in the three others; precompute has
    cached the graph."""
    network, (pixels, _) = network_of(work), read(work.tta, 0, work)
    views = view_matrices("sideways", DEFAULTS.augment.crop, DEFAULTS.evaluate.tta_views)[1:]
    passes = len(pixels) * (1 + len(views))
    frozen_network(network, checkpoint_of(work), pixels, passes)

    def act() -> dict[str, float]:
        frozen = frozen_network(network, checkpoint_of(work), pixels, passes)
        given = frozen, pixels, np.arange(len(pixels)), DEFAULTS.evaluate.batch_size, DEVICE
        predict(*given)
        predict(*given, views)
        return {}

    if ON_GPU:
        act()
    return act


def recipe(work: Work, accuracy: float) -> Act:
    """The default recipe's stages, from opening the pictures until its network is as right on the test pictures as
    `accuracy`."""
    given: Mapping[str, str] = {"reuse": "never", "precompute.image_px": str(work.image_px)}
    if work.recipe_pictures:
        given = {**given, "data.source": str(_table_of(work)), "data.soft_labels": "false"}
    chosen = override_recipe(read_recipe(PROJECT / "recipes" / "elpv.yaml"), given)
    tracking.connect()
    tracking.use_experiment("benchmark")

    def act() -> dict[str, float]:
        first = precompute.run(chosen)
        found = lr_find.run(chosen, first.run_id)
        last = train_head.run(chosen, found.run_id)
        stages, reached = 3, _test_accuracy(chosen, last.run_id)
        while reached < accuracy and stages < 6:
            last = fine_tune.run(chosen, last.run_id)
            stages, reached = stages + 1, _test_accuracy(chosen, last.run_id)
        return {"accuracy": reached, "stages": stages}

    return act


def _table_of(work: Work) -> Path:
    """A table of the recipe's pictures, and copies of them below it."""
    folder = Path(os.environ["THAW_CACHE"]).parent / "recipe"
    folder.mkdir(exist_ok=True)
    split = recipe_split(work)
    names = [Path(shutil.copy(file, folder)).name for file in split["file"]]
    split.assign(path=names).drop(columns="file").to_csv(folder / "table.csv", index=False)
    return folder / "table.csv"


def _test_accuracy(chosen: Recipe, run_id: str) -> float:
    up = Upstream(chosen, tuple(chain_from(run_id)))
    network, checkpoint = load_checkpoint(tracking.artifact(run_id, "checkpoint"))
    rows, pixels = up.manifest.rows("test"), pixels_of(up, run_id, checkpoint)
    frozen = frozen_network(network.to(DEVICE), checkpoint, pixels, len(rows))
    found = predict(frozen, pixels, rows, chosen.evaluate.batch_size, DEVICE)
    return float((found.argmax(1) == up.manifest.targets[rows]).mean())


if __name__ == "__main__":
    keep_freed_memory()  # as every command does
    serve(
        {
            "precompute": precompute_pass,
            "head epoch": head_epoch,
            "head finder": head_finder,
            "unfrozen epoch": unfrozen_epoch,
            "unfrozen finder": unfrozen_finder,
            "TTA": tta,
            "recipe": recipe,
        }
    )
