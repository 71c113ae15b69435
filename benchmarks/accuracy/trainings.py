"""A set ready for training, and the trainings of `train_head` and `fine_tune` on it, as their stages build them but
without runs: a rate, a seed, and what came out."""

import copy
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch

from pipeline.data.augment import augmentation
from pipeline.data.batches import Batches
from pipeline.data.decode import Pixels
from pipeline.data.loader import Split, pixel_batches, training_split
from pipeline.data.manifest import Manifest
from pipeline.data.nvjpeg import choose_decoder
from pipeline.data.stored_pixels import open_pixels
from pipeline.evaluation.predict import predict
from pipeline.models.activations import Activations, StoreSettings, activation_batches, write_activations
from pipeline.models.checkpoint import Checkpoint, start_network
from pipeline.models.cut import cut_network
from pipeline.models.engine.passes import frozen_below
from pipeline.models.network import Network
from pipeline.models.weights import find_weights
from pipeline.recipe.schema import Recipe
from pipeline.runs.recipe_pictures import list_pictures
from pipeline.system.device import choose_device
from pipeline.training.fit import Phase, fit
from pipeline.training.lr_finder import choose_suggestion, range_test, suggest
from pipeline.training.optim import head_optimizer, thaw
from pipeline.training.records import EpochRecord
from pipeline.training.schedule import cycle_lengths, group_rates


@dataclass(frozen=True)
class Ready:
    """The pictures of a recipe, decoded, with the activations of its body."""

    recipe: Recipe
    manifest: Manifest
    checkpoint: Checkpoint
    pixels: Pixels
    body: Network
    activations: Activations

    @classmethod
    def of(cls, recipe: Recipe) -> "Ready":
        """List, decode and compute, as precompute does."""
        manifest, settings, data = list_pictures(recipe), recipe.precompute, recipe.data
        facts = recipe.model.backbone, manifest.classes, recipe.head.hidden, recipe.head.dropout
        checkpoint = Checkpoint(*facts, settings.image_px, data.fit, manifest.is_grey, ranges=manifest.ranges)
        body = start_network(checkpoint, find_weights(recipe.model.backbone, recipe.model.weights, 0), 0)
        device = choose_device(recipe.device)
        decoder = choose_decoder(data.decoder, device)
        pixels = open_pixels(manifest, settings.image_px, data.fit, data.max_store_gib, decoder=decoder)
        body.move_to(device, len(pixels) * settings.image_px**2)
        halves = cut_network(body, "head", settings.image_px)
        halves = frozen_below(body, checkpoint, halves, pixels, len(pixels))
        stored = np.empty((len(pixels), body.width), dtype=np.float16)
        how = StoreSettings(settings.batch_size, "float16", device)
        write_activations(stored, body, pixels, np.arange(len(pixels)), how, halves=halves)
        return cls(recipe, manifest, checkpoint, pixels, body.cpu(), stored)

    @cached_property
    def device(self) -> torch.device:
        """Which device computes."""
        return choose_device(self.recipe.device)

    def split(self, seed: int, fraction: float = 1.0) -> Split:
        """The rows to train and to validate on."""
        return training_split(self.manifest, fraction, seed, self.recipe.training.balance)

    def start(self, seed: int) -> Network:
        """The pretrained body under a new head of this seed."""
        torch.manual_seed(seed)
        network = copy.deepcopy(self.body)
        network.reset_head(self.recipe.head.hidden, self.recipe.head.dropout)
        settings = self.recipe.fine_tune
        epochs = sum(cycle_lengths(settings.cycles, settings.cycle_len, settings.cycle_mult))
        passes = epochs * len(self.manifest.rows("train"))
        return network.move_to(self.device, passes * self.checkpoint.image_px**2)

    def head_batches(self, seed: int, batch_size: int) -> tuple[Batches, Batches]:
        """Batches of stored activations."""
        return activation_batches(self.activations, self.split(seed), batch_size, self.device, seed)

    def batches(self, seed: int, batch_size: int) -> tuple[Batches, Batches]:
        """Batches of pictures."""
        how = augmentation(**self.recipe.augment.model_dump())
        return pixel_batches(self.pixels, self.split(seed), how, batch_size, self.device, seed)

    def predictions(self, network: Network, split: str) -> tuple[np.ndarray, np.ndarray]:
        """(the predicted, the true) class number of each picture of a split."""
        rows = self.manifest.rows(split)
        found = predict(network.eval(), self.pixels, rows, self.recipe.evaluate.batch_size, self.device)
        return found.argmax(1), self.manifest.targets[rows]


