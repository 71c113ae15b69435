"""sweep_head: hundreds of heads at once on stored activations; which setting is best, and whether by chance."""

import math
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from pipeline.command import main
from pipeline.contract import Job, RunRef, Stage
from pipeline.recipe import Recipe

if TYPE_CHECKING:
    import torch

    from pipeline.activations import Activations
    from pipeline.manifest import Manifest

STAGE = Stage(
    "sweep_head",
    ("sweep_head", "train_head", "head", "lr_find"),
    follows=("precompute",),
    artifacts=("heads.csv", "settings.csv", "best_recipe.yaml", "recipe.yaml"),
)


def run(recipe: Recipe, upstream: str | None) -> RunRef:
    """Compare settings of the head on the activations of the upstream run."""
    from pipeline.errors import UserError
    from pipeline.execute import chain_of, run_stage

    if recipe.train_head.stored_epochs == 0:
        raise UserError(
            "train_head.stored_epochs is 0, so that the recipe trains no head on stored activations to compare others "
            "with; set it to 1 or more."
        )
    if recipe.precompute.cut != "head":
        raise UserError(
            f"The activations of run {upstream} are stored below the {recipe.precompute.cut} layer group, after which "
            "comes more than a head; run precompute with precompute.cut=head."
        )
    chain = chain_of(STAGE, upstream)
    return run_stage(STAGE, recipe, chain, {}, partial(work, recipe, chain))


def work(recipe: Recipe, chain: Sequence[RunRef], job: Job) -> None:
    """Find the rate, train all heads, compare, log."""
    from pipeline import tracking
    from pipeline.activations import read_activations
    from pipeline.console import say, table
    from pipeline.device import choose_device
    from pipeline.errors import UserError
    from pipeline.execute import upstream_folder
    from pipeline.head_settings import Setting, draw_settings, with_setting
    from pipeline.head_sweep import compare_settings, describe_lead, train_settings
    from pipeline.head_sweep_files import BEST_COLUMNS, best_rows, comparison_metrics, write_comparison
    from pipeline.manifest import load_manifest
    from pipeline.recipe_file import write_recipe
    from pipeline.recipe_sweep import HEAD_KEYS
    from pipeline.tune import activation_batches, training_split

    sweep, train_head, device = recipe.sweep_head, recipe.train_head, choose_device(recipe.device)
    manifest = load_manifest(upstream_folder(chain, "manifest", "precompute"))
    stored = read_activations(upstream_folder(chain, "activations", "precompute"))
    lr = find_rate(recipe, manifest, stored, device, job)
    decay, smoothing = train_head.weight_decay, train_head.label_smoothing
    own = Setting(lr, decay, recipe.head.dropout, smoothing, train_head.stored_epochs)
    ranges = {name: getattr(sweep, name) for name in HEAD_KEYS}
    settings = [own, *draw_settings(ranges, sweep.settings - 1, recipe.seed)]
    seeds = [recipe.seed + number for number in range(sweep.seeds)]
    views = upstream_folder(chain, "views", "precompute") if recipe.precompute.views else None
    split = training_split(manifest, train_head.fraction, recipe.seed)
    if split.weights is not None:
        raise UserError("The table of pictures has weights, which sweep_head does not count; leave that column out.")
    batches = activation_batches(stored, split, train_head.batch_size, device, recipe.seed, views)
    started = time.perf_counter()
    heads = train_settings(settings, seeds, len(manifest.classes), recipe.head.hidden, *batches)
    seconds = time.perf_counter() - started
    compared = compare_settings(heads, own=0)
    sentence = describe_lead(compared, len(seeds))
    better = with_setting(recipe, settings[int(compared["setting"].iloc[0])])
    with TemporaryDirectory() as folder:
        write_comparison(Path(folder), heads, compared, len(seeds))
        (Path(folder) / "best_recipe.yaml").write_text(write_recipe(better), encoding="utf-8")
        tracking.log_folder(job.run_id, Path(folder))
    tracking.log_metrics(job.run_id, comparison_metrics(heads, compared, seconds), step=0)
    tracking.describe_run(job.run_id, sentence)
    speed = f"{len(heads)} heads in {seconds:.1f} s ({len(heads) / seconds:.1f} a second)"
    say(f"  {speed}, of which {heads['diverged'].sum()} diverged")
    table("The best settings, over the seeds", BEST_COLUMNS, best_rows(compared))
    say(sentence)
    say(f"The recipe with the best setting is best_recipe.yaml of run {job.run_id}; give it as -P recipe=FILE.")


def find_rate(recipe: Recipe, manifest: "Manifest", stored: "Activations", device: "torch.device", job: Job) -> float:
    """Log the LR finder's band over seeds; the recipe's rate, or for "auto" what the median suggests. UserError if
    that is nothing."""
    from pipeline import tracking
    from pipeline.console import say
    from pipeline.errors import UserError
    from pipeline.execute import SUGGESTED
    from pipeline.head_sweep_files import write_band
    from pipeline.many_lr_finder import range_tests
    from pipeline.tune import activation_batches, training_split

    find, head, given, seed = recipe.lr_find, recipe.head, recipe.train_head.lr, recipe.seed
    train, _ = activation_batches(stored, training_split(manifest, 1.0, seed), find.batch_size, device, seed)
    seeds = [seed + number for number in range(recipe.sweep_head.finder_seeds)]
    how = (len(manifest.classes), head.hidden, head.dropout, find.weight_decay, train)
    curves = range_tests(seeds, *how, find.start_lr, find.end_lr, find.iterations)
    with TemporaryDirectory() as folder:
        points = write_band(Path(folder), curves, find.suggestion)
        tracking.log_folder(job.run_id, Path(folder))
    tracking.log_metrics(job.run_id, points, step=0)
    rate, low, high = (points.get(f"{SUGGESTED}{end}", math.nan) for end in ("", "_low", "_high"))
    say(f"  suggested rate: {rate:.2e} ({find.suggestion}), by {len(seeds)} seeds {low:.2e} to {high:.2e}")
    if not isinstance(given, str):
        return given
    if math.isnan(rate):
        raise UserError(
            f"The loss never falls on the LR finder's median curve, so {find.suggestion} suggests nothing; look at "
            f"figures/lr_band.png of run {job.run_id}, and set train_head.lr yourself or change lr_find.start_lr."
        )
    return rate


if __name__ == "__main__":
    main(STAGE, __doc__, run)
