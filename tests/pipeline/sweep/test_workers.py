"""Workers on a study, with training that takes no time."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mlflow
import optuna
import pytest
import torch
from optuna.trial import TrialState

from pipeline.recipe.recipe_file import build_recipe
from pipeline.recipe.schema import Recipe
from pipeline.sweep import workers
from pipeline.sweep.study import describe_study, open_storage, open_study
from pipeline.sweep.workers import check_gpus, run_all
from pipeline.system.errors import UserError
from pipeline.tracking import RunRef


def quick(recipe: Recipe, after_epoch: object):
    (Path(os.environ["THAW_CACHE"]) / f"threads of {os.getpid()}").write_text(str(torch.get_num_threads()))
    yield (
        "resize",
        RunRef(
            "",
            "resize",
            "",
            None,
            {"kept_valid_accuracy": 1 - abs(recipe.augment.strength - 1), "kept_valid_loss": 0.5},
        ),
    )


def failing(recipe: Recipe, after_epoch: object):
    raise UserError("The loss is no number.")
    yield


@pytest.fixture
def swept(url: str, tracking_server: str):
    """Runs a sweep with so many trials and workers; gives the study."""
    client = mlflow.MlflowClient()
    parent = client.create_run(client.get_experiment_by_name("test").experiment_id).info.run_id

    def run(train, trials: int, count: int = 1) -> optuna.Study:
        sweep = {
            "trials": trials,
            "workers": count,
            "space": {"augment.strength": {"type": "uniform", "low": 0, "high": 2}},
        }
        recipe = build_recipe({"sweep": sweep}, {}, "mine.yaml")
        study = open_study(open_storage(url, 20, make_tables=False), "cells", ["valid/accuracy"])
        describe_study(study, ["valid/accuracy"], recipe.sweep.space, recipe.sweep.space)
        run_all(recipe, study, url, parent, train, lambda: None)
        return study

    return run


class Here:
    """Stands for worker processes: one worker, in this process."""

    def __init__(
        self,
        count: int,
        target: Callable[..., bool],
        arguments: Sequence[Any],
        folder: Path,
        gpus: int,
        gpus_each: int,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._work = lambda: target(0, *arguments)
        self._goes_on = True

    def __enter__(self) -> "Here":
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def start_missing(self) -> None:
        self._goes_on = self._work()

    def clear_ended(self) -> bool:
        return self._goes_on


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without processes of its own, which take seconds to load what they need."""
    monkeypatch.setattr(workers, "Workers", Here)
    monkeypatch.setattr(workers, "POLL_SECONDS", 0.01)


def check_all_done(study: optuna.Study) -> None:
    """All six trials are complete, no two alike, and each is a run."""
    counted = [trial for trial in study.trials if not trial.user_attrs.get("surplus")]
    assert [trial.state for trial in counted] == [TrialState.COMPLETE] * 6
    assert len({trial.params["augment.strength"] for trial in counted}) == 6
    runs = mlflow.search_runs(filter_string="tags.`thaw.stage` = 'trial'", output_format="list")
    assert sorted(run.info.run_id for run in runs) == sorted(trial.user_attrs["run_id"] for trial in counted)


def test_a_worker_does_all_trials(swept, here, cache) -> None:
    check_all_done(swept(quick, 6))


@pytest.mark.slow
def test_two_workers_do_all_trials_and_no_two_alike_each_on_its_share_of_the_cores(swept, cache, monkeypatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("pipeline.sweep.worker_processes.usable_cores", lambda: 2)
    check_all_done(swept(quick, 6, 2))
    assert {path.read_text() for path in cache.glob("threads of *")} == {"1"}


def test_trials_that_all_fail_end_it_with_their_reason(swept, here) -> None:
    with pytest.raises(UserError, match=r"One trial after the other failed \(The loss is no number\.\); fix that"):
        swept(failing, 10)


def test_more_gpus_than_there_are_are_refused_before_a_trial_starts(monkeypatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    monkeypatch.setattr(workers, "choose_device", torch.device)
    sweep = {"workers": 3, "gpus_per_trial": 2}
    with pytest.raises(UserError, match=r"workers = 3 and sweep.gpus_per_trial = 2 ask for 6 GPUs, .* has 4; lower"):
        check_gpus(build_recipe({"sweep": sweep, "device": "cuda"}, {}, "mine.yaml"))
    for fewer in ({"workers": 2}, {"gpus_per_trial": 1}):
        check_gpus(build_recipe({"sweep": sweep | fewer, "device": "cuda"}, {}, "mine.yaml"))
    check_gpus(build_recipe({"sweep": sweep, "device": "cpu"}, {}, "mine.yaml"))
