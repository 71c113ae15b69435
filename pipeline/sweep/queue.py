"""Which trials are still to be run: those first in line, those beyond them up to a number, and those of workers that
died."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock
from optuna.exceptions import TrialPruned
from optuna.storages import fail_stale_trials
from optuna.trial import FrozenTrial, Trial, TrialState

from pipeline.errors import Pruned
from pipeline.sweep.space import Value
from pipeline.sweep.study import RETRY

ORIGIN, REASON, SURPLUS = "origin", "reason", "surplus"
FAILED_TRIAL = "failed_trial"  # optuna's own mark on a trial that is run in place of one that was broken off
LONGEST_REASON = 500
FAILURES_IN_A_ROW = 3


def put_first(study: optuna.Study, values: Mapping[str, Value], origin: str = "") -> None:
    """Queue a trial with these values, before all that the sampler chooses."""
    study.enqueue_trial(dict(values), user_attrs={ORIGIN: origin} if origin else None, skip_if_exists=True)


def take_one_at_a_time(study: optuna.Study, lock: Path) -> None:
    """Have the processes of this machine take their next trials one after the other, by a `lock` file.

    Two that ask at once are otherwise given the same queued trial by an SQLite file, which cannot lock a row as a
    server does.
    """
    ask = study.ask

    def ask_alone(*arguments: Any, **more: Any) -> Trial:
        with FileLock(lock):
            return ask(*arguments, **more)

    study.ask = ask_alone  # type: ignore[method-assign]


def queue_stale(study: optuna.Study, lock: Path) -> None:
    """Queue the trials of workers that show no life again; by one process of this machine at a time, or an SQLite file
    may let two do it."""
    with FileLock(lock):
        fail_stale_trials(study)


def is_more_to_do(study: optuna.Study, trials: int) -> bool:
    """Whether a trial is to be started: one was broken off, or fewer than `trials` were started."""
    return any(_is_retry(trial) for trial in _in_state(study, TrialState.WAITING)) or started(study) < trials


def is_all_done(study: optuna.Study, trials: int) -> bool:
    """Whether no trial is to be started, and none is running."""
    return not is_more_to_do(study, trials) and not _in_state(study, TrialState.RUNNING)


def started(study: optuna.Study) -> int:
    """How many trials were started; one that was run again counts once."""
    return sum(_counts(trial) for trial in study.get_trials(deepcopy=False))


def run_trials(study: optuna.Study, trials: int, objective: Callable[[Trial], list[float]]) -> bool:
    """Run trials, one after the other, as long as there are any to do; False if the last few all failed.

    What is raised by `objective` is the trial's end: as pruned, or as failed, with the reason; after Ctrl-C and SIGTERM
    it is queued again, and they are raised.
    """

    def run(trial: Trial) -> list[float]:
        if _is_surplus(study, trial.number, trials):
            trial.set_user_attr(SURPLUS, True)
            raise RuntimeError("other workers have started the last trials")
        try:
            return objective(trial)
        except Pruned as error:
            trial.set_user_attr(REASON, str(error))
            raise TrialPruned from None
        except KeyboardInterrupt:
            put_back(study, trial.number)
            raise
        except Exception as error:
            trial.set_user_attr(REASON, (str(error) or type(error).__name__)[:LONGEST_REASON])
            raise

    ran: list[int] = []
    while is_more_to_do(study, trials):
        study.optimize(run, n_trials=1, catch=(Exception,), callbacks=[lambda _, trial: ran.append(trial.number)])
        last = [study.trials[number] for number in ran[-FAILURES_IN_A_ROW:]]
        if len(last) == FAILURES_IN_A_ROW and all(_failed_by_itself(trial) for trial in last):
            return False
    return True


def put_back(study: optuna.Study, number: int) -> None:
    """Queue a trial that is broken off, to be gone on with by whoever takes it."""
    RETRY(study, study.trials[number])


def _is_surplus(study: optuna.Study, number: int, trials: int) -> bool:
    """Whether a trial is one too many, where several workers started the last one at once."""
    everything = study.get_trials(deepcopy=False)
    if _is_retry(everything[number]):
        return False
    return sum(_counts(trial) for trial in everything[:number]) >= trials


def _counts(trial: FrozenTrial) -> bool:
    return trial.state != TrialState.WAITING and not _is_retry(trial) and not trial.user_attrs.get(SURPLUS, False)


def _failed_by_itself(trial: FrozenTrial) -> bool:
    return trial.state == TrialState.FAIL and REASON in trial.user_attrs


def _is_retry(trial: FrozenTrial) -> bool:
    return FAILED_TRIAL in trial.system_attrs


def _in_state(study: optuna.Study, state: TrialState) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(state,))
