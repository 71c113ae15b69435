"""A trial as a run of its own, nested in the study's, with its settings, its curve and what became of it."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from optuna.trial import FrozenTrial, Trial

from pipeline.contract import RunRef
from pipeline.errors import Pruned
from pipeline.provenance import git_tags
from pipeline.recipe import Recipe, training_settings
from pipeline.summary import CURVES
from pipeline.sweep.space import Value, with_values
from pipeline.sweep.trials import is_recipes_own
from pipeline.sweep.watch import Watch

if TYPE_CHECKING:
    from pipeline.fit import EpochRecord

UNFROZEN = ("fine_tune", "resize")
TRAINED = ("train_head", *UNFROZEN)
Train = Callable[[Recipe, "Callable[[EpochRecord], None]"], Iterable[tuple[str, RunRef]]]


def recipe_of(recipe: Recipe, trial: Trial | FrozenTrial) -> Recipe:
    """The recipe with the trial's values; of the one that stands for it, the recipe itself, where a rate may be left
    to the finder, so that what was trained by it before is found again."""
    return recipe if is_recipes_own(trial) else with_values(recipe, trial.params)


def run_trial(
    trial: Trial, values: Mapping[str, Value], recipe: Recipe, objectives: Sequence[str], parent: str, train: Train
) -> list[float]:
    """Train the recipe with the trial's `values`, in a run nested in `parent`; gives the objectives.

    `train` gives the name and the run of each stage as soon as it is done.
    """
    from pipeline import tracking

    name = f"trial {trial.number}"
    tags = {tracking.STAGE: "trial", "thaw.study": trial.study.study_name, **git_tags()}
    if origin := trial.user_attrs.get("origin"):
        tags["thaw.origin"] = origin
    began = time.perf_counter()
    with tracking.open_run(name, tags, training_settings(recipe) | dict(values), parent=parent) as run_id:
        trial.set_user_attr("run_id", run_id)
        # Params can be compared as text alone.
        numbers = {f"setting/{key}": value for key, value in values.items() if isinstance(value, int | float)}
        tracking.log_metrics(run_id, numbers, step=0)
        watch = Watch(trial, run_id, objectives)
        done: dict[str, RunRef] = {}
        try:
            for stage, ref in train(recipe_of(recipe, trial), watch.after_epoch):
                done[stage] = ref
                if stage == "train_head" or (stage in UNFROZEN and ref.reused):
                    tracking.copy_curves(ref.run_id, run_id, CURVES)
                if stage in UNFROZEN and ref.reused:
                    watch.see_again(ref.run_id)
        except Pruned as error:
            tracking.rename_run(run_id, f"{name}, {error}")
            tracking.set_tags(run_id, {tracking.VERDICT: str(error)})
            raise
        finally:
            trial.set_user_attr("seconds", time.perf_counter() - began)
        found = [_objective(objective, done) for objective in objectives]
        words = ", ".join(f"{objective} {value:.4f}" for objective, value in zip(objectives, found, strict=True))
        tracking.rename_run(run_id, f"{name}, {words}")
        tracking.set_tags(run_id, {tracking.VERDICT: words})
        tracking.set_tags(run_id, {f"thaw.stage.{stage}": ref.run_id for stage, ref in done.items()})
        return found


def _objective(objective: str, done: Mapping[str, RunRef]) -> float:
    """The objective of a network that is trained to the end; of seconds, those of all epochs, reused ones too."""
    from pipeline import tracking

    if objective == "train/seconds":
        run_ids = [done[stage].run_id for stage in TRAINED]
        return float(tracking.read_curve(run_ids, objective)["value"].sum())
    return done["resize"].metrics[objective]
