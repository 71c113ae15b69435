"""precompute: one pass of the frozen layer groups over every picture; their activations are stored once."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from pipeline.command import main
from pipeline.contract import Job, RunRef, Stage
from pipeline.recipe import Recipe

if TYPE_CHECKING:
    from pipeline.backbones import Weights
    from pipeline.manifest import Manifest

STAGE = Stage("precompute", ("precompute",), artifacts=("activations", "checkpoint", "manifest", "recipe.yaml"))


def run(recipe: Recipe, upstream: str | None = None) -> RunRef:
    """List, inspect and split the pictures, then store their activations."""
    from pipeline import tracking
    from pipeline.backbones import find_weights
    from pipeline.execute import run_stage

    tracking.meet_server()  # a server that is away is told before pictures are opened
    data, model = recipe.data, recipe.model
    manifest = list_pictures(recipe)
    weights = find_weights(model.backbone, model.weights, recipe.seed)
    inputs = {"manifest": manifest.digest, "fit": data.fit, "backbone": model.backbone, "weights": weights.identity}
    # How pictures are varied is part of what comes out only where some are.
    stage = STAGE
    if recipe.precompute.views:
        stage = replace(STAGE, sections=("precompute", "augment"), artifacts=(*STAGE.artifacts, "views"))
    return run_stage(stage, recipe, [], inputs, partial(work, recipe, manifest, weights))


def list_pictures(recipe: Recipe) -> "Manifest":
    """The manifest of the recipe's pictures, inspected and split."""
    from pipeline.manifest import build_manifest
    from pipeline.sources import list_source

    data = recipe.data
    listing = list_source(data.source, data.extensions)
    split_seed = recipe.seed if data.split_seed == "auto" else data.split_seed
    return build_manifest(listing, data.valid_fraction, data.test_fraction, data.max_bad, split_seed, data.duplicates)


def work(recipe: Recipe, manifest: "Manifest", weights: "Weights", job: Job) -> None:
    """Decode, compute, log."""
    from pipeline import tracking
    from pipeline.activations import check_store_size, open_activations, store_parts
    from pipeline.augment import augmentation
    from pipeline.checkpoint import Checkpoint, save_checkpoint, start_network
    from pipeline.console import say
    from pipeline.cut import cut_network
    from pipeline.device import choose_device
    from pipeline.manifest import describe_manifest
    from pipeline.manifest_figures import log_manifest
    from pipeline.nvjpeg import choose_decoder
    from pipeline.run_pixels import open_run_pixels
    from pipeline.views import open_views

    say(describe_manifest(manifest))
    once, data, head, backbone = recipe.precompute, recipe.data, recipe.head, recipe.model.backbone
    size_px, batch_size, dtype, views = once.image_px, once.batch_size, once.dtype, once.views
    device, train = choose_device(recipe.device), manifest.rows("train")
    checkpoint = Checkpoint(backbone, manifest.classes, head.hidden, head.dropout, size_px, data.fit, manifest.is_grey)
    network = start_network(checkpoint, weights, recipe.seed)
    halves = cut_network(network, once.cut, size_px)
    if once.cut != "head":
        check_store_size(len(manifest.table) + views * len(train), halves.shape, dtype, data.max_store_gib)
    decoder = choose_decoder(data.decoder, device)
    limits = data.max_store_gib, data.max_logged_gib
    pixels = open_run_pixels(job.run_id, job.run_id, *limits, manifest, size_px, data.fit, decoder)
    log_manifest(job.run_id, manifest, pixels)
    hashes = list(manifest.table["hash"])
    parts = store_parts(hashes, size_px, data.fit, manifest.is_grey, backbone, weights.identity, dtype, once.cut)
    store = open_activations(network.to(device), pixels, parts, batch_size, device, dtype, halves)
    if views:
        how = augmentation(**recipe.augment.model_dump())
        varied = open_views(network, pixels, train, views, how, parts, batch_size, device, dtype, recipe.seed, halves)
        tracking.log_folder(job.run_id, varied, "views")
    with TemporaryDirectory() as folder:
        save_checkpoint(network, checkpoint, Path(folder) / "checkpoint")
        tracking.log_folder(job.run_id, Path(folder))
    tracking.log_folder(job.run_id, store, "activations")
    tracking.log_dataset(manifest.name, manifest.root, manifest.digest, "training")
    tracking.set_tags(job.run_id, {"thaw.weights": weights.identity, "thaw.set_aside": str(len(manifest.set_aside))})


if __name__ == "__main__":
    main(STAGE, __doc__, run)
