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


def test_each_trial_that_ends_is_told_once_and_the_best_so_far_is_drawn(study, tracking_server, capsys) -> None:
    drawn = []
    with tracking.open_run("sweep", {}, {}) as run_id:
        progress = Progress(study, run_id, ["valid/accuracy"], 3, lambda: drawn.append(len(study.trials)))
        for value in (0.7, 0.6, 0.8):
            run_one(study, value)
            progress.tell()
        progress.tell()
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("trial ")]
    assert [line.split(":")[0] for line in told] == ["trial 0 of 3", "trial 1 of 3", "trial 2 of 3"]
    assert all(line.endswith(", in 1 min 05 s") for line in told)
    history = mlflow.MlflowClient().get_metric_history(run_id, "best/valid_accuracy")
    assert {point.step: point.value for point in history} == {0: 0.7, 1: 0.7, 2: 0.8}
    assert drawn[0] == 1


def test_trials_of_an_earlier_command_are_not_told_again(study, tracking_server, capsys) -> None:
    run_one(study, 0.7)
    with tracking.open_run("sweep", {}, {}) as run_id:
        progress = Progress(study, run_id, ["valid/accuracy"], 2, lambda: None)
        progress.tell()
        assert "trial" not in capsys.readouterr().out
        run_one(study, 0.8)
        progress.tell()
    assert "trial 1 of 2" in capsys.readouterr().out


def test_drawing_takes_a_small_share_of_the_time(study, tracking_server, monkeypatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("pipeline.sweep.progress.time.monotonic", lambda: clock[0])
    drawn = []

    def draw() -> None:
        drawn.append(clock[0])
        clock[0] += 5.0

    with tracking.open_run("sweep", {}, {}) as run_id:
        progress = Progress(study, run_id, ["valid/accuracy"], 100, draw)
        for _ in range(60):
            clock[0] += 20.0
            run_one(study, 0.5)
            progress.tell()
    assert 2 <= len(drawn) <= 3
