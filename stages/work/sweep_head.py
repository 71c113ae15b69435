"""The work of sweep_head: find the rate, train all heads, compare, log."""

import math
import time

from pipeline import tracking
from pipeline.models.activations import Activations, activation_batches, read_activations
from pipeline.recipe.schema import write_recipe
from pipeline.reports.heads_report import (
    BEST_COLUMNS,
    best_rows,
    comparison_metrics,
    write_band,
    write_heads_comparison,
)
from pipeline.runs.stage import Job
from pipeline.runs.upstream import SUGGESTED, Upstream
from pipeline.runs.work.materials import device_of, split_of
from pipeline.system.console import say, table
from pipeline.training.heads.head_settings import (
    compare_settings,
    describe_lead,
    settings_to_compare,
    train_settings,
    with_setting,
)
from pipeline.training.heads.lr_band import range_tests
from pipeline.training.heads.many_heads import HeadSetting
from pipeline.training.heads.stacked_heads import HeadShape
from pipeline.training.lr_finder import require_suggestion


def work(up: Upstream, job: Job) -> None:
    """Find the rate, train all heads, compare, log."""
    recipe, own = up.recipe, up.recipe.train_head
    stored = read_activations(up.folder("activations", "precompute"))
    shape = HeadShape(stored.shape[1], len(up.manifest.classes), recipe.head.hidden)
    settings = settings_to_compare(recipe, find_rate(up, stored, shape, job))
    seeds = range(recipe.seed, recipe.seed + recipe.sweep_head.seeds)
    views = up.folder("views", "precompute") if recipe.precompute.views else None
    batches = activation_batches(
        stored, split_of(up, own.fraction), own.batch_size, device_of(recipe), recipe.seed, views
    )
    started = time.perf_counter()
    heads = train_settings(settings, seeds, shape, *batches, recipe)
    seconds = time.perf_counter() - started
    compared = compare_settings(heads, own=0)
    sentence = describe_lead(compared, len(seeds))
    better = with_setting(recipe, settings[int(compared["setting"].iloc[0])])
    with tracking.new_files(job.run_id) as folder:
        write_heads_comparison(folder, heads, compared, len(seeds))
        (folder / "best_recipe.yaml").write_text(write_recipe(better), encoding="utf-8")
    tracking.log_metrics(job.run_id, comparison_metrics(heads, compared, seconds), step=0)
    tracking.describe_run(job.run_id, sentence)
    speed = f"{len(heads) / seconds:.1f} a second"
    say(f"  {len(heads)} heads in {seconds:.1f} s ({speed}), of which {heads['diverged'].sum()} diverged")
    table("The best settings, over the seeds", BEST_COLUMNS, best_rows(compared))
    say(sentence)
    say(f"The recipe with the best setting is best_recipe.yaml of run {job.run_id}; give it as -P recipe=FILE.")


def find_rate(up: Upstream, stored: Activations, shape: HeadShape, job: Job) -> float:
    """Log the LR finder's band over seeds; the recipe's rate, or for "auto" the one that the median suggests."""
    recipe, find, head = up.recipe, up.recipe.lr_find, up.recipe.train_head
    train, _ = activation_batches(stored, split_of(up, head.fraction), head.batch_size, device_of(recipe), recipe.seed)
    tested = HeadSetting(find.end_lr, head.weight_decay, recipe.head.dropout, head.label_smoothing)
    seeds = range(recipe.seed, recipe.seed + recipe.sweep_head.finder_seeds)
    curves = range_tests(seeds, shape, tested, train, find, recipe.training)
    with tracking.new_files(job.run_id) as folder:
        points = write_band(folder, curves, find.suggestion)
    tracking.log_metrics(job.run_id, points, step=0)
    rate, low, high = (points.get(f"{SUGGESTED}{end}", math.nan) for end in ("", "_low", "_high"))
    say(f"  suggested rate: {rate:.2e} ({find.suggestion}), by {len(seeds)} seeds {low:.2e} to {high:.2e}")
    if not isinstance(recipe.train_head.lr, str):
        return recipe.train_head.lr
    return require_suggestion(points.get(SUGGESTED), find.suggestion, f"figures/lr_band.png of run {job.run_id}")
