"""precompute: one pass of the frozen body over every picture; its activations are stored once."""

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
    import torch

    from pipeline import tracking
    from pipeline.activations import open_activations, store_parts
    from pipeline.augment import augmentation
    from pipeline.body import load_weights
    from pipeline.checkpoint import Checkpoint, build_network, save_checkpoint
    from pipeline.console import say
    from pipeline.device import choose_device
    from pipeline.manifest import describe_manifest, save_manifest
    from pipeline.manifest_figures import write_manifest_figures
    from pipeline.nvjpeg import choose_decoder
    from pipeline.run_pixels import open_run_pixels
    from pipeline.views import open_views

    say(describe_manifest(manifest))
    head, fit, grey = recipe.head, recipe.data.fit, manifest.is_grey
    backbone, image_px, dtype = recipe.model.backbone, recipe.precompute.image_px, recipe.precompute.dtype
    hashes = list(manifest.table["hash"])
    device = choose_device(recipe.device)
    decoder = choose_decoder(recipe.data.decoder, device)
    limits = recipe.data.max_store_gib, recipe.data.max_logged_gib
    pixels = open_run_pixels(job.run_id, job.run_id, *limits, manifest, image_px, fit, decoder)
    with TemporaryDirectory() as folder:
        save_manifest(manifest, Path(folder) / "manifest")
        write_manifest_figures(manifest, pixels, Path(folder))
        tracking.log_folder(job.run_id, Path(folder))
    torch.manual_seed(recipe.seed)
    checkpoint = Checkpoint(backbone, manifest.classes, head.hidden, head.dropout, image_px, fit, grey)
    network = build_network(checkpoint)
    load_weights(network.body, backbone, weights)
    parts = store_parts(hashes, image_px, fit, grey, backbone, weights.identity, dtype)
    store = open_activations(network.to(device), pixels, parts, recipe.precompute.batch_size, device, dtype)
    if recipe.precompute.views:
        size, views = recipe.precompute.batch_size, recipe.precompute.views
        how = augmentation(**recipe.augment.model_dump())
        train = manifest.rows("train")
        varied = open_views(network, pixels, train, views, how, parts, size, device, dtype, recipe.seed)
        tracking.log_folder(job.run_id, varied, "views")
    with TemporaryDirectory() as folder:
        save_checkpoint(network, checkpoint, Path(folder) / "checkpoint")
        tracking.log_folder(job.run_id, Path(folder))
    tracking.log_folder(job.run_id, store, "activations")
    tracking.log_dataset(manifest.name, manifest.root, manifest.digest, "training")
    tracking.set_tags(job.run_id, {"thaw.weights": weights.identity, "thaw.set_aside": str(len(manifest.set_aside))})


if __name__ == "__main__":
    main(STAGE, __doc__, run)
