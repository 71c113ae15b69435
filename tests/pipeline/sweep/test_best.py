"""The best recipe's training over seeds and its evaluation, with training that takes no time."""

from pathlib import Path

import mlflow
import optuna
import pandas as pd
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState, create_trial

from pipeline import tracking
from pipeline.recipe.recipe_file import build_recipe, read_recipe
from pipeline.recipe.schema import Recipe
from pipeline.sweep.best import best_recipe, evaluate_best, log_report
from pipeline.sweep.trials import THE_RECIPE
from pipeline.system.errors import UserError
from pipeline.tracking import RunRef

RANGE = {"augment.strength": FloatDistribution(0, 2)}
RECIPE = build_recipe({"seed": 3}, {}, "mine.yaml")


def study_of(*strengths_and_values: tuple[float, float]) -> optuna.Study:
    study = optuna.create_study(direction="maximize")
    for strength, value in strengths_and_values:
        study.add_trial(create_trial(params={"augment.strength": strength}, distributions=RANGE, value=value))
    return study


class Bench:
    """Stands for training and evaluation, and records what it is asked for."""

    def __init__(self) -> None:
        self.trained: list[Recipe] = []
        self.evaluated: list[tuple[Recipe, str]] = []
        self.reported: list[pd.DataFrame] = []

    def train(self, recipe: Recipe, after_epoch: object):
        self.trained.append(recipe)
        accuracy = 0.8 + 0.01 * recipe.seed
        metrics = {"kept_valid_accuracy": accuracy, "kept_valid_macro_f1": 0.7, "kept_valid_loss": 0.5}
        with tracking.open_run("resize", {}, {}) as run_id:
            pass
        yield "resize", RunRef(run_id, "resize", "", None, metrics)

    def evaluate(self, recipe: Recipe, upstream: str) -> RunRef:
        self.evaluated.append((recipe, upstream))
        with tracking.open_run("evaluate", {}, {}) as run_id:
            tracking.log_text(run_id, "how good", "report.html")
        return RunRef(run_id, "evaluate", "", None, {"test/accuracy": 0.79})

    def finish(self, study: optuna.Study, recipe: Recipe = RECIPE) -> str:
        with tracking.open_run("sweep", {}, {}) as run_id:
            write = lambda found: self.reported.append(found.seeds)  # noqa: E731
            evaluate_best(recipe, study, run_id, "cells", self.train, self.evaluate, write)
        return run_id


def test_the_best_recipe_has_the_best_trials_values() -> None:
    assert best_recipe(RECIPE, study_of((0.5, 0.7), (1.5, 0.9), (1.0, 0.8))).augment.strength == 1.5
    assert best_recipe(RECIPE, study_of()) is None


def test_if_the_recipes_own_trial_is_best_it_is_the_recipe_itself() -> None:
    study = optuna.create_study(direction="maximize")
    own = create_trial(
        params={"augment.strength": 1.0}, distributions=RANGE, value=0.9, user_attrs={"origin": THE_RECIPE}
    )
    study.add_trial(own)
    assert best_recipe(RECIPE, study) == RECIPE


def test_it_is_trained_over_seeds_on_one_split_and_evaluated_once(tracking_server) -> None:
    bench = Bench()
    run_id = bench.finish(study_of((1.5, 0.9)))
    assert [recipe.seed for recipe in bench.trained] == [3, 4, 5]
    assert {recipe.data.split_seed for recipe in bench.trained} == {3}
    assert {recipe.augment.strength for recipe in bench.trained} == {1.5}
    assert [recipe.seed for recipe, _ in bench.evaluated] == [3]
    (seeds,) = bench.reported
    assert seeds["valid/accuracy"].tolist() == pytest.approx([0.83, 0.84, 0.85])
    run = mlflow.get_run(run_id)
    assert run.data.metrics["seeds/valid_accuracy_mean"] == pytest.approx(0.84)
    assert run.data.metrics["seeds/valid_accuracy_std"] == pytest.approx(0.01)
    assert run.data.metrics["test/accuracy"] == 0.79
    assert "0.8400 ± 0.0100 over 3 seeds" in run.data.tags["mlflow.note.content"]
    assert run.info.run_name == "cells, sweep, test accuracy 0.790"


def test_the_best_recipe_is_evaluated_again_only_if_a_better_one_is_found(tracking_server) -> None:
    bench, study = Bench(), study_of((1.5, 0.9))
    bench.finish(study)
    bench.finish(study)
    assert len(bench.evaluated) == 1
    assert bench.reported[1].equals(bench.reported[0])
    study.add_trial(create_trial(params={"augment.strength": 0.1}, distributions=RANGE, value=0.95))
    bench.finish(study)
    assert [recipe.augment.strength for recipe, _ in bench.evaluated] == [1.5, 0.1]


def test_without_a_complete_trial_there_is_nothing_to_evaluate(tracking_server) -> None:
    study = optuna.create_study(direction="maximize")
    study.add_trial(create_trial(state=TrialState.FAIL, params={}, distributions={}))
    with pytest.raises(UserError, match=r"No trial was trained to the end; trials\.csv of run"):
        Bench().finish(study)


def test_the_report_leaves_a_recipe_that_a_command_takes(tracking_server) -> None:
    with tracking.open_run("sweep", {}, {}) as run_id:
        log_report(run_id, study_of((1.5, 0.9)), RECIPE, 100)
    folder = Path(mlflow.get_run(run_id).info.artifact_uri)
    assert read_recipe(folder / "best_recipe.yaml").augment.strength == 1.5
    assert (folder / "sweep.html").is_file()
