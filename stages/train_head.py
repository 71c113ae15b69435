"""train_head: the head alone; first on stored activations, then with augmentation on and the body still frozen."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from pipeline.command import main
from pipeline.contract import RunRef, Stage
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
    assert isinstance(lr, float)
    return run_stage(STAGE, recipe, chain, {}, partial(work, recipe, chain, lr))


def work(recipe: Recipe, chain: Sequence[RunRef], lr: float, run_id: str) -> None:
    """Both phases, one after the other, as one run of epochs."""
    import torch

    from pipeline.activations import read_activations
    from pipeline.augment import Augmentation
    from pipeline.checkpoint import load_checkpoint
    from pipeline.device import choose_device
    from pipeline.execute import upstream_folder
    from pipeline.fit import fit
    from pipeline.manifest import load_manifest
    from pipeline.manifest_figures import log_augmented
    from pipeline.pixels import open_pixels
    from pipeline.schedule import cycle_lengths
    from pipeline.training_log import log_epochs, log_trained
    from pipeline.tune import activation_batches, head_optimizer, pixel_batches, thaw, training_split

    train_head, device = recipe.train_head, choose_device(recipe.device)
    manifest = load_manifest(upstream_folder(chain, "manifest", "precompute"))
    network, checkpoint = load_checkpoint(upstream_folder(chain, "checkpoint", "precompute"))
    torch.manual_seed(recipe.seed)
    network.reset_head(recipe.head.hidden, recipe.head.dropout)
    network.to(device)
    pixels = open_pixels(manifest, checkpoint.image_px, checkpoint.fit, recipe.data.max_store_gib)
    augmentation = Augmentation(**recipe.augment.model_dump())
    log_augmented(run_id, manifest, pixels, augmentation, recipe.seed)
    split = training_split(manifest, train_head.fraction, recipe.seed)
    smoothing = train_head.label_smoothing
    records = []

    if train_head.stored_epochs:
        stored = read_activations(upstream_folder(chain, "activations", "precompute"))
        batches = activation_batches(stored, split, train_head.batch_size, device, recipe.seed)
        optimizer = head_optimizer(network.head, lr, train_head.weight_decay)
        cycle = [train_head.stored_epochs]
        epochs = fit(network.head, optimizer, *batches, cycle, label_smoothing=smoothing, description="head, stored")
        records += log_epochs(run_id, epochs)

    if train_head.cycles:
        batches = pixel_batches(pixels, split, augmentation, train_head.batch_size, device, recipe.seed)
        optimizer = thaw(network, "body", {"head": lr}, train_head.weight_decay)
        epochs = fit(
            network,
            optimizer,
            *batches,
            cycle_lengths(train_head.cycles, train_head.cycle_len, train_head.cycle_mult),
            epochs_before=len(records),
            steps_before=records[-1].step if records else 0,
            label_smoothing=smoothing,
            description="head, augmented",
        )
        records += log_epochs(run_id, epochs)

    checkpoint = replace(checkpoint, hidden=recipe.head.hidden, dropout=recipe.head.dropout)
    log_trained(run_id, records, network, checkpoint, {"head": lr})


if __name__ == "__main__":
    main(STAGE, __doc__, run)
