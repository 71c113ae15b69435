"""Progress of a study: a line for each trial that ends, the best value so far, and the report."""

import time
from collections.abc import Callable, Sequence

import optuna
from optuna.trial import FrozenTrial

from pipeline import tracking
from pipeline.sweep.trials import best_so_far, trials_of, verdict
from pipeline.system.console import duration, say

LARGEST_SHARE = 0.01  # of the time may be spent on writing the report


class Progress:
    """Reports the trials of `study` on the console and in the run `run_id`; `write` writes its report."""

    def __init__(
        self, study: optuna.Study, run_id: str, objectives: Sequence[str], trials: int, write: Callable[[], None]
    ) -> None:
        self._study = study
        self._run_id = run_id
        self._objectives = objectives
        self._trials = trials
        self._write = write
        self._reported = {trial.number for trial in self._ended()}
        self._written_at, self._cost_seconds = time.monotonic(), 0.0

    def report(self) -> None:
        """Report the trials that have ended since the last call."""
        ended = [trial for trial in self._ended() if trial.number not in self._reported]
        for trial in ended:
            self._reported.add(trial.number)
            say(
                f"trial {trial.number} of {self._trials}: {verdict(self._study, trial, self._objectives)}{_took(trial)}"
            )
        if ended:
            self.log_best()
            if time.monotonic() - self._written_at >= self._cost_seconds / LARGEST_SHARE:
                self.write_report()

    def log_best(self) -> None:
        """Log the best value so far of each objective, by trial."""
        for index, objective in enumerate(self._objectives):
            best = best_so_far(self._study, index)
            points = [(f"best/{objective.replace('/', '_')}", value, int(number)) for number, value in best.to_numpy()]
            tracking.log_points(self._run_id, points)

    def write_report(self) -> None:
        """Write the report again."""
        began = time.monotonic()
        self._write()
        self._written_at = time.monotonic()
        self._cost_seconds = self._written_at - began

    def _ended(self) -> list[FrozenTrial]:
        return [trial for trial in trials_of(self._study) if trial.state.is_finished()]


def _took(trial: FrozenTrial) -> str:
    seconds = trial.user_attrs.get("seconds")
    return f", in {duration(seconds)}" if seconds is not None else ""
