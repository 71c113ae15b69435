"""A whole study in one command: one command leads it, the others run trials of it."""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import optuna

from pipeline import tracking
from pipeline.ranks.launch import call
from pipeline.recipe.schema import Recipe, flatten, training_settings
from pipeline.runs.fingerprint import git_tags
from pipeline.runs.runner import link_mlflow_run
from pipeline.runs.upstream import suggested
from pipeline.sweep.best import Evaluate, evaluate_best, log_report
from pipeline.sweep.leader import Leadership
from pipeline.sweep.progress import Progress
from pipeline.sweep.study import (
    MISSED_HEARTBEATS,
    SETTINGS,
    check_terms,
    describe_study,
    difference,
    open_storage,
    open_study,
    refuse_other_terms,
    report_lost_storage,
    storage_url,
    study_name,
    terms_of,
)
from pipeline.sweep.trial_queue import first_values, is_all_done, queue_first, searched
from pipeline.sweep.trial_run import Train
from pipeline.sweep.workers import POLL_SECONDS, check_gpus, run_all
from pipeline.system.console import say
from pipeline.tracking import RunRef

STAGE = "sweep"
RUN_ID = "run_id"


@dataclass(frozen=True)
class Pictures:
    """The pictures on which trials are compared: their `name`, a `digest` of them, and how many are for validation."""

    name: str
    digest: str
    valid: int


@dataclass(frozen=True)
class Steps:
    """What a trial is made of: `train` gives the name and the run of each stage as soon as it is done, of the LR finder
    too unless `find_given` is False and the recipe gives the rate; `evaluate` evaluates the network of a run."""

    train: Callable[..., Iterable[tuple[str, RunRef]]]
    evaluate: Evaluate


def run_study(recipe: Recipe, pictures: Pictures, steps: Steps) -> RunRef:
    """Lead the study of this recipe, or run trials of it if another command leads it. UserError if it has trials that
    cannot be compared with those of this recipe on these pictures."""
    check_gpus(recipe)
    sweep = recipe.sweep
    settings = training_settings(recipe) | {"pictures": pictures.digest}
    name = study_name(sweep.name, pictures.name, settings, sweep.space, sweep.objectives)
    url = storage_url(sweep.storage)
    study = open_study(open_storage(url, sweep.heartbeat_seconds, make_tables=True), name, sweep.objectives)
    leadership = Leadership(study, MISSED_HEARTBEATS * sweep.heartbeat_seconds)
    terms = terms_of(recipe, pictures.name, pictures.digest)
    with report_lost_storage(url):
        _check_study(study, recipe, terms)
        while not leadership.take():
            if RUN_ID in study.user_attrs and is_all_done(study, sweep.trials):
                say(f"All trials are done; {leadership.leader()} trains and evaluates the best of them.")
                return RunRef(study.user_attrs[RUN_ID], STAGE, "", None)
            _join(recipe, study, terms, leadership, url, _train_trial(steps))
        with leadership.kept():
            return _lead(recipe, study, url, pictures, steps)


def _check_study(study: optuna.Study, recipe: Recipe, terms: Mapping[str, Any]) -> None:
    """UserError if the study has other terms. Of one that an earlier version made, which says nothing of its settings,
    the run has them as text; its pictures are known by their path alone."""
    check_terms(study, terms)
    run_id = study.user_attrs.get(RUN_ID)
    if run_id is None or SETTINGS in study.user_attrs or recipe.sweep.name == "auto":
        return
    was = tracking.read_params(run_id) if tracking.is_there(run_id) else {}
    now = {key: tracking.format_param(value) for key, value in flatten(recipe).items()}
    keys = [key for key in ("data.source", *terms[SETTINGS]) if was.get(key, now[key]) != now[key]]
    refuse_other_terms(study.study_name, [difference(key, was[key], now[key]) for key in keys])
    say(f"The study {study.study_name} does not say on which pictures it was made; they are taken to be these.")


def _lead(recipe: Recipe, study: optuna.Study, url: str, pictures: Pictures, steps: Steps) -> RunRef:
    """Keep the study's run: queue the first trials, have workers run these and all others, and evaluate the best."""
    began, sweep, train = time.perf_counter(), recipe.sweep, _train_trial(steps)
    again = study.user_attrs.get(RUN_ID)
    if again is not None and not tracking.is_there(again):
        again = None
    if again is not None:
        link_mlflow_run(STAGE, again, f"The study {study.study_name} continues in")
    tags = {tracking.STAGE: STAGE, "thaw.study": study.study_name, "thaw.trials": str(sweep.trials), **git_tags()}
    with tracking.open_run(STAGE, tags, flatten(recipe), again=again, is_measured=False) as run_id:
        suggestions = call(sweep.gpus_per_trial, _suggestions, recipe, steps, run_id)
        first = first_values(recipe, sweep.space, suggestions)
        terms = terms_of(recipe, pictures.name, pictures.digest)
        describe_study(study, sweep.objectives, sweep.space, searched(sweep.space, first), terms)
        queue_first(study, first, sweep.space if sweep.sampler == "grid" else None, sweep.trials)
        study.set_user_attr(RUN_ID, run_id)
        write = partial(log_report, run_id, study, recipe, pictures.valid)
        progress = Progress(study, run_id, sweep.objectives, sweep.trials, write)
        run_all(recipe, study, url, run_id, train, progress.report)
        evaluate_best(recipe, study, run_id, pictures.name, train, steps.evaluate, write)
        return tracking.mark_done(run_id, time.perf_counter() - began)


def _join(
    recipe: Recipe, study: optuna.Study, terms: Mapping[str, Any], leadership: Leadership, url: str, train: Train
) -> None:
    """Run trials of a study that another command leads."""
    say(f"The study {study.study_name} is led by {leadership.leader()}; this command runs trials of it.")
    while RUN_ID not in study.user_attrs:  # until the leader has done what all trials share
        if leadership.is_free():
            return
        time.sleep(POLL_SECONDS)
    check_terms(study, terms)  # which its leader has given it only now
    run_id = study.user_attrs[RUN_ID]
    link_mlflow_run(STAGE, run_id, f"Ran trials of the study {study.study_name} of")
    run_all(recipe, study, url, run_id, train, lambda: None)


def _train_trial(steps: Steps) -> Train:
    """As a trial trains: without a run of the finder that it does not need."""
    return partial(steps.train, find_given=False)


def _suggestions(recipe: Recipe, steps: Steps, run_id: str) -> dict[str, float]:
    """The rates that the finder suggests for the recipe itself, by key; this also does what all trials share, in runs
    within the study's."""
    found = {}
    with tracking.nested_in(run_id):
        for name, ref in steps.train(recipe):
            if name == "lr_find":
                found["train_head.lr"] = suggested(ref)
            if name == "lr_find_unfrozen":
                found["fine_tune.lr"] = suggested(ref)
                break
    given = recipe.fine_tune.lr
    rate = found.get("fine_tune.lr", found["train_head.lr"]) if given == "auto" else given
    return found | {"resize.lr": rate[-1] if isinstance(rate, list) else rate}
