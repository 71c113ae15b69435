"""A trial as a run, on stages that only report epochs."""

from collections.abc import Callable, Iterator

import mlflow
import optuna
import pytest
from optuna.trial import Trial

from pipeline import tracking
from pipeline.recipe.recipe_file import build_recipe
from pipeline.recipe.schema import Recipe
from pipeline.sweep.study import build_pruner, open_storage, open_study, suggest
from pipeline.sweep.trial_queue import queue_trial, run_trials
from pipeline.sweep.trial_run import TrialReporter, recipe_of, run_trial
from pipeline.sweep.trials import THE_RECIPE
from pipeline.system.errors import Pruned, UserError
from pipeline.tracking import RunRef
from pipeline.training.history import epoch_points
from pipeline.training.records import EpochRecord, StepRecord


def record(accuracy: float) -> EpochRecord:
    return EpochRecord(1, 10, 1, 0.5, 0.6, accuracy, 0.4, 2.0, 100.0, [])


@pytest.mark.parametrize(
    ("objective", "value"), [("valid/accuracy", 0.7), ("valid/macro_f1", 0.4), ("valid/loss", 0.6)]
)
def test_the_objective_is_reported_after_each_epoch(objective, value, tracking_server) -> None:
    trial = optuna.create_study().ask()
    with tracking.open_run("trial", {}, {}) as run_id:
        reporter = TrialReporter(trial, run_id, [objective])
        reporter.report(epoch_points(record(0.7)))
        reporter.report(epoch_points(record(0.7)))
    assert trial.study.trials[0].intermediate_values == {1: value, 2: value}


def test_a_hopeless_trial_is_pruned_with_where_and_why(tracking_server) -> None:
    trial = optuna.create_study(pruner=optuna.pruners.ThresholdPruner(lower=0.6)).ask()
    with tracking.open_run("trial", {}, {}) as run_id:
        reporter = TrialReporter(trial, run_id, ["valid/accuracy"])
        reporter.report(epoch_points(record(0.7)))
        with pytest.raises(Pruned, match=r"^pruned at epoch 2 with valid/accuracy 0\.5000$"):
            reporter.report(epoch_points(record(0.5)))


def test_a_resumed_trial_is_not_evaluated_again_on_earlier_epochs(tracking_server) -> None:
    study = optuna.create_study(pruner=optuna.pruners.ThresholdPruner(lower=0.6))
    study.add_trial(optuna.create_trial(state=optuna.trial.TrialState.WAITING, intermediate_values={1: 0.5, 2: 0.5}))
    with tracking.open_run("trial", {}, {}) as run_id:
        reporter = TrialReporter(study.ask(), run_id, ["valid/accuracy"])
        reporter.report(epoch_points(record(0.5)))
        reporter.report(epoch_points(record(0.5)))
        with pytest.raises(Pruned, match="pruned at epoch 3"):
            reporter.report(epoch_points(record(0.5)))
    assert study.trials[0].intermediate_values == {1: 0.5, 2: 0.5, 3: 0.5}


def test_of_two_objectives_none_is_reported(tracking_server) -> None:
    trial = optuna.create_study(directions=["maximize", "minimize"]).ask()
    with tracking.open_run("trial", {}, {}) as run_id:
        TrialReporter(trial, run_id, ["valid/accuracy", "train/seconds"]).report(epoch_points(record(0.7)))
    assert trial.study.trials[0].intermediate_values == {}


SPACE = {
    "fine_tune.lr": Recipe().sweep.space["fine_tune.lr"],
    "augment.strength": Recipe().sweep.space["augment.strength"],
}


STAGES = ("train_head", "fine_tune", "resize")


def trained_epoch(epoch: int, accuracy: float) -> EpochRecord:
    steps = [StepRecord(epoch * 10, 0.5, {"head": 1e-3})]
    return EpochRecord(epoch, epoch * 10, 1, 0.5, 0.6, accuracy, accuracy - 0.1, 2.0, 100.0, steps)


