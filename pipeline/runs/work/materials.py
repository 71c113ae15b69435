"""What a stage works with where it is not reused: the device, and the networks, pictures and split of upstream runs."""

from functools import cache

import torch

from pipeline import tracking
from pipeline.data.augment import Augmentation, augmentation
from pipeline.data.decode import Pixels
from pipeline.data.loader import Split, training_split
from pipeline.data.nvjpeg import choose_decoder
from pipeline.data.stored_pixels import decoder_of
from pipeline.models.checkpoint import Checkpoint, load_checkpoint
from pipeline.models.network import Network
from pipeline.recipe.schema import Recipe
from pipeline.runs.pixels import open_run_pixels
from pipeline.runs.upstream import Upstream
from pipeline.system.console import warn
from pipeline.system.device import choose_device
from pipeline.system.machine import missing_compiler


def device_of(recipe: Recipe) -> torch.device:
    """Which device computes; UserError if it is not there."""
    return choose_device(recipe.device)


def check_device(recipe: Recipe) -> None:
    """UserError if the device is not there, or does not decode as the recipe asks; a sentence where nothing can be
    compiled that should be."""
    device = device_of(recipe)
    choose_decoder(recipe.data.decoder, device)
    if recipe.compile and (missing := missing_compiler(device.type)):
        _report_missing(missing)


def network_of(
    up: Upstream, *stages: str, image_px: int | None = None, drop_path: float = 0.0
) -> tuple[Network, Checkpoint]:
    """The network of the nearest run of one of `stages`, on the CPU, and how it is built; with `image_px`, built for
    that size, with `drop_path` of `build_body`."""
    return load_checkpoint(up.folder("checkpoint", *stages), image_px, drop_path)


def pixels_of(up: Upstream, run_id: str, checkpoint: Checkpoint) -> Pixels:
    """The pictures as the network of `checkpoint` takes them, for the open run `run_id`."""
    precompute = up.nearest("precompute").run_id
    pixels = open_run_pixels(precompute, run_id, up.manifest, checkpoint, up.recipe.data, device_of(up.recipe))
    tracking.set_tags(run_id, {f"{tracking.RESOLVED}decoder": decoder_of(pixels)})
    return pixels


def augmentation_of(recipe: Recipe) -> Augmentation:
    """How training pictures are varied."""
    return augmentation(**recipe.augment.model_dump())


def split_of(up: Upstream, fraction: float) -> Split:
    """The validation rows, and this fraction of the training rows."""
    return training_split(up.manifest, fraction, up.recipe.seed, up.recipe.training.balance)


@cache  # once for all trials of a sweep
def _report_missing(compiler: str) -> None:
    warn(f"compile is true, but {compiler} is missing here, so that nothing is compiled; install it.")
