"""main: the whole recipe, every stage as a run nested in one; finished stages are reused."""

import time
from collections.abc import Iterator
from functools import partial

from pipeline import tracking
from pipeline.data.readers.sources import source_name
from pipeline.recipe.schema import Recipe, resize_steps, stages_of, training_settings, write_recipe
from pipeline.runs.ensemble.seeds import choose_stages, train_networks
from pipeline.runs.fingerprint import git_tags
from pipeline.runs.plan.announcement import announced
from pipeline.runs.recipe_check import check_recipe
from pipeline.runs.recipe_pictures import gather_inputs
from pipeline.runs.stage import RECIPE_FILE, AfterEpoch, ignore_epoch, step_name
from pipeline.runs.summary import log_results, log_summary
from pipeline.system.console import say
from pipeline.tracking import RunRef
from stages import evaluate, fine_tune, lr_find, precompute, resize, train_head


def run(recipe: Recipe, upstream: str | None = None) -> RunRef:
    """Each stage on the run of the one before it; the parent run ends with the final figures."""
    started, tags = time.perf_counter(), {tracking.STAGE: "main", **git_tags()}
    check_recipe(recipe)
    with tracking.open_run("main", tags, training_settings(recipe), is_measured=False) as run_id:
        tracking.log_text(run_id, write_recipe(recipe), RECIPE_FILE)
        given, done = gather_inputs(recipe), dict[str, RunRef]()
        with announced(recipe, given.manifest, done) as expected:
            done["precompute"] = precompute.run(recipe, given=given)
            networks = train_networks(recipe, run_id, partial(_train_on, done["precompute"]), done)
            if "evaluate" in stages_of(recipe):
                best, why = choose_stages(networks)
                say(why)
                tracking.set_tags(run_id, {tracking.EVALUATED_STAGE: why})
                done["evaluate"] = evaluate.run(recipe, ",".join(best))
        if "evaluate" in done:
            log_results(run_id, {**networks[0].stages, "evaluate": done["evaluate"]})
            tracking.show_result(done["evaluate"].run_id, run_id, ["report.html"])
        log_summary(run_id, source_name(recipe.data.source), done, expected)
        return tracking.mark_done(run_id, time.perf_counter() - started)


def train(
    recipe: Recipe, after_epoch: AfterEpoch = ignore_epoch, find_given: bool = True
) -> Iterator[tuple[str, RunRef]]:
    """The name and the run of each stage of one network, up to the last that trains, as soon as it is done.

    Where the recipe gives a rate, no later stage depends on the finder's run; unless `find_given`, there is none then.
    `after_epoch` is called after each epoch once all is unfrozen.
    """
    yield "precompute", (precomputed := precompute.run(recipe))
    yield from _train_on(precomputed, recipe, after_epoch, find_given)


def _train_on(
    latest: RunRef, recipe: Recipe, after_epoch: AfterEpoch = ignore_epoch, find_given: bool = True
) -> Iterator[tuple[str, RunRef]]:
    """The stages after precompute, whose run is the `latest`."""
    stages, steps = stages_of(recipe), resize_steps(recipe)
    if "lr_find" in stages and (find_given or recipe.train_head.lr == "auto"):
        found = lr_find.run(recipe, latest.run_id)
        yield "lr_find", found
        latest = found if recipe.train_head.lr == "auto" else latest
    if "train_head" not in stages:
        return
    latest = train_head.run(recipe, latest.run_id)
    yield "train_head", latest
    rates = [recipe.fine_tune.lr] * ("fine_tune" in stages) + [step.lr for step in steps] * ("resize" in stages)
    if "lr_find" in stages and rates and (find_given or rates[0] == "auto"):
        found = lr_find.run(recipe, latest.run_id)
        yield "lr_find_unfrozen", found
        latest = found if rates[0] == "auto" else latest
    if "fine_tune" in stages:
        latest = fine_tune.run(recipe, latest.run_id, after_epoch)
        yield "fine_tune", latest
    for number in range(1, len(steps) + 1) if "resize" in stages else ():
        latest = resize.run(recipe, latest.run_id, after_epoch)
        yield step_name("resize", number), latest
