"""Workers at work on a study: what each does in its process, and what is done with them until all trials are done."""

import time
from collections.abc import Callable
from pathlib import Path

import optuna
from optuna.trial import Trial

from pipeline.errors import UserError
from pipeline.interrupts import put_off
from pipeline.recipe import Recipe
from pipeline.store import cache_folder
from pipeline.sweep.queue import (
    REASON,
    is_all_done,
    is_more_to_do,
    queue_stale,
    run_trials,
    started,
    take_one_at_a_time,
)
from pipeline.sweep.space import most_epochs
from pipeline.sweep.study import build_pruner, build_sampler, open_storage, sampler_seed, space_of, suggest
from pipeline.sweep.trial_run import Train, run_trial
from pipeline.sweep.workers import Workers

SECONDS_BETWEEN_LOOKS = 1.0


def run_all(recipe: Recipe, study: optuna.Study, url: str, run_id: str, train: Train, look: Callable[[], None]) -> None:
    """Have workers run trials, until none is left to be started and none is running on any machine.

    `look` is called now and then. UserError where trial after trial fails; where this is broken off, workers keep what
    they have in hand, and whoever goes on with the study goes on with that.
    """
    arguments = (recipe, url, study.study_name, run_id, train)
    with Workers(recipe.sweep.workers, work, arguments, _folder(study.study_name)) as workers:
        while not _tend(study, recipe.sweep.trials, workers, look):
            time.sleep(SECONDS_BETWEEN_LOOKS)
    look()


def _tend(study: optuna.Study, trials: int, workers: Workers, look: Callable[[], None]) -> bool:
    """See to the workers once; whether all trials are done."""
    # A question to an SQLite file that Ctrl-C cuts short keeps it locked, and workers could put nothing into it.
    with put_off():
        queue_stale(study, _lock(study.study_name))
        if is_all_done(study, trials):
            return True
        if not workers.clear_ended():
            raise UserError(f"One trial after the other failed ({_last_reason(study)}); mend that, and go on.")
        if is_more_to_do(study, trials):
            workers.fill()
        look()
    return False


def work(place: int, recipe: Recipe, url: str, study_name: str, run_id: str, train: Train) -> bool:
    """Run trials of a study, as long as there are any; False if the last few all failed."""
    sweep = recipe.sweep
    storage = open_storage(url, sweep.heartbeat_seconds, make_tables=False)
    study = optuna.load_study(study_name=study_name, storage=storage)
    take_one_at_a_time(study, _lock(study_name))
    space = space_of(study)
    study.sampler = build_sampler(sweep.sampler, sampler_seed(recipe.seed, started(study), place))
    study.pruner = build_pruner(sweep.pruner, most_epochs(recipe, space))

    def objective(trial: Trial) -> list[float]:
        return run_trial(trial, suggest(trial, space), recipe, sweep.objectives, run_id, train)

    return run_trials(study, sweep.trials, objective)


def _folder(study_name: str) -> Path:
    """Where the workers of this machine have what they print."""
    return cache_folder() / "sweeps" / study_name


def _lock(study_name: str) -> Path:
    return _folder(study_name) / "queue.lock"


def _last_reason(study: optuna.Study) -> str:
    reasons = [trial.user_attrs[REASON] for trial in study.get_trials(deepcopy=False) if REASON in trial.user_attrs]
    return str(reasons[-1]) if reasons else "no reason is known"
