import optuna
import pytest

from pipeline import tracking
from pipeline.errors import Pruned
from pipeline.fit import EpochRecord
from pipeline.sweep.watch import Watch


def record(accuracy: float) -> EpochRecord:
    return EpochRecord(1, 10, 1, 0.5, 0.6, accuracy, 0.4, 2.0, 100.0, [])


@pytest.mark.parametrize(
    ("objective", "value"), [("valid/accuracy", 0.7), ("valid/macro_f1", 0.4), ("valid/loss", 0.6)]
)
def test_the_objective_is_told_after_each_epoch(objective, value, tracking_server) -> None:
    trial = optuna.create_study().ask()
    with tracking.open_run("trial", {}, {}) as run_id:
        watch = Watch(trial, run_id, [objective])
        watch.after_epoch(record(0.7))
        watch.after_epoch(record(0.7))
    assert trial.study.trials[0].intermediate_values == {1: value, 2: value}


def test_a_hopeless_trial_is_ended_with_where_and_why(tracking_server) -> None:
    trial = optuna.create_study(pruner=optuna.pruners.ThresholdPruner(lower=0.6)).ask()
    with tracking.open_run("trial", {}, {}) as run_id:
        watch = Watch(trial, run_id, ["valid/accuracy"])
        watch.after_epoch(record(0.7))
        with pytest.raises(Pruned, match=r"^pruned at epoch 2 with valid/accuracy 0\.5000$"):
            watch.after_epoch(record(0.5))


def test_a_trial_that_goes_on_is_not_judged_anew_on_the_epochs_before(tracking_server) -> None:
    study = optuna.create_study(pruner=optuna.pruners.ThresholdPruner(lower=0.6))
    study.add_trial(optuna.create_trial(state=optuna.trial.TrialState.WAITING, intermediate_values={1: 0.5, 2: 0.5}))
    with tracking.open_run("trial", {}, {}) as run_id:
        watch = Watch(study.ask(), run_id, ["valid/accuracy"])
        watch.after_epoch(record(0.5))
        watch.after_epoch(record(0.5))
        with pytest.raises(Pruned, match="pruned at epoch 3"):
            watch.after_epoch(record(0.5))
    assert study.trials[0].intermediate_values == {1: 0.5, 2: 0.5, 3: 0.5}


def test_of_two_objectives_nothing_is_told(tracking_server) -> None:
    trial = optuna.create_study(directions=["maximize", "minimize"]).ask()
    with tracking.open_run("trial", {}, {}) as run_id:
        Watch(trial, run_id, ["valid/accuracy", "train/seconds"]).after_epoch(record(0.7))
    assert trial.study.trials[0].intermediate_values == {}