@pytest.fixture
def study(url: str) -> optuna.Study:
    return open_study(open_storage(url, 20, make_tables=False), "cells", ["valid/accuracy"])


def stage_runs(accuracies: dict[str, list[float]], reused: tuple[str, ...] = ()):
    """Stages that have these accuracies after their epochs; those that are `reused` were trained before."""
    seen: list[Recipe] = []

    def train(recipe: Recipe, after_epoch: Callable[[EpochRecord], None]) -> Iterator[tuple[str, RunRef]]:
        seen.append(recipe)
        epoch = 0
        for stage in STAGES:
            with tracking.open_run(stage, {tracking.STAGE: stage}, {}) as run_id:
                for accuracy in accuracies[stage]:
                    epoch += 1
                    tracking.log_points(run_id, epoch_points(trained_epoch(epoch, accuracy)))
                    if stage != "train_head" and stage not in reused:
                        after_epoch(trained_epoch(epoch, accuracy))
            results = {"accuracy": accuracies[stage][-1], "loss": 0.6, "macro_f1": 0.5}
            last = {f"kept_valid_{name}": value for name, value in results.items()}
            yield stage, RunRef(run_id, stage, "", None, last, reused=stage in reused)

    return train, seen


def run(study: optuna.Study, train, trials: int = 1, objectives=("valid/accuracy",), parent: str = "") -> None:
    def objective(trial: Trial) -> list[float]:
        return run_trial(trial, suggest(trial, SPACE), Recipe(), objectives, parent, train)

    run_trials(study, trials, objective)


@pytest.fixture
def parent(tracking_server: str) -> str:
    """A run that another process has open."""
    return mlflow.MlflowClient().create_run(mlflow.get_experiment_by_name("test").experiment_id).info.run_id


def nested(parent: str) -> list[mlflow.entities.Run]:
    found = mlflow.search_runs(filter_string="tags.`thaw.stage` = 'trial'", output_format="list")
    assert all(one.data.tags["mlflow.parentRunId"] == parent for one in found)
    return found


GOOD = {"train_head": [0.5], "fine_tune": [0.6, 0.7], "resize": [0.8]}


def test_a_trial_that_is_complete_is_a_finished_run_with_settings_curve_and_verdict(study, parent) -> None:
    run(study, stage_runs(GOOD)[0], parent=parent)
    (trial,) = study.trials
    (found,) = nested(parent)
    assert trial.value == 0.8
    assert trial.intermediate_values == {1: 0.6, 2: 0.7, 3: 0.8}
    assert trial.user_attrs["run_id"] == found.info.run_id
    assert found.info.status == "FINISHED"
    assert found.info.run_name == "trial 0, valid/accuracy 0.8000"
    assert found.data.tags["thaw.verdict"] == "valid/accuracy 0.8000"
    assert found.data.params["fine_tune.lr"] == str(trial.params["fine_tune.lr"])
    assert found.data.params["fine_tune.lr_ratio"] == "3.0"
    assert found.data.metrics["kept_valid_accuracy"] == 0.8
    assert found.data.metrics["setting/fine_tune.lr"] == trial.params["fine_tune.lr"]
    curve = mlflow.MlflowClient().get_metric_history(found.info.run_id, "valid/accuracy")
    assert [(point.step, point.value) for point in curve] == [(10, 0.5), (20, 0.6), (30, 0.7), (40, 0.8)]


def test_epochs_of_reused_stages_are_evaluated_and_logged_too(study, parent) -> None:
    run(study, stage_runs(GOOD, reused=("fine_tune", "resize"))[0], parent=parent)
    assert study.trials[0].intermediate_values == {1: 0.6, 2: 0.7, 3: 0.8}
    curve = mlflow.MlflowClient().get_metric_history(nested(parent)[0].info.run_id, "valid/accuracy")
    assert [point.value for point in curve] == [0.5, 0.6, 0.7, 0.8]


