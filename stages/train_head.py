"""train_head: the head, and the late group if thawed; first on stored activations, then with augmentation on."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

from pipeline.command import main
from pipeline.contract import Job, RunRef, Stage
from pipeline.rates import thawed_rates
from pipeline.recipe import Recipe

STAGE = Stage(
    "train_head",
    ("train_head", "head", "augment"),
    follows=("lr_find", "precompute"),
    artifacts=("checkpoint", "recipe.yaml"),
)


def run(recipe: Recipe, upstream: str | None) -> RunRef:
    """Train a new head on the activations of the upstream run."""
    from pipeline.execute import chain_of, given_or_suggested, run_stage

    chain = chain_of(STAGE, upstream)
    lr = given_or_suggested(recipe.train_head.lr, chain, "train_head.lr")
    rates = thawed_rates(lr, recipe.train_head.lr_ratio, recipe.train_head.freeze)
    return run_stage(STAGE, recipe, chain, {}, partial(work, recipe, chain, rates))


def work(recipe: Recipe, chain: Sequence[RunRef], rates: Mapping[str, float], job: Job) -> None:
    """Both phases, one after the other, as one run of epochs."""
    import torch

    from pipeline.activations import read_activations
    from pipeline.augment import augmentation
    from pipeline.checkpoint import load_checkpoint
    from pipeline.device import choose_device
    from pipeline.execute import pixels_opener, upstream_folder
    from pipeline.manifest import load_manifest
    from pipeline.manifest_figures import log_augmented
    from pipeline.nvjpeg import choose_decoder
    from pipeline.schedule import cycle_lengths
    from pipeline.training_log import Phase, log_trained, train_in_phases
    from pipeline.tune import activation_batches, pixel_batches, thaw, thaw_above, training_split

    train_head, data, device = recipe.train_head, recipe.data, choose_device(recipe.device)
    manifest = load_manifest(upstream_folder(chain, "manifest", "precompute"))
    network, checkpoint = load_checkpoint(upstream_folder(chain, "checkpoint", "precompute"))
    torch.manual_seed(recipe.seed)
    network.reset_head(recipe.head.hidden, recipe.head.dropout)
    network.to(device)
    open_pixels = pixels_opener(
        chain, job, data.max_store_gib, data.max_logged_gib, choose_decoder(data.decoder, device)
    )
    pixels = open_pixels(manifest, checkpoint.image_px, checkpoint.fit)
    how = augmentation(**recipe.augment.model_dump())
    log_augmented(job.run_id, manifest, pixels, how, recipe.seed)
    split = training_split(manifest, train_head.fraction, recipe.seed)
    batch_size, smoothing, fixed = train_head.batch_size, train_head.label_smoothing, train_head.batchnorm == "fixed"
    trained = " and ".join(rates)

    def on_activations() -> Phase:
        stored = read_activations(upstream_folder(chain, "activations", "precompute"))
        views = upstream_folder(chain, "views", "precompute") if recipe.precompute.views else None
        train, valid = activation_batches(stored, split, batch_size, device, recipe.seed, views)
        place, decay = (recipe.precompute.cut, checkpoint.image_px), train_head.weight_decay
        above, optimizer = thaw_above(network, *place, train_head.freeze, rates, decay)
        lengths = [train_head.stored_epochs]
        return Phase(above, optimizer, train, valid, lengths, smoothing, f"{trained}, stored", fixed)

    def on_pixels() -> Phase:
        train, valid = pixel_batches(pixels, split, how, batch_size, device, recipe.seed)
        optimizer = thaw(network, train_head.freeze, rates, train_head.weight_decay)
        lengths = cycle_lengths(train_head.cycles, train_head.cycle_len, train_head.cycle_mult)
        return Phase(network, optimizer, train, valid, lengths, smoothing, f"{trained}, augmented", fixed)

    phases = ([on_activations] if train_head.stored_epochs else []) + ([on_pixels] if train_head.cycles else [])
    records = train_in_phases(job, network, phases)
    checkpoint = replace(checkpoint, hidden=recipe.head.hidden, dropout=recipe.head.dropout)
    log_trained(job.run_id, records, network, checkpoint, rates)


if __name__ == "__main__":
    main(STAGE, __doc__, run)
