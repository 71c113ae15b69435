import mlflow
import optuna
import pytest

from pipeline import tracking
from pipeline.sweep.progress import Progress


@pytest.fixture
def study() -> optuna.Study:
    return optuna.create_study(direction="maximize")


def run_one(study: optuna.Study, value: float) -> None:
    trial = study.ask()
    trial.set_user_attr("seconds", 65.0)
    study.tell(trial, value)


def test_each_trial_that_ends_is_reported_once_with_the_best_so_far(study, tracking_server, capsys) -> None:
    written = []
    with tracking.open_run("sweep", {}, {}) as run_id:
        progress = Progress(study, run_id, ["valid/accuracy"], 3, lambda: written.append(len(study.trials)))
        for value in (0.7, 0.6, 0.8):
            run_one(study, value)
            progress.report()
        progress.report()
    reported = [line for line in capsys.readouterr().out.splitlines() if line.startswith("trial ")]
    assert [line.split(":")[0] for line in reported] == ["trial 0 of 3", "trial 1 of 3", "trial 2 of 3"]
    assert all(line.endswith(", in 1 min 05 s") for line in reported)
    history = mlflow.MlflowClient().get_metric_history(run_id, "best/valid_accuracy")
    assert {point.step: point.value for point in history} == {0: 0.7, 1: 0.7, 2: 0.8}
    assert written[0] == 1


def test_trials_of_an_earlier_command_are_not_reported_again(study, tracking_server, capsys) -> None:
    run_one(study, 0.7)
    with tracking.open_run("sweep", {}, {}) as run_id:
        progress = Progress(study, run_id, ["valid/accuracy"], 2, lambda: None)
        progress.report()
        assert "trial" not in capsys.readouterr().out
        run_one(study, 0.8)
        progress.report()
    assert "trial 1 of 2" in capsys.readouterr().out


def test_writing_the_report_takes_a_small_share_of_the_time(study, tracking_server, monkeypatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("pipeline.sweep.progress.time.monotonic", lambda: clock[0])
    written = []

    def write() -> None:
        written.append(clock[0])
        clock[0] += 5.0

    with tracking.open_run("sweep", {}, {}) as run_id:
        progress = Progress(study, run_id, ["valid/accuracy"], 100, write)
        for _ in range(60):
            clock[0] += 20.0
            run_one(study, 0.5)
            progress.report()
    assert 2 <= len(written) <= 3
