"""What the workers of a study do: run its trials until none is left."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import torch
from optuna.trial import Trial

from pipeline.cache.location import cache_folder
from pipeline.ranks.launch import call
from pipeline.ranks.team import processes
from pipeline.recipe.schema import Recipe
from pipeline.sweep.space import most_epochs
from pipeline.sweep.study import build_pruner, build_sampler, open_storage, sampler_seed, space_of, suggest
from pipeline.sweep.trial_queue import (
    REASON,
    is_all_done,
    is_more_to_do,
    queue_stale,
    run_trials,
    started,
    take_one_at_a_time,
)
from pipeline.sweep.trial_run import Train, run_trial
from pipeline.sweep.worker_processes import Workers
from pipeline.system.device import choose_device
from pipeline.system.errors import UserError
from pipeline.system.processes import defer_signals, identity

POLL_SECONDS = 1.0


def run_all(
    recipe: Recipe, study: optuna.Study, url: str, run_id: str, train: Train, report: Callable[[], None]
) -> None:
    """Have workers run trials, until none is left to start and none is running on any machine.

    `report` is called now and then. UserError if trial after trial fails. If this is interrupted, workers save their
    trials, and the next command on the study resumes them.
    """
    sweep, folder = recipe.sweep, _log_folder(study.study_name)
    work = run_worker if sweep.gpus_per_trial == 1 else run_worker_together
    arguments = (recipe, url, study.study_name, run_id, train, identity())
    gpus = torch.cuda.device_count()
    with Workers(sweep.workers, work, arguments, folder, gpus, sweep.gpus_per_trial) as workers:
        while not tend_workers(study, recipe.sweep.trials, workers, report):
            time.sleep(POLL_SECONDS)
    report()


def tend_workers(study: optuna.Study, trials: int, workers: Workers, report: Callable[[], None]) -> bool:
    """Replace workers that have ended, if there is more to do; whether all trials are done."""
    # A query that Ctrl-C cuts short keeps an SQLite file locked, and workers could write nothing into it.
    with defer_signals():
        queue_stale(study, _lock(study.study_name))
        if is_all_done(study, trials):
            return True
        if not workers.clear_ended():
            raise UserError(f"One trial after the other failed ({_last_reason(study)}); fix that, and run it again.")
        if is_more_to_do(study, trials):
            workers.start_missing()
        report()
    return False


def check_gpus(recipe: Recipe) -> None:
    """UserError if the trials that are to train at once on several GPUs each want more than there are."""
    sweep, gpus = recipe.sweep, torch.cuda.device_count()
    wanted = sweep.workers * sweep.gpus_per_trial
    if sweep.gpus_per_trial > 1 and choose_device(recipe.device).type == "cuda" and wanted > gpus:
        raise UserError(
            f"sweep.workers = {sweep.workers} and sweep.gpus_per_trial = {sweep.gpus_per_trial} ask for {wanted} GPUs, "
            f"but this machine has {gpus}; lower one of them."
        )


def run_worker_together(index: int, recipe: Recipe, *arguments: Any) -> bool:
    """`run_worker` by the processes that train a trial together; Interrupted if one of them is gone."""
    goes_on: bool = call(recipe.sweep.gpus_per_trial, run_worker, index, recipe, *arguments)
    return goes_on


def run_worker(index: int, recipe: Recipe, url: str, study_name: str, run_id: str, train: Train, command: str) -> bool:
    """Run trials of a study, for the command of this identity, until none is left to do; False if the last few all
    failed. Helpers may not survive a trial that fails; then others are started with a new leader."""
    sweep = recipe.sweep
    storage = open_storage(url, sweep.heartbeat_seconds, make_tables=False)
    study = optuna.load_study(study_name=study_name, storage=storage)
    take_one_at_a_time(study, _lock(study_name))
    space = space_of(study)
    study.sampler = build_sampler(sweep.sampler, sampler_seed(recipe.seed, started(study), index))
    study.pruner = build_pruner(sweep.pruner, most_epochs(recipe, space))

    def objective(trial: Trial) -> list[float]:
        return run_trial(trial, suggest(trial, space), recipe, sweep.objectives, run_id, train)

    return run_trials(study, sweep.trials, objective, f"{command}/{index}", survives_failure=processes() == 1)


def _log_folder(study_name: str) -> Path:
    """The folder for what the workers of this machine print."""
    return cache_folder() / "sweeps" / study_name


def _lock(study_name: str) -> Path:
    return _log_folder(study_name) / "queue.lock"


def _last_reason(study: optuna.Study) -> str:
    reasons = [trial.user_attrs[REASON] for trial in study.get_trials(deepcopy=False) if REASON in trial.user_attrs]
    return str(reasons[-1]) if reasons else "no reason is known"
