"""A trial as a run of its own, reported after each epoch and pruned if it is hopeless."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence

from optuna.trial import FrozenTrial, Trial

from pipeline import tracking
from pipeline.recipe.schema import Recipe, training_settings
from pipeline.runs.best_stage import best_stage
from pipeline.runs.fingerprint import git_tags
from pipeline.runs.stage import AfterEpoch
from pipeline.runs.summary import CURVES
from pipeline.sweep.space import Value, values_of, with_values
from pipeline.sweep.trials import is_recipes_own
from pipeline.system.errors import Pruned
from pipeline.tracking import RunRef
from pipeline.training.history import epoch_points
from pipeline.training.records import kept_name

UNFROZEN = ("fine_tune", "resize")
TRAINED = ("train_head", *UNFROZEN)
# Trains a recipe; gives the name and the run of each stage as soon as it is done.
Train = Callable[[Recipe, AfterEpoch], Iterable[tuple[str, RunRef]]]


class TrialReporter:
    """Reports a trial after each epoch, and prunes it if it is hopeless.

    The study gets the first of `objectives`, the trial's run the curves. With two objectives the study gets nothing,
    since no pruner can weigh them.
    """

    def __init__(self, trial: Trial, run_id: str, objectives: Sequence[str]) -> None:
        self._trial = trial
        self._run_id = run_id
        self._objectives = objectives
        self.epochs = 0
        # The pruner has evaluated these already, if an interrupted trial is resumed.
        self._evaluated = set(trial.study.get_trials(deepcopy=False)[trial.number].intermediate_values)

    def report(self, points: Sequence[tuple[str, float, int]]) -> None:
        """Report an epoch, given as its `epoch_points`; raises Pruned if the trial is hopeless."""
        tracking.log_points(self._run_id, points)
        self._report_value({name: value for name, value, _ in points}[self._objectives[0]])

    def report_reused(self, run_id: str) -> None:
        """The same for all epochs of a finished run that was reused instead of training."""
        for value in tracking.read_curve([run_id], self._objectives[0])["value"]:
            self._report_value(float(value))

    def _report_value(self, value: float) -> None:
        self.epochs += 1
        if len(self._objectives) > 1 or self.epochs in self._evaluated:
            return
        self._trial.report(value, self.epochs)
        if self._trial.should_prune():
            raise Pruned(f"pruned at epoch {self.epochs} with {self._objectives[0]} {value:.4f}")


def recipe_of(recipe: Recipe, trial: Trial | FrozenTrial) -> Recipe:
    """The recipe with the trial's values; for the recipe's own trial the recipe itself, which may leave a rate to the
    finder, so that earlier runs of it are reused; unless the recipe of the command that queued it had other values."""
    suggestions = {key.removesuffix(".head"): value for key, value in trial.params.items()}
    if is_recipes_own(trial) and values_of(recipe, list(trial.params), suggestions) == trial.params:
        return recipe
    return with_values(recipe, trial.params)


def run_trial(
    trial: Trial, values: Mapping[str, Value], recipe: Recipe, objectives: Sequence[str], parent: str, train: Train
) -> list[float]:
    """`train` the recipe with the trial's `values`, in a run nested in `parent`; gives the objectives."""
    name = f"trial {trial.number}"
    tags = {tracking.STAGE: "trial", "thaw.study": trial.study.study_name, **git_tags()}
    if origin := trial.user_attrs.get("origin"):
        tags["thaw.origin"] = origin
    began = time.perf_counter()
    with tracking.open_run(name, tags, training_settings(recipe) | dict(values), parent=parent) as run_id:
        trial.set_user_attr("run_id", run_id)
        # MLflow compares params as text only.
        numbers = {f"setting/{key}": value for key, value in values.items() if isinstance(value, int | float)}
        tracking.log_metrics(run_id, numbers, step=0)
        try:
            done = _train(recipe_of(recipe, trial), TrialReporter(trial, run_id, objectives), run_id, train)
        except Pruned as error:
            tracking.rename_run(run_id, f"{name}, {error}")
            tracking.set_tags(run_id, {tracking.VERDICT: str(error)})
            raise
        finally:
            trial.set_user_attr("seconds", time.perf_counter() - began)
        found = {objective: _objective(objective, done) for objective in objectives}
        tracking.log_metrics(run_id, {kept_name(objective): value for objective, value in found.items()}, step=0)
        words = ", ".join(f"{objective} {value:.4f}" for objective, value in found.items())
        tracking.rename_run(run_id, f"{name}, {words}")
        tracking.set_tags(run_id, {tracking.VERDICT: words})
        tracking.set_tags(run_id, {f"thaw.stage.{stage}": ref.run_id for stage, ref in done.items()})
        return list(found.values())


def _train(recipe: Recipe, reporter: TrialReporter, run_id: str, train: Train) -> dict[str, RunRef]:
    """The run of each stage by name; the curves of stages that do not report their epochs are copied to the trial's."""
    done: dict[str, RunRef] = {}
    for stage, ref in train(recipe, lambda record: reporter.report(epoch_points(record))):
        done[stage] = ref
        is_reused = ref.stage in UNFROZEN and ref.reused
        if stage == "train_head" or is_reused:
            tracking.copy_curves(ref.run_id, run_id, CURVES)
        if is_reused:
            reporter.report_reused(ref.run_id)
    return done


def _objective(objective: str, done: Mapping[str, RunRef]) -> float:
    """The objective of the network that would be evaluated; for seconds, those of all epochs, reused ones included."""
    if objective == "train/seconds":
        run_ids = [ref.run_id for ref in done.values() if ref.stage in TRAINED]
        return float(tracking.read_curve(run_ids, objective)["value"].sum())
    return done[best_stage(done)[0]].metrics[kept_name(objective)]