def train_head(ready: Ready, network: Network, seed: int, lr: float) -> EpochRecord:
    """Train the network's head on stored activations, as train_head does; gives the last epoch."""
    settings, options = ready.recipe.train_head, ready.recipe.training
    batches = ready.head_batches(seed, settings.batch_size)
    optimizer = head_optimizer(network.head, lr, settings.weight_decay, options)
    fixed = "body" if settings.batchnorm == "fixed" else "none"
    phase = Phase(network.head, optimizer, *batches, [settings.stored_epochs], settings.label_smoothing, fixed,
                  warm_up=settings.warm_up, options=options)  # fmt: skip
    return _last(phase, 0)


def fine_tune(ready: Ready, network: Network, seed: int, lr: float | list[float]) -> EpochRecord:
    """Train all layers of a network whose head is trained, as fine_tune does; gives the last epoch."""
    settings, options = ready.recipe.fine_tune, ready.recipe.training
    batches = ready.batches(seed, settings.batch_size)
    optimizer = thaw(network, "none", group_rates(lr, settings.lr_ratio), settings.weight_decay, options)
    cycles = cycle_lengths(settings.cycles, settings.cycle_len, settings.cycle_mult)
    fixed = "all" if settings.batchnorm == "fixed" else "none"
    phase = Phase(network, optimizer, *batches, cycles, settings.label_smoothing, fixed,
                  warm_up=settings.warm_up, options=options)  # fmt: skip
    return _last(phase, ready.recipe.train_head.stored_epochs)


def suggest_for_head(ready: Ready, network: Network, seed: int) -> float | None:
    """What the finder suggests for the network's head, as the stage lr_find after precompute does."""
    settings, tested = ready.recipe.lr_find, ready.recipe.train_head
    train, _ = ready.head_batches(seed, tested.batch_size)
    optimizer = head_optimizer(network.head, settings.end_lr, tested.weight_decay, ready.recipe.training)
    fixed = "body" if tested.batchnorm == "fixed" else "none"
    curve = range_test(network.head, optimizer, train, settings, fixed, ready.recipe.training, tested.label_smoothing)
    return choose_suggestion(suggest(curve, False), settings.suggestion, curve, ready.recipe.training.optimizer)[1]


def suggest_for_all(ready: Ready, network: Network, seed: int) -> float | None:
    """What the finder suggests for all layers of a network whose head is trained, as the stage does."""
    settings, tested = ready.recipe.lr_find, ready.recipe.fine_tune
    train, _ = ready.batches(seed, tested.batch_size)
    rates = group_rates(settings.end_lr, tested.lr_ratio)
    optimizer = thaw(network, "none", rates, tested.weight_decay, ready.recipe.training)
    fixed = "all" if tested.batchnorm == "fixed" else "none"
    curve = range_test(network, optimizer, train, settings, fixed, ready.recipe.training, tested.label_smoothing)
    found = suggest(curve, True)
    return choose_suggestion(found, settings.suggestion_unfrozen, curve, ready.recipe.training.optimizer)[1]


def _last(phase: Phase, epochs_before: int) -> EpochRecord:
    records = [moment for moment in fit(phase, epochs_before) if isinstance(moment, EpochRecord)]
    return replace(records[-1], steps=[])
