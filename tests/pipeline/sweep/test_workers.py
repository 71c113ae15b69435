"""Workers on a study, with training that takes no time."""

from pathlib import Path

import mlflow
import optuna
import pytest
from optuna.trial import TrialState

from pipeline.recipe.recipe_file import build_recipe
from pipeline.recipe.schema import Recipe
from pipeline.sweep.study import describe_study, open_storage, open_study
from pipeline.sweep.workers import run_all
from pipeline.system.errors import UserError
from pipeline.tracking import RunRef


def quick(recipe: Recipe, after_epoch: object):
    yield "resize", RunRef("", "resize", "", None, {"valid/accuracy": 1 - abs(recipe.augment.strength - 1)})


def failing(recipe: Recipe, after_epoch: object):
    raise UserError("The loss is no number.")
    yield


@pytest.fixture
def swept(tmp_path: Path, tracking_server: str):
    """Runs a sweep with so many trials and workers; gives the study."""
    client = mlflow.MlflowClient()
    parent = client.create_run(client.get_experiment_by_name("test").experiment_id).info.run_id
    url = f"sqlite:///{tmp_path}/sweeps.db"

    def run(train, trials: int, workers: int = 1) -> optuna.Study:
        sweep = {
            "trials": trials,
            "workers": workers,
            "space": {"augment.strength": {"type": "uniform", "low": 0, "high": 2}},
        }
        recipe = build_recipe({"sweep": sweep}, {}, "mine.yaml")
        study = open_study(open_storage(url, 20, make_tables=True), "cells", ["valid/accuracy"])
        describe_study(study, ["valid/accuracy"], recipe.sweep.space, recipe.sweep.space)
        run_all(recipe, study, url, parent, train, lambda: None)
        return study

    return run


def test_two_workers_do_all_trials_and_no_two_alike(swept) -> None:
    study = swept(quick, 6, workers=2)
    counted = [trial for trial in study.trials if not trial.user_attrs.get("surplus")]
    assert [trial.state for trial in counted] == [TrialState.COMPLETE] * 6
    assert len({trial.params["augment.strength"] for trial in counted}) == 6
    runs = mlflow.search_runs(filter_string="tags.`thaw.stage` = 'trial'", output_format="list")
    assert sorted(run.info.run_id for run in runs) == sorted(trial.user_attrs["run_id"] for trial in counted)


def test_trials_that_all_fail_end_it_with_their_reason(swept) -> None:
    with pytest.raises(UserError, match=r"One trial after the other failed \(The loss is no number\.\); fix that"):
        swept(failing, 10)
