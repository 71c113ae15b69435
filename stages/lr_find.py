"""lr_find: a range test; after precompute on stored activations, of what train_head trains on them; else on the whole
network, by layer group."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from pipeline.command import main
from pipeline.contract import Job, RunRef, Stage
from pipeline.recipe import Recipe

if TYPE_CHECKING:
    from pipeline.lr_finder import Curve

STAGE = Stage(
    "lr_find",
    ("lr_find", "head", "augment"),
    follows=("precompute", "train_head", "fine_tune", "resize"),
    artifacts=("curve.csv", "recipe.yaml"),
)


def run(recipe: Recipe, upstream: str | None) -> RunRef:
    """Find a rate for whatever is trained next on the upstream run."""
    from pipeline.execute import chain_of, run_stage

    chain = chain_of(STAGE, upstream)
    if chain[0].stage == "precompute":
        stage = replace(STAGE, sections=("lr_find", "head"))
        inputs = {"freeze": recipe.train_head.freeze}  # what is trained next
    else:
        stage = replace(STAGE, sections=("lr_find", "augment"), title="lr_find (unfrozen)")
        inputs = {}
    return run_stage(stage, recipe, chain, inputs, partial(work, recipe, chain))


def work(recipe: Recipe, chain: Sequence[RunRef], job: Job) -> None:
    """Test, suggest, log."""
    from pipeline import tracking
    from pipeline.console import say
    from pipeline.errors import UserError
    from pipeline.execute import SUGGESTED
    from pipeline.figures import lr_find_figure
    from pipeline.lr_finder import curve_table
    from pipeline.suggest import below_rise, suggestions

    chosen: str = recipe.lr_find.suggestion
    curve = _on_activations(recipe, chain) if chain[0].stage == "precompute" else _on_pixels(recipe, chain, job)
    found = suggestions(curve.rates, curve.smoothed)
    if found[chosen] is None and chain[0].stage != "precompute":
        chosen = "below_rise"
        found[chosen] = below_rise(curve.rates, curve.smoothed)
        say("  The curve is flat, as of a network that is nearly trained: the rate is taken well below where it rises.")
    with TemporaryDirectory() as folder:
        curve_table(curve).to_csv(Path(folder) / "curve.csv", index=False)
        (Path(folder) / "figures").mkdir()
        lr_find_figure(curve, found, chosen).savefig(Path(folder) / "figures" / "lr_find.png", dpi=120)
        tracking.log_folder(job.run_id, Path(folder))
    points = [("lr_find/loss", float(loss), step) for step, loss in enumerate(curve.smoothed)]
    points += [("lr_find/lr", float(rate), step) for step, rate in enumerate(curve.rates)]
    points += [(f"suggestion/{name}", rate, 0) for name, rate in found.items() if rate is not None]
    rate = found[chosen]
    tracking.log_points(job.run_id, points + ([(SUGGESTED, rate, 0)] if rate is not None else []))
    if rate is None:
        raise UserError(
            f"The loss never falls on the LR finder's curve, so {chosen} suggests nothing; look at figures/lr_find.png "
            f"of run {job.run_id}, and set the next stage's lr yourself or change lr_find.start_lr."
        )
    say(f"  suggested rate: {rate:.2e} ({chosen}), found in {len(curve.rates)} batches")


def _on_activations(recipe: Recipe, chain: Sequence[RunRef]) -> "Curve":
    import torch

    from pipeline.activations import read_activations
    from pipeline.checkpoint import load_checkpoint
    from pipeline.device import choose_device
    from pipeline.execute import upstream_folder
    from pipeline.lr_finder import range_test
    from pipeline.manifest import load_manifest
    from pipeline.rates import thawed_rates
    from pipeline.tune import activation_batches, thaw_above, training_split

    find, frozen, device = recipe.lr_find, recipe.train_head.freeze, choose_device(recipe.device)
    manifest = load_manifest(upstream_folder(chain, "manifest", "precompute"))
    network, checkpoint = load_checkpoint(upstream_folder(chain, "checkpoint", "precompute"))
    torch.manual_seed(recipe.seed)
    network.reset_head(recipe.head.hidden, recipe.head.dropout)
    stored = read_activations(upstream_folder(chain, "activations", "precompute"))
    split = training_split(manifest, 1.0, recipe.seed)
    train, _ = activation_batches(stored, split, find.batch_size, device, recipe.seed)
    place, rates = (recipe.precompute.cut, checkpoint.image_px), thawed_rates(find.end_lr, find.lr_ratio, frozen)
    above, optimizer = thaw_above(network.to(device), *place, frozen, rates, find.weight_decay)
    fixed = find.batchnorm == "fixed"
    return range_test(above, optimizer, train, find.start_lr, find.end_lr, find.iterations, fixed)


def _on_pixels(recipe: Recipe, chain: Sequence[RunRef], job: Job) -> "Curve":
    from pipeline.augment import augmentation
    from pipeline.checkpoint import load_checkpoint
    from pipeline.device import choose_device
    from pipeline.execute import pixels_opener, upstream_folder
    from pipeline.lr_finder import range_test
    from pipeline.manifest import load_manifest
    from pipeline.nvjpeg import choose_decoder
    from pipeline.rates import group_rates
    from pipeline.tune import pixel_batches, thaw, training_split

    find, data, device = recipe.lr_find, recipe.data, choose_device(recipe.device)
    manifest = load_manifest(upstream_folder(chain, "manifest", "precompute"))
    network, checkpoint = load_checkpoint(upstream_folder(chain, "checkpoint", chain[0].stage))
    network.to(device)
    open_pixels = pixels_opener(
        chain, job, data.max_store_gib, data.max_logged_gib, choose_decoder(data.decoder, device)
    )
    pixels = open_pixels(manifest, checkpoint.image_px, checkpoint.fit)
    split = training_split(manifest, 1.0, recipe.seed)
    how = augmentation(**recipe.augment.model_dump())
    train, _ = pixel_batches(pixels, split, how, find.batch_size, device, recipe.seed)
    optimizer = thaw(network, "none", group_rates(find.end_lr, find.lr_ratio), find.weight_decay)
    fixed = find.batchnorm == "fixed"
    return range_test(network, optimizer, train, find.start_lr, find.end_lr, find.iterations, fixed)


if __name__ == "__main__":
    main(STAGE, __doc__, run)
