"""main: the whole recipe, every stage as a run nested in one; finished stages are reused."""

import time
from collections.abc import Callable, Iterator

from pipeline import tracking
from pipeline.data.readers.sources import source_name
from pipeline.recipe.schema import Recipe, training_settings
from pipeline.runs.best_stage import best_stage
from pipeline.runs.fingerprint import git_tags
from pipeline.runs.recipe_check import check_recipe
from pipeline.runs.runner import ignore_epoch
from pipeline.runs.summary import CURVES, log_results, log_summary
from pipeline.system.console import say
from pipeline.tracking import RunRef
from pipeline.training.fit import EpochRecord
from stages import evaluate, fine_tune, lr_find, precompute, resize, train_head


def run(recipe: Recipe, upstream: str | None = None) -> RunRef:
    """Each stage on the run of the one before it; the parent run ends with the final figures."""
    started = time.perf_counter()
    check_recipe(recipe)
    tags = {tracking.STAGE: "main", **git_tags()}
    with tracking.open_run("main", tags, training_settings(recipe)) as run_id:
        done: dict[str, RunRef] = {}
        for name, ref in train(recipe):
            done[name] = ref
            tracking.copy_curves(ref.run_id, run_id, CURVES)
        best, why = best_stage(done)
        say(why)
        tracking.set_tags(run_id, {tracking.EVALUATED_STAGE: why})
        done["evaluate"] = evaluate.run(recipe, done[best].run_id)
        log_results(run_id, done)
        tracking.show_result(done["evaluate"].run_id, run_id, ["report.html"])
        log_summary(run_id, source_name(recipe.data.source), done)
        return tracking.mark_done(run_id, time.perf_counter() - started)


def train(
    recipe: Recipe, after_epoch: Callable[[EpochRecord], None] = ignore_epoch, find_given: bool = True
) -> Iterator[tuple[str, RunRef]]:
    """The name and the run of each stage up to the last that trains, as soon as it is done.

    Where the recipe gives a rate, no later stage depends on the finder's run; unless `find_given`, there is none then.
    `after_epoch` is called after each epoch once all is unfrozen.
    """
    latest = precompute.run(recipe)
    yield "precompute", latest
    if find_given or recipe.train_head.lr == "auto":
        found = lr_find.run(recipe, latest.run_id)
        yield "lr_find", found
        latest = found if recipe.train_head.lr == "auto" else latest
    latest = train_head.run(recipe, latest.run_id)
    yield "train_head", latest
    if find_given or recipe.fine_tune.lr == "auto":
        found = lr_find.run(recipe, latest.run_id)
        yield "lr_find_unfrozen", found
        latest = found if recipe.fine_tune.lr == "auto" else latest
    latest = fine_tune.run(recipe, latest.run_id, after_epoch)
    yield "fine_tune", latest
    yield "resize", resize.run(recipe, latest.run_id, after_epoch)
