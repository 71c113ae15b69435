"""The work of precompute: decode, compute, store, log."""

from pipeline import tracking
from pipeline.cache.markers import note_use
from pipeline.data.corrections import count_corrections
from pipeline.data.manifest import Manifest, describe_manifest, save_manifest
from pipeline.data.stored_pixels import decoder_of
from pipeline.models.activations import StoreSettings, activation_key_parts, check_store_size, open_activations
from pipeline.models.checkpoint import Checkpoint, save_checkpoint, start_network
from pipeline.models.cut import cut_network
from pipeline.models.engine.passes import frozen_below
from pipeline.models.views import Views, open_views
from pipeline.models.weights import Weights
from pipeline.reports.data_figures import write_manifest_figures
from pipeline.runs.pixels import open_run_pixels
from pipeline.runs.stage import Job
from pipeline.runs.upstream import Upstream
from pipeline.runs.work.materials import augmentation_of, device_of
from pipeline.system.console import say


def work(up: Upstream, manifest: Manifest, weights: Weights, job: Job) -> None:
    """Decode, compute, log."""
    say(describe_manifest(manifest))
    recipe, settings, data, head = up.recipe, up.recipe.precompute, up.recipe.data, up.recipe.head
    network_facts = recipe.model.backbone, manifest.classes, head.hidden, head.dropout
    checkpoint = Checkpoint(*network_facts, settings.image_px, data.fit, manifest.is_grey, ranges=manifest.ranges)
    network = start_network(checkpoint, weights, recipe.seed)
    halves = cut_network(network, settings.cut, settings.image_px)
    views = Views(manifest.rows("train"), settings.views, augmentation_of(recipe), recipe.seed)
    passes = len(manifest.table) + views.count * len(views.rows)
    if settings.cut != "head":
        check_store_size(passes, halves.shape, settings.dtype, data.max_store_gib)
    pixels = open_run_pixels(job.run_id, job.run_id, manifest, checkpoint, data, device_of(recipe))
    tracking.set_tags(job.run_id, {f"{tracking.RESOLVED}decoder": (decoder := decoder_of(pixels))})
    with tracking.new_files(job.run_id) as folder:
        save_manifest(manifest, folder / "manifest")
        save_checkpoint(network, checkpoint, folder / "checkpoint")
        write_manifest_figures(manifest, pixels, folder)
    hashes = list(manifest.table["hash"])
    key_parts = activation_key_parts(hashes, checkpoint, weights.identity, settings.dtype, settings.cut, decoder)
    how_stored = StoreSettings(settings.batch_size, settings.dtype, device_of(recipe))
    network.move_to(device_of(recipe), passes * settings.image_px**2)
    halves = frozen_below(network, checkpoint, halves, pixels, passes)
    stores = {"activations": open_activations(network, pixels, key_parts, how_stored, halves)}
    if views.count:
        stores["views"] = open_views(network, pixels, views, key_parts, how_stored, halves)
    for name, store in stores.items():
        note_use(store, job.run_id)
        tracking.log_folder(job.run_id, store, name)
    tracking.log_dataset(manifest.name, manifest.source, manifest.digest, "training")
    if len(manifest.corrected):
        tracking.add_to_description(job.run_id, f"{count_corrections(manifest.corrected)} (manifest/corrections.csv).")
    tracking.set_tags(job.run_id, {"thaw.weights": weights.identity, "thaw.set_aside": str(len(manifest.set_aside))})
