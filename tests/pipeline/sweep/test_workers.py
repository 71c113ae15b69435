"""Workers on a study, with training that takes no time."""

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import mlflow
import optuna
import psutil
import pytest
import torch
from optuna.trial import TrialState

from pipeline.recipe.recipe_file import build_recipe
from pipeline.recipe.schema import Recipe
from pipeline.sweep.study import describe_study, open_storage, open_study
from pipeline.sweep.workers import HAS_GIVEN_UP, Workers, _environment, environment_of, run_all
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


def wait(index: int, folder: Path) -> bool:
    (folder / f"{index}-{os.getpid()}").touch()
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        (folder / f"stopped {index}").touch()
        raise
    return True


def describe(index: int, folder: Path) -> bool:
    """Write what this process was started with, which is there before its first line of Python, and what torch uses."""
    started_with = dict(
        pair.decode().split("=", 1) for pair in Path("/proc/self/environ").read_bytes().split(b"\0") if b"=" in pair
    )
    names = ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")
    seen = {
        "started with": [started_with.get(name) for name in names],
        "now": [os.environ.get(name) for name in names],
        "threads": torch.get_num_threads(),
    }
    print("at work")
    (folder / f"{index}.json").write_text(json.dumps(seen))
    return True


def crash(index: int, folder: Path) -> bool:
    raise ValueError("no good")


def until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def clear_all(workers: Workers) -> bool:
    until(lambda: all(process is None or process.exitcode is not None for process in workers._processes))
    return workers.clear_ended()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_each_worker_prints_into_a_file_and_has_its_threads_and_gpu_before_torch_is_loaded(
    tmp_path, monkeypatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("os.sched_getaffinity", lambda process: range(2))
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    before = dict(os.environ)
    with Workers(2, describe, (tmp_path,), tmp_path / "logs") as workers:
        workers.start_missing()
        assert dict(os.environ) == before
        assert clear_all(workers)
        assert "at work" in workers.log(0).read_text()
    for index in range(2):
        seen = json.loads((tmp_path / f"{index}.json").read_text())
        assert seen == {"started with": ["1", str(index)], "now": ["1", str(index)], "threads": 1}


def test_variables_are_set_for_the_block_and_then_restored(monkeypatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with _environment({"OMP_NUM_THREADS": "2", "CUDA_VISIBLE_DEVICES": "1"}):
        assert (os.environ["OMP_NUM_THREADS"], os.environ["CUDA_VISIBLE_DEVICES"]) == ("2", "1")
    assert os.environ["OMP_NUM_THREADS"] == "5"
    assert "CUDA_VISIBLE_DEVICES" not in os.environ


def test_threads_that_the_user_gave_are_kept(monkeypatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert environment_of(0, 2)["OMP_NUM_THREADS"] == "5"


@pytest.mark.parametrize(("visible", "expected"), [("", ["0", "1", "2", "0"]), ("5,7", ["5", "7", "5", "7"])])
def test_each_worker_has_a_gpu_of_its_own_if_there_are_as_many(visible, expected, monkeypatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert [environment_of(index, 4)["CUDA_VISIBLE_DEVICES"] for index in range(4)] == expected


def test_one_that_is_killed_is_replaced_and_at_the_end_all_are_stopped_to_save_their_trials(
    tmp_path,
) -> None:
    with Workers(1, wait, (tmp_path,), tmp_path / "logs") as workers:
        workers.start_missing()
        until(lambda: list(tmp_path.glob("0-*")))
        (first,) = tmp_path.glob("0-*")
        pid = int(first.name.split("-")[1])
        os.kill(pid, signal.SIGKILL)
        until(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
        assert clear_all(workers)
        workers.start_missing()
        until(lambda: len(list(tmp_path.glob("0-*"))) == 2)
    assert (tmp_path / "stopped 0").exists()


def ended(exit_code: int) -> SimpleNamespace:
    return SimpleNamespace(exitcode=exit_code, is_alive=lambda: False)


def test_one_that_gives_up_is_reported(tmp_path) -> None:
    with Workers(2, wait, (tmp_path,), tmp_path / "logs") as workers:
        workers._processes = [ended(0), ended(HAS_GIVEN_UP)]
        assert not workers.clear_ended()
        assert workers._processes == [None, None]


def test_workers_that_only_crash_are_reported_with_where_to_look(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("pipeline.sweep.workers.MOST_CRASHES", 2)
    with Workers(2, crash, (tmp_path,), tmp_path / "logs") as workers:
        workers._processes[0] = ended(-9)
        workers.start_missing()
        with pytest.raises(UserError, match=r"The last 2 workers crashed; .*worker-2.log says why"):
            clear_all(workers)
        assert "ValueError: no good" in workers.log(1).read_text()
