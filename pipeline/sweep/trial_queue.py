"""Which trials are still to be run: queued ones, retries of interrupted ones, and others up to a number."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock
from optuna.exceptions import TrialPruned
from optuna.storages import fail_stale_trials
from optuna.trial import FrozenTrial, Trial, TrialState

from pipeline.recipe.schema import Recipe
from pipeline.sweep.space import RATES, Space, Value, grid, values_of, widened
from pipeline.sweep.study import RETRY
from pipeline.sweep.trials import THE_RECIPE
from pipeline.system.errors import Interrupted, Pruned

ORIGIN, REASON, SURPLUS, WORKER = "origin", "reason", "surplus", "worker"
THE_FINDER = "the LR finder's suggestion"  # an `origin`
FAILED_TRIAL = "failed_trial"  # by this Optuna marks the retry of an interrupted trial
LONGEST_REASON = 500
FAILURES_IN_A_ROW = 3


def queue_trial(study: optuna.Study, values: Mapping[str, Value], origin: str = "") -> None:
    """Queue a trial with these values, which is run before those that the sampler chooses."""
    study.enqueue_trial(dict(values), user_attrs={ORIGIN: origin} if origin else None, skip_if_exists=True)


def take_one_at_a_time(study: optuna.Study, lock: Path) -> None:
    """Let the processes of this machine take their next trials one after the other, by a `lock` file.

    Otherwise an SQLite file, which cannot lock a row as a server does, may give two of them the same queued trial.
    """
    ask = study.ask

    def ask_alone(*arguments: Any, **more: Any) -> Trial:
        with FileLock(lock):
            return ask(*arguments, **more)

    study.ask = ask_alone  # type: ignore[method-assign]


def queue_stale(study: optuna.Study, lock: Path) -> None:
    """Queue the trials of dead workers again; one process of this machine at a time, since an SQLite file may let two
    do it."""
    with FileLock(lock):
        fail_stale_trials(study)


def is_more_to_do(study: optuna.Study, trials: int) -> bool:
    """Whether a trial is to be started: a retry is queued, or fewer than `trials` were started."""
    return any(_is_retry(trial) for trial in _in_state(study, TrialState.WAITING)) or started(study) < trials


def is_all_done(study: optuna.Study, trials: int) -> bool:
    """Whether no trial is to be started, and none is running."""
    return not is_more_to_do(study, trials) and not _in_state(study, TrialState.RUNNING)


def started(study: optuna.Study) -> int:
    """How many trials were started; one that was retried counts once."""
    return sum(_is_counted(trial) for trial in study.get_trials(deepcopy=False))


def run_trials(
    study: optuna.Study,
    trials: int,
    objective: Callable[[Trial], list[float]],
    worker: str = "",
    survives_failure: bool = True,
) -> bool:
    """Run trials, one after the other, until none is left to do, or one fails that this process does not survive; False
    if the last few of the `worker`, of which this may not be the first process, all failed.

    A trial whose `objective` raises is pruned, or failed, with the reason; after Ctrl-C, SIGTERM and Interrupted it is
    queued again, and KeyboardInterrupt raised.
    """

    def run(trial: Trial) -> list[float]:
        if _is_surplus(study, trial.number, trials):
            trial.set_user_attr(SURPLUS, True)
            raise RuntimeError("other workers have started the last trials")
        trial.set_user_attr(WORKER, worker)
        try:
            return objective(trial)
        except Pruned as error:
            trial.set_user_attr(REASON, str(error))
            raise TrialPruned from None
        except KeyboardInterrupt:
            requeue(study, trial.number)
            raise
        except Interrupted as error:
            requeue(study, trial.number)
            raise KeyboardInterrupt(str(error)) from error
        except Exception as error:
            trial.set_user_attr(REASON, (str(error) or type(error).__name__)[:LONGEST_REASON])
            raise

    while is_more_to_do(study, trials):
        study.optimize(run, n_trials=1, catch=(Exception,))
        ended = [trial for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()]
        last = [trial for trial in ended if trial.user_attrs.get(WORKER) == worker][-FAILURES_IN_A_ROW:]
        if len(last) == FAILURES_IN_A_ROW and all(_failed_by_itself(trial) for trial in last):
            return False
        if last and _failed_by_itself(last[-1]) and not survives_failure:
            break
    return True


def requeue(study: optuna.Study, number: int) -> None:
    """Queue an interrupted trial again; the worker that takes it resumes it."""
    RETRY(study, study.trials[number])


def _is_surplus(study: optuna.Study, number: int, trials: int) -> bool:
    """Whether a trial is one too many, since several workers started the last one at once."""
    everything = study.get_trials(deepcopy=False)
    if _is_retry(everything[number]):
        return False
    return sum(_is_counted(trial) for trial in everything[:number]) >= trials


def _is_counted(trial: FrozenTrial) -> bool:
    return trial.state != TrialState.WAITING and not _is_retry(trial) and not trial.user_attrs.get(SURPLUS, False)


def _failed_by_itself(trial: FrozenTrial) -> bool:
    return trial.state == TrialState.FAIL and REASON in trial.user_attrs


def _is_retry(trial: FrozenTrial) -> bool:
    return FAILED_TRIAL in trial.system_attrs


def _in_state(study: optuna.Study, state: TrialState) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(state,))


def first_values(recipe: Recipe, space: Space, suggestions: Mapping[str, float]) -> dict[str, dict[str, Value]]:
    """The values of the first trials, by their origin; `suggestions` has the finder's rate by key."""
    own = values_of(recipe, list(space), suggestions)
    content = recipe.model_dump()
    for key in RATES:
        section, name = key.split(".")
        content[section][name] = "auto"
    found = values_of(Recipe.model_validate(content), list(space), suggestions)
    return {THE_RECIPE: own} | ({} if found == own else {THE_FINDER: found})


def searched(space: Space, first: Mapping[str, Mapping[str, Value]]) -> Space:
    """The space, as wide as it must be to hold the first trials."""
    for values in first.values():
        space = widened(space, values)
    return space


def queue_first(
    study: optuna.Study, first: Mapping[str, Mapping[str, Value]], on_grid: Space | None, trials: int
) -> None:
    """Queue the first trials, and the points of the space `on_grid`, if it is given, up to so many `trials` in all."""
    for origin, values in first.items():
        queue_trial(study, values, origin)
    if on_grid is not None:
        for values, _ in zip(grid(on_grid), range(trials - len(first)), strict=False):
            queue_trial(study, values)
