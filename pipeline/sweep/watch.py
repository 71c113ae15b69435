"""A trial while it trains: what is reported of it after each epoch, and its end where it is hopeless."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from optuna.trial import Trial

from pipeline.errors import Pruned
from pipeline.history import epoch_points

if TYPE_CHECKING:
    from pipeline.fit import EpochRecord


class Watch:
    """Tells the study the first of `objectives` after each epoch, and draws the trial's curve in its run.

    Of two objectives nothing is told, since none of the pruners can weigh them.
    """

    def __init__(self, trial: Trial, run_id: str, objectives: Sequence[str]) -> None:
        self._trial = trial
        self._run_id = run_id
        self._objectives = objectives
        self.epochs = 0
        # Of a trial that goes on where it was broken off: the pruner had its say on these.
        self._judged = set(trial.study.get_trials(deepcopy=False)[trial.number].intermediate_values)

    def after_epoch(self, record: "EpochRecord") -> None:
        """Of an epoch that was trained. Raises Pruned where the trial is not worth going on with."""
        from pipeline import tracking

        points = epoch_points(record)
        tracking.log_points(self._run_id, points)
        self._see({name: value for name, value, _ in points}[self._objectives[0]])

    def see_again(self, run_id: str) -> None:
        """The same of all epochs of a finished run that was taken instead of training."""
        from pipeline import tracking

        for value in tracking.read_curve([run_id], self._objectives[0])["value"]:
            self._see(float(value))

    def _see(self, value: float) -> None:
        self.epochs += 1
        if len(self._objectives) > 1 or self.epochs in self._judged:
            return
        self._trial.report(value, self.epochs)
        if self._trial.should_prune():
            raise Pruned(f"pruned at epoch {self.epochs} with {self._objectives[0]} {value:.4f}")
