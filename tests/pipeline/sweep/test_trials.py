import math

import pytest
from optuna.trial import TrialState

from pipeline.sweep.trial_queue import requeue
from pipeline.sweep.trials import (
    best_so_far,
    best_trial,
    counts,
    format_objective,
    last_value,
    pareto_front,
    recipes_trial,
    state_in_words,
    trial_table,
    trials_of,
    verdict,
)
from tests.pipeline.sweep.studies import RECIPE, add, study_of

ACCURACY = ["valid/accuracy"]
BOTH = ["valid/accuracy", "train/seconds"]


@pytest.fixture
def study():
    """One trial of each kind: complete, better, pruned, failed, with a dead worker, one too many, running, waiting."""
    study = study_of()
    add(study, 0.84, {"fine_tune.lr": 1e-3}, [0.7, 0.84], seconds=12.5, run_id="abc", **RECIPE)
    add(study, 0.86, {"fine_tune.lr": 2e-3, "augment.strength": 1.5}, [0.86])
    add(study, None, {"fine_tune.lr": 3e-3}, [0.5, 0.6, 0.61], TrialState.PRUNED, reason="worse than the median")
    add(study, state=TrialState.FAIL, reason="out of memory")
    add(study, None, {"fine_tune.lr": 4e-3}, [0.4], TrialState.FAIL)
    add(study, state=TrialState.FAIL, surplus=True)
    requeue(study, 4)
    study.enqueue_trial({"fine_tune.lr": 5e-3})
    study.ask()
    return study


def test_a_row_says_how_a_trial_ended(study):
    table = trial_table(study, ACCURACY).set_index("number")
    assert table["state"].to_dict() == {
        0: "complete", 1: "complete", 2: "pruned at epoch 3", 3: "failed", 4: "retried as 6", 6: "running",
        7: "waiting",
    }  # fmt: skip
    assert table.loc[0, ["valid/accuracy", "seconds", "run_id", "origin"]].tolist() == [0.84, 12.5, "abc", "the recipe"]
    assert math.isnan(table.loc[2, "valid/accuracy"]), "a pruned trial has no value"
    assert table.loc[7, "fine_tune.lr"] == 5e-3, "a queued trial has the values that it was queued with"
    assert table.loc[1, "augment.strength"] == 1.5
    assert table["epochs"].fillna(0).tolist() == [2, 1, 3, 0, 1, 1, 0]
    assert table.loc[3, "reason"] == "out of memory"


def test_a_surplus_trial_is_left_out(study):
    assert [trial.number for trial in trials_of(study)] == [0, 1, 2, 3, 4, 6, 7]
    assert counts(study) == {"complete": 2, "pruned": 1, "failed": 1, "retried": 1, "running": 1, "waiting": 1}


def test_of_a_trial_that_lost_two_workers_each_says_which_came_next():
    study = study_of()
    add(study, state=TrialState.FAIL)
    add(study, state=TrialState.FAIL, system={"failed_trial": 0, "retry_history": [0]})
    add(study, 0.8, system={"failed_trial": 0, "retry_history": [0, 1]})
    assert trial_table(study, ACCURACY)["state"].tolist() == ["retried as 1", "retried as 2", "complete"]
    assert counts(study)["failed"] == 0


def test_how_each_trial_ended_in_words(study):
    said = {trial.number: verdict(study, trial, ACCURACY) for trial in trials_of(study)}
    assert said == {
        0: "best so far: 0.8400 after 2 epochs",
        1: "best so far: 0.8600 after 1 epoch",
        2: "pruned at epoch 3 at 0.6100",
        3: "failed: out of memory",
        4: "interrupted; retried as 6",
        6: "running, 0.4000 after 1 epoch",
        7: "waiting",
    }


def test_a_worse_trial_says_which_is_better_among_those_before_it():
    study = study_of("minimize")
    for loss in (0.5, 0.4, 0.45, 0.3):
        add(study, loss)
    assert verdict(study, study.trials[2], ["valid/loss"]) == "0.4500; trial 1 has 0.4000"
    assert verdict(study, study.trials[3], ["valid/loss"]) == "best so far: 0.3000"


def test_a_running_trial_says_how_far_it_is():
    study = study_of()
    study.ask().report(0.71, 1)
    assert verdict(study, study.trials[0], ACCURACY) == "running, 0.7100 after 1 epoch"
    assert last_value(study.trials[0]) == 0.71


@pytest.mark.parametrize(("direction", "best"), [("maximize", [0.5, 0.7, 0.7]), ("minimize", [0.5, 0.5, 0.3])])
def test_the_best_so_far_never_gets_worse(direction, best):
    study = study_of(direction)
    for value in (0.5, 0.7, 0.3):
        add(study, value)
    add(study, None, {}, [0.9], TrialState.PRUNED)
    assert best_so_far(study).to_numpy().tolist() == [[0, best[0]], [1, best[1]], [2, best[2]]]
    assert best_trial(study).number == {"maximize": 1, "minimize": 2}[direction]


def test_of_equal_trials_the_earliest_is_best():
    study = study_of()
    for value in (0.5, 0.7, 0.7):
        add(study, value)
    assert best_trial(study).number == 1


def test_without_a_complete_trial_there_is_no_best():
    study = study_of()
    assert trial_table(study, ACCURACY).empty
    add(study, None, {}, [0.9], TrialState.PRUNED)
    assert best_trial(study) is recipes_trial(study) is None
    assert best_so_far(study).empty
    assert pareto_front(study) == []


def test_the_front_holds_what_no_trial_beats_and_begins_with_the_best_in_the_first_objective():
    study = study_of("maximize", "minimize")
    for values in ([0.8, 10.0], [0.9, 30.0], [0.85, 40.0], [0.9, 35.0], [0.7, 10.0]):
        add(study, values)
    assert [trial.number for trial in pareto_front(study)] == [1, 0]
    assert best_trial(study).number == 1
    said = [verdict(study, trial, BOTH) for trial in study.trials]
    assert said[1] == "valid/accuracy 0.9000, train/seconds 30 s: on the Pareto front so far"
    assert said[2] == "valid/accuracy 0.8500, train/seconds 40 s: trial 1 is better or equal in all"


def test_seconds_are_whole():
    assert (format_objective("train/seconds", 12.6), format_objective("valid/loss", 0.5)) == ("13 s", "0.5000")


def test_a_trial_pruned_before_its_first_epoch_has_no_epoch_to_name():
    study = study_of()
    add(study, state=TrialState.PRUNED)
    assert state_in_words(study.trials[0], {}) == "pruned"
