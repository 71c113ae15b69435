"""What is told of a study while its trials run: a line for each that ends, the best value so far, and the report."""

import time
from collections.abc import Callable, Sequence

import optuna
from optuna.trial import FrozenTrial

from pipeline.console import duration, say
from pipeline.sweep.trials import best_so_far, trials_of, verdict

LARGEST_SHARE = 0.01  # of the time may go into drawing the report


class Progress:
    """Tells of the trials of `study` on the console and in the run `run_id`, whose report `draw` draws."""

    def __init__(
        self, study: optuna.Study, run_id: str, objectives: Sequence[str], trials: int, draw: Callable[[], None]
    ) -> None:
        self._study = study
        self._run_id = run_id
        self._objectives = objectives
        self._trials = trials
        self._draw = draw
        self._told = {trial.number for trial in self._ended()}
        self._drawn_at, self._cost_seconds = time.monotonic(), 0.0

    def tell(self) -> None:
        """Tell of those trials that have ended since this was called last."""
        ended = [trial for trial in self._ended() if trial.number not in self._told]
        for trial in ended:
            self._told.add(trial.number)
            say(
                f"trial {trial.number} of {self._trials}: {verdict(self._study, trial, self._objectives)}{_took(trial)}"
            )
        if ended:
            self.log_best()
            if time.monotonic() - self._drawn_at >= self._cost_seconds / LARGEST_SHARE:
                self.draw()

    def log_best(self) -> None:
        """Log the best value so far of each objective, by trial."""
        from pipeline import tracking

        for place, objective in enumerate(self._objectives):
            best = best_so_far(self._study, place)
            points = [(f"best/{objective.replace('/', '_')}", value, int(number)) for number, value in best.to_numpy()]
            tracking.log_points(self._run_id, points)

    def draw(self) -> None:
        """Draw the report anew."""
        began = time.monotonic()
        self._draw()
        self._drawn_at = time.monotonic()
        self._cost_seconds = self._drawn_at - began

    def _ended(self) -> list[FrozenTrial]:
        return [trial for trial in trials_of(self._study) if trial.state.is_finished()]


def _took(trial: FrozenTrial) -> str:
    seconds = trial.user_attrs.get("seconds")
    return f", in {duration(seconds)}" if seconds is not None else ""
