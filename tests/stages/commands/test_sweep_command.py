"""A sweep on real pictures, through `mlflow run`."""

import pandas as pd
import pytest

from pipeline.recipe.recipe_file import read_recipe
from pipeline.training.records import kept_name

pytestmark = pytest.mark.slow

TRAINING = ("train_head", "fine_tune", "resize")


def test_asking_for_more_trials_continues_the_study_in_the_same_run(sweep):
    assert [trial.state.name for trial in sweep.study.trials] == ["COMPLETE"] * 3
    assert sweep.printed[0].count("\ntrial ") == 2
    assert sweep.printed[1].count("\ntrial ") == 1
    commands = sweep.workplace.runs(stage="sweep")
    assert [run.info.run_id for run in commands if "thaw.reused" not in run.data.tags] == [sweep.parent.info.run_id]
    assert [run.data.tags["thaw.reused"] for run in commands[1:]] == [sweep.parent.info.run_id]
    assert {run.info.status for run in commands} == {"FINISHED"}


def test_each_trial_is_a_run_in_the_studys_with_what_it_tried(sweep):
    for trial, run in zip(sweep.study.trials, sweep.trials(), strict=True):
        assert run.info.status == "FINISHED"
        assert run.data.tags["mlflow.parentRunId"] == sweep.parent.info.run_id
        assert run.data.params["fine_tune.lr"] == str(trial.params["fine_tune.lr"])
        assert run.data.metrics[kept_name("valid/accuracy")] == trial.value


def test_the_first_trial_is_the_recipe_and_costs_nothing_that_was_done_before(sweep, main):
    (own,) = [trial for trial in sweep.study.trials if trial.user_attrs.get("origin") == "the recipe"]
    assert own.number == 0
    assert own.params["fine_tune.lr"] == pytest.approx(main.stage("lr_find (unfrozen)").data.metrics["suggestion/lr"])
    trained = [main.stage(name) for name in TRAINING]
    assert own.value == max(run.data.metrics[kept_name("valid/accuracy")] for run in trained)
    tags = sweep.workplace.client.get_run(own.user_attrs["run_id"]).data.tags
    assert [tags[f"thaw.stage.{name}"] for name in TRAINING] == [run.info.run_id for run in trained]


def test_a_trial_pays_only_for_what_its_own_values_change(sweep):
    stages = [run for run in sweep.workplace.runs() if run.data.tags.get("thaw.stage") in ("precompute", "train_head")]
    trials = {run.info.run_id for run in sweep.trials()}
    assert not [run for run in stages if run.data.tags.get("mlflow.parentRunId") in trials]


def test_no_trial_is_evaluated_on_the_test_split_and_the_end_is_once(sweep):
    trials = {run.info.run_id for run in sweep.trials()}
    evaluated = sweep.workplace.runs(stage="evaluate")
    assert not [run for run in evaluated if run.data.tags.get("mlflow.parentRunId") in trials]
    assert not [run for run in sweep.trials() if any(name.startswith("test/") for name in run.data.metrics)]
    assert "test/accuracy" in sweep.parent.data.metrics


def test_the_studys_run_shows_the_best_so_far_by_trial(sweep):
    history = sweep.workplace.client.get_metric_history(sweep.parent.info.run_id, "best/valid_accuracy")
    best = {point.step: point.value for point in history}
    values = [trial.value for trial in sweep.study.trials]
    assert best == {number: max(values[: number + 1]) for number in range(3)}


def test_the_best_recipe_is_one_that_a_command_takes(sweep):
    best = read_recipe(sweep.artifact("best_recipe.yaml"))
    assert best.data.source == str(sweep.workplace.pictures)
    table = pd.read_csv(sweep.artifact("trials.csv"))
    assert len(table) == 3
    chosen = sweep.study.best_trial
    if "origin" not in chosen.user_attrs:
        assert best.fine_tune.lr == chosen.params["fine_tune.lr"]
        assert best.fine_tune.cycle_len == chosen.params["fine_tune.cycle_len"]


def test_the_best_recipe_is_trained_with_other_seeds_on_the_same_split(sweep):
    runs = sweep.workplace.runs(stage="seed")
    assert {run.data.params["seed"] for run in runs} == {"0", "1"}
    assert {run.data.params["data.split_seed"] for run in runs} == {"0"}
    metrics = sweep.parent.data.metrics
    assert {"seeds/valid_accuracy_mean", "seeds/valid_accuracy_std"} <= metrics.keys()
    assert "over 2 seeds" in sweep.parent.data.tags["mlflow.note.content"]


def test_the_report_is_among_the_files_of_the_run(sweep):
    page = sweep.artifact("sweep.html").read_text()
    assert "fine_tune.lr" in page
    assert '<div id="history-0" class="plotly-graph-div"' in page
    assert not sweep.artifact("figures").exists()


def stage_runs(workplace):
    return [run for run in workplace.runs() if "thaw.stage" in run.data.tags]


def test_a_wrong_space_is_reported_before_anything_starts(workplace):
    before = len(stage_runs(workplace))
    space = "{fine_tune.cycle_length: {type: int, low: 1, high: 2}}"
    printed = workplace.mlflow_run("-e", "sweep", "-P", f"sweep.space={space}", expect=2)
    assert "fine_tune.cycle_length is not a key of a recipe; the nearest is fine_tune.cycle_len." in printed
    assert len(stage_runs(workplace)) == before
    assert workplace.runs()[-1].info.status == "FAILED"  # the run that `mlflow run` itself makes