def test_a_trial_that_is_pruned_is_a_killed_run_that_says_where(study, parent) -> None:
    study.pruner = optuna.pruners.ThresholdPruner(lower=0.65)
    for trials, accuracy in enumerate((0.9, 0.5), start=1):
        run(study, stage_runs({stage: [0.7, accuracy] for stage in STAGES})[0], trials, parent=parent)
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "PRUNED"]
    last = study.trials[-1]
    found = mlflow.get_run(last.user_attrs["run_id"])
    assert found.info.status == "KILLED"
    at = f"pruned at epoch {last.last_step} with valid/accuracy {last.intermediate_values[last.last_step]:.4f}"
    assert found.data.tags["thaw.reason"] == found.data.tags["thaw.verdict"] == at
    assert found.info.run_name == f"trial {last.number}, {at}"
    assert last.last_step == 2
    assert last.user_attrs["seconds"] > 0


def test_a_stage_that_is_ended_by_pruning_is_a_killed_run_too(study, parent) -> None:
    study.pruner = build_pruner("median", 3)
    study.pruner = optuna.pruners.ThresholdPruner(lower=0.65)
    run(study, stage_runs(GOOD)[0], parent=parent)
    stages = mlflow.search_runs(filter_string="tags.`thaw.stage` = 'fine_tune'", output_format="list")
    assert [one.info.status for one in stages] == ["KILLED"]


def test_a_trial_that_raises_is_a_failed_run_with_the_reason(study, parent) -> None:
    def train(recipe, after_epoch):
        raise UserError("The loss is no number.")
        yield

    run(study, train, parent=parent)
    (found,) = nested(parent)
    assert (found.info.status, found.data.tags["thaw.reason"]) == ("FAILED", "The loss is no number.")
    assert study.trials[0].user_attrs["reason"] == "The loss is no number."


def test_a_trial_that_is_stopped_is_a_killed_run_and_waits_to_be_resumed(study, parent) -> None:
    def train(recipe, after_epoch):
        raise KeyboardInterrupt
        yield

    with pytest.raises(KeyboardInterrupt):
        run(study, train, parent=parent)
    assert nested(parent)[0].info.status == "KILLED"
    assert [trial.state.name for trial in study.trials] == ["FAIL", "WAITING"]


def test_a_trial_is_as_good_as_the_network_that_would_be_evaluated(study, parent) -> None:
    run(study, stage_runs(GOOD | {"resize": [0.6]})[0], parent=parent)
    assert study.trials[0].values == [0.7]


def test_two_objectives_are_the_last_accuracy_and_the_seconds_of_all_epochs(url, parent) -> None:
    objectives = ["valid/accuracy", "train/seconds"]
    both = open_study(open_storage(url, 20, make_tables=False), "two", objectives)
    run(both, stage_runs(GOOD, reused=("fine_tune",))[0], objectives=objectives, parent=parent)
    assert both.trials[0].values == [0.8, 4 * 2.0]


def test_the_trial_of_the_recipe_trains_the_recipe_itself_and_others_their_own_values(study, parent) -> None:
    queue_trial(study, {"fine_tune.lr": 2e-3, "augment.strength": 1.0}, THE_RECIPE)
    train, seen = stage_runs(GOOD)
    run(study, train, 2, parent=parent)
    assert seen[0] == Recipe()
    assert seen[1] == recipe_of(Recipe(), study.trials[1])
    assert seen[1].fine_tune.lr == study.trials[1].params["fine_tune.lr"]
    assert nested(parent)[-1].data.tags["thaw.origin"] == THE_RECIPE


def test_the_recipes_trial_keeps_the_values_it_was_queued_with_where_the_recipe_has_others_now() -> None:
    values = {"fine_tune.lr": 2e-3, "augment.strength": 1.0}
    study = optuna.create_study()
    queue_trial(study, values, THE_RECIPE)
    trial = study.ask()
    suggest(trial, SPACE)
    assert recipe_of(Recipe(), trial) == Recipe(), "the finder's rate for auto"
    now = build_recipe({"augment": {"strength": 0.5}}, {}, "mine.yaml")
    assert recipe_of(now, trial).augment.strength == 1.0
    assert recipe_of(now, trial).fine_tune.lr == 2e-3
