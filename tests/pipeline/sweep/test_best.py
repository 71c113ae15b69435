"""The best recipe's training over seeds and its judgement, with training that takes no time."""

from pathlib import Path

import mlflow
import optuna
import pandas as pd
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState, create_trial

from pipeline import tracking
from pipeline.contract import RunRef
from pipeline.errors import UserError
from pipeline.recipe import Recipe
from pipeline.recipe_file import build_recipe, read_recipe
from pipeline.sweep.best import best_recipe, judge_best, log_report
from pipeline.sweep.trials import THE_RECIPE

RANGE = {"augment.strength": FloatDistribution(0, 2)}
RECIPE = build_recipe({"seed": 3}, {}, "mine.yaml")


def study_of(*strengths_and_values: tuple[float, float]) -> optuna.Study:
    study = optuna.create_study(direction="maximize")
    for strength, value in strengths_and_values:
        study.add_trial(create_trial(params={"augment.strength": strength}, distributions=RANGE, value=value))
    return study


class Bench:
    """Stands for training and judging, and notes what it was asked for."""

    def __init__(self) -> None:
        self.trained: list[Recipe] = []
        self.judged: list[tuple[Recipe, str]] = []
        self.drawn: list[pd.DataFrame] = []

    def train(self, recipe: Recipe, after_epoch: object):
        self.trained.append(recipe)
        accuracy = 0.8 + 0.01 * recipe.seed
        metrics = {"valid/accuracy": accuracy, "valid/macro_f1": 0.7, "valid/loss": 0.5}
        with tracking.open_run("resize", {}, {}) as run_id:
            pass
        yield "resize", RunRef(run_id, "resize", "", None, metrics)

    def evaluate(self, recipe: Recipe, upstream: str) -> RunRef:
        self.judged.append((recipe, upstream))
        with tracking.open_run("evaluate", {}, {}) as run_id:
            tracking.log_text(run_id, "how good", "report.html")
        return RunRef(run_id, "evaluate", "", None, {"test/accuracy": 0.79})

    def judge(self, study: optuna.Study, recipe: Recipe = RECIPE) -> str:
        with tracking.open_run("sweep", {}, {}) as run_id:
            draw = lambda seeds, sentences: self.drawn.append(seeds)  # noqa: E731
            judge_best(recipe, study, run_id, "cells", self.train, self.evaluate, draw)
        return run_id


def test_the_best_recipe_has_the_best_trials_values() -> None:
    assert best_recipe(RECIPE, study_of((0.5, 0.7), (1.5, 0.9), (1.0, 0.8))).augment.strength == 1.5
    assert best_recipe(RECIPE, study_of()) is None


def test_where_the_recipes_own_trial_is_best_it_is_the_recipe_itself() -> None:
    study = optuna.create_study(direction="maximize")
    own = create_trial(
        params={"augment.strength": 1.0}, distributions=RANGE, value=0.9, user_attrs={"origin": THE_RECIPE}
    )
    study.add_trial(own)
    assert best_recipe(RECIPE, study) == RECIPE


def test_it_is_trained_over_seeds_on_one_split_and_judged_once(tracking_server) -> None:
    bench = Bench()
    run_id = bench.judge(study_of((1.5, 0.9)))
    assert [recipe.seed for recipe in bench.trained] == [3, 4, 5]
    assert {recipe.data.split_seed for recipe in bench.trained} == {3}
    assert {recipe.augment.strength for recipe in bench.trained} == {1.5}
    assert [recipe.seed for recipe, _ in bench.judged] == [3]
    (seeds,) = bench.drawn
    assert seeds["valid/accuracy"].tolist() == pytest.approx([0.83, 0.84, 0.85])
    run = mlflow.get_run(run_id)
    assert run.data.metrics["seeds/valid_accuracy_mean"] == pytest.approx(0.84)
    assert run.data.metrics["seeds/valid_accuracy_std"] == pytest.approx(0.01)
    assert "0.8400 ± 0.0100 over 3 seeds" in run.data.tags["mlflow.note.content"]
    assert run.info.run_name == "cells, sweep, test accuracy 0.790"


def test_what_was_judged_before_is_not_looked_at_again_until_something_better_is_found(tracking_server) -> None:
    bench, study = Bench(), study_of((1.5, 0.9))
    bench.judge(study)
    bench.judge(study)
    assert len(bench.judged) == 1
    assert bench.drawn[1].equals(bench.drawn[0])
    study.add_trial(create_trial(params={"augment.strength": 0.1}, distributions=RANGE, value=0.95))
    bench.judge(study)
    assert [recipe.augment.strength for recipe, _ in bench.judged] == [1.5, 0.1]


def test_without_a_trial_that_came_to_its_end_there_is_nothing_to_judge(tracking_server) -> None:
    study = optuna.create_study(direction="maximize")
    study.add_trial(create_trial(state=TrialState.FAIL, params={}, distributions={}))
    with pytest.raises(UserError, match=r"None of the trials came to its end; trials\.csv of run"):
        Bench().judge(study)


def test_the_report_leaves_a_recipe_that_a_command_takes(tracking_server) -> None:
    with tracking.open_run("sweep", {}, {}) as run_id:
        log_report(run_id, study_of((1.5, 0.9)), RECIPE, 100, pd.DataFrame(), [])
    folder = Path(mlflow.get_run(run_id).info.artifact_uri)
    assert read_recipe(folder / "best_recipe.yaml").augment.strength == 1.5
    assert (folder / "sweep.html").is_file()
