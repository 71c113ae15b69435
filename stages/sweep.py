"""sweep: many trials of the recipe; the best is trained over seeds, judged on the test split once, and registered."""

import time
from functools import partial
from typing import TYPE_CHECKING

from pipeline.command import main
from pipeline.contract import RunRef, Stage
from pipeline.recipe import Recipe
from stages import evaluate
from stages.main import train
from stages.precompute import list_pictures

if TYPE_CHECKING:
    import optuna

    from pipeline.manifest import Manifest
    from pipeline.sweep.lease import Lease

STAGE = Stage("sweep", (), short_for={"trials": "sweep.trials", "workers": "sweep.workers", "storage": "sweep.storage"})
RUN_ID = "run_id"
TRAIN = partial(train, find_given=False)


def run(recipe: Recipe, upstream: str | None = None) -> RunRef:
    """Lead the study of this recipe, or run trials of it where another command leads it."""
    from pipeline import tracking
    from pipeline.console import say
    from pipeline.recipe import training_settings
    from pipeline.sweep.lease import Lease
    from pipeline.sweep.queue import is_all_done
    from pipeline.sweep.space import check_space
    from pipeline.sweep.study import (
        MISSED_HEARTBEATS,
        open_storage,
        open_study,
        storage_url,
        study_name,
        told_when_away,
    )

    check_space(recipe)
    tracking.meet_server()
    sweep = recipe.sweep
    manifest = list_pictures(recipe)
    settings = training_settings(recipe) | {"pictures": manifest.digest}
    name = study_name(sweep.name, manifest.name, settings, sweep.space, sweep.objectives)
    url = storage_url(sweep.storage)
    study = open_study(open_storage(url, sweep.heartbeat_seconds, make_tables=True), name, sweep.objectives)
    lease = Lease(study, MISSED_HEARTBEATS * sweep.heartbeat_seconds)
    with told_when_away(url):
        while not lease.take():
            if RUN_ID in study.user_attrs and is_all_done(study, sweep.trials):
                say(f"All trials are done; {lease.leader()} trains and judges the best of them.")
                return RunRef(study.user_attrs[RUN_ID], STAGE.name, "", None)
            _join(recipe, study, lease, url)
        with lease.kept():
            return _lead(recipe, study, url, manifest)


def _lead(recipe: Recipe, study: "optuna.Study", url: str, manifest: "Manifest") -> RunRef:
    """Keep the study's run: queue the first trials, have workers run them and all others, and judge the best."""
    import pandas as pd

    from pipeline import tracking
    from pipeline.execute import point_mlflow_run_at
    from pipeline.provenance import git_tags
    from pipeline.recipe import flatten
    from pipeline.sweep.best import judge_best, log_report
    from pipeline.sweep.first import first_values, queue_first, searched
    from pipeline.sweep.progress import Progress
    from pipeline.sweep.study import describe_study
    from pipeline.sweep.work import run_all

    began, sweep = time.perf_counter(), recipe.sweep
    again = study.user_attrs.get(RUN_ID)
    if again is not None and not tracking.is_there(again):
        again = None
    if again is not None:
        point_mlflow_run_at(STAGE.name, again, f"The study {study.study_name} goes on in")
    tags = {tracking.STAGE: STAGE.name, "thaw.study": study.study_name, "thaw.trials": str(sweep.trials), **git_tags()}
    with tracking.open_run(STAGE.name, tags, flatten(recipe), again=again) as run_id:
        first = first_values(recipe, sweep.space, _suggestions(recipe))
        describe_study(study, sweep.objectives, sweep.space, searched(sweep.space, first))
        queue_first(study, first, sweep.space if sweep.sampler == "grid" else None, sweep.trials)
        study.set_user_attr(RUN_ID, run_id)
        draw = partial(log_report, run_id, study, recipe, len(manifest.rows("valid")))
        progress = Progress(study, run_id, sweep.objectives, sweep.trials, partial(draw, pd.DataFrame(), []))
        run_all(recipe, study, url, run_id, TRAIN, progress.tell)
        judge_best(recipe, study, run_id, manifest.name, TRAIN, evaluate.run, draw)
        return tracking.mark_done(run_id, time.perf_counter() - began)


def _join(recipe: Recipe, study: "optuna.Study", lease: "Lease", url: str) -> None:
    """Run trials of a study that another command leads."""
    from pipeline.console import say
    from pipeline.execute import point_mlflow_run_at
    from pipeline.sweep.work import SECONDS_BETWEEN_LOOKS, run_all

    say(f"The study {study.study_name} is led by {lease.leader()}; this command runs trials of it.")
    while RUN_ID not in study.user_attrs:  # until it has done what all trials share
        if lease.is_free():
            return
        time.sleep(SECONDS_BETWEEN_LOOKS)
    run_id = study.user_attrs[RUN_ID]
    point_mlflow_run_at(STAGE.name, run_id, f"Ran trials of the study {study.study_name} of")
    run_all(recipe, study, url, run_id, TRAIN, lambda: None)


def _suggestions(recipe: Recipe) -> dict[str, float]:
    """The rates that the finder suggests for the recipe as it is, by key; what all trials share is done by this."""
    from pipeline.execute import suggested

    found = {}
    for name, ref in train(recipe):
        if name == "lr_find":
            found["train_head.lr"] = suggested(ref)
        if name == "lr_find_unfrozen":
            found["fine_tune.lr"] = suggested(ref)
            break
    given = recipe.fine_tune.lr
    rate = found["fine_tune.lr"] if given == "auto" else given
    return found | {"resize.lr": rate[-1] if isinstance(rate, list) else rate}


if __name__ == "__main__":
    main(STAGE, __doc__, run)
