import time
from pathlib import Path
from threading import Barrier, Thread

import optuna
import pytest
from optuna.trial import Trial

from pipeline.recipe.recipe_file import build_recipe
from pipeline.recipe.schema import Recipe
from pipeline.sweep.study import open_storage, open_study
from pipeline.sweep.trial_queue import (
    THE_FINDER,
    first_values,
    is_all_done,
    is_more_to_do,
    queue_first,
    queue_stale,
    queue_trial,
    requeue,
    run_trials,
    searched,
    started,
    take_one_at_a_time,
)
from pipeline.sweep.trials import THE_RECIPE
from pipeline.system.errors import Interrupted, Pruned, UserError


@pytest.fixture
def study(url: str) -> optuna.Study:
    return open_study(open_storage(url, 1, make_tables=False), "cells", ["valid/accuracy"])


def objective(trial: Trial) -> list[float]:
    return [trial.suggest_float("x", 0, 1)]


def states(study: optuna.Study) -> list[str]:
    return [trial.state.name for trial in study.trials]


def test_so_many_trials_are_run_and_no_more(study: optuna.Study) -> None:
    assert run_trials(study, 3, objective)
    assert states(study) == ["COMPLETE"] * 3
    assert is_all_done(study, 3)


def test_asking_for_more_runs_the_rest(study: optuna.Study) -> None:
    run_trials(study, 2, objective)
    assert not is_more_to_do(study, 2)
    assert is_more_to_do(study, 5)
    run_trials(study, 5, objective)
    assert len(study.trials) == 5


def test_asking_for_fewer_runs_none(study: optuna.Study) -> None:
    for x in (0.1, 0.2, 0.3):
        queue_trial(study, {"x": x})
    run_trials(study, 2, objective)
    assert states(study) == ["COMPLETE", "COMPLETE", "WAITING"]
    assert is_all_done(study, 2)


def test_queued_trials_come_first_in_their_order_and_once(study: optuna.Study) -> None:
    for _ in range(2):
        queue_trial(study, {"x": 0.25}, "the recipe")
        queue_trial(study, {"x": 0.75})
    run_trials(study, 4, objective)
    assert [trial.params["x"] for trial in study.trials[:2]] == [0.25, 0.75]
    assert [trial.user_attrs.get("origin") for trial in study.trials] == ["the recipe", None, None, None]
    queue_trial(study, {"x": 0.25}, "the recipe")  # by a later command
    assert len(study.trials) == 4


def test_a_trial_that_raises_fails_with_its_reason_and_the_others_go_on(study: optuna.Study) -> None:
    def fails_once(trial: Trial) -> list[float]:
        if trial.number == 1:
            raise UserError("The loss is no number.")
        return objective(trial)

    assert run_trials(study, 4, fails_once)
    assert states(study) == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]
    assert study.trials[1].user_attrs["reason"] == "The loss is no number."


def test_trial_after_trial_that_fails_is_given_up(study: optuna.Study) -> None:
    assert not run_trials(study, 10, fails)
    assert states(study) == ["FAIL"] * 3
    assert study.trials[0].user_attrs["reason"] == "ValueError"


def fails(trial: Trial) -> list[float]:
    raise ValueError


def test_a_worker_that_does_not_survive_a_failure_is_followed_by_others_until_the_last_few_failed(study) -> None:
    assert run_trials(study, 10, fails, "mine", survives_failure=False)
    assert run_trials(study, 10, fails, "other", survives_failure=False)
    assert run_trials(study, 10, fails, "mine", survives_failure=False)
    assert len(study.trials) == 3
    assert not run_trials(study, 10, fails, "mine", survives_failure=False)


def test_a_trial_one_of_whose_processes_is_gone_is_queued_again_and_ends_its_worker(study: optuna.Study) -> None:
    def loses_one(trial: Trial) -> list[float]:
        trial.suggest_float("x", 0, 1)
        raise Interrupted("Process 1 of 2 is gone.")

    with pytest.raises(KeyboardInterrupt, match="Process 1 of 2 is gone"):
        run_trials(study, 1, loses_one)
    assert states(study) == ["FAIL", "WAITING"]
    run_trials(study, 1, objective)
    assert states(study) == ["FAIL", "COMPLETE"]
    assert study.trials[1].params == study.trials[0].params


def test_a_pruned_trial_is_pruned_and_says_where(study: optuna.Study) -> None:
    def is_pruned(trial: Trial) -> list[float]:
        trial.report(0.5, 1)
        raise Pruned("pruned at epoch 1")

    run_trials(study, 1, is_pruned)
    assert states(study) == ["PRUNED"]
    assert study.trials[0].user_attrs["reason"] == "pruned at epoch 1"


def test_an_interrupted_trial_is_queued_again_with_its_values_and_counts_once(study: optuna.Study) -> None:
    def interrupted(trial: Trial) -> list[float]:
        trial.suggest_float("x", 0, 1)
        trial.report(0.4, 1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_trials(study, 2, interrupted)
    assert states(study) == ["FAIL", "WAITING"]
    assert started(study) == 1
    run_trials(study, 2, objective)
    assert states(study) == ["FAIL", "COMPLETE", "COMPLETE"]
    assert study.trials[1].params == study.trials[0].params
    assert study.trials[1].intermediate_values == {1: 0.4}, "so that it is not evaluated again"
    assert is_all_done(study, 2)


def test_the_trial_of_a_dead_worker_is_run_again(url: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("pipeline.sweep.study.MISSED_HEARTBEATS", 1)
    study = open_study(open_storage(url, 1, make_tables=False), "cells", ["valid/accuracy"])
    dead = study.ask()
    dead.suggest_float("x", 0, 1)
    study._storage.record_heartbeat(dead._trial_id)
    assert not is_all_done(study, 1)
    deadline = time.monotonic() + 600
    while not is_more_to_do(study, 1):
        assert time.monotonic() < deadline
        time.sleep(0.2)
        queue_stale(study, tmp_path / "queue.lock")
    run_trials(study, 1, objective)
    assert states(study) == ["FAIL", "COMPLETE"]
    assert study.trials[0].params == study.trials[1].params


def test_of_workers_that_ask_an_sqlite_file_at_once_each_gets_a_trial_of_its_own(study, url, tmp_path) -> None:
    for number in range(12):
        queue_trial(study, {"x": number / 12})
    ran: list[int] = []
    at_once = Barrier(4)

    def train(trial: Trial) -> list[float]:
        ran.append(trial.number)
        return objective(trial)

    def work() -> None:
        storage = open_storage(url, 20, make_tables=False)
        own = optuna.load_study(study_name="cells", storage=storage)
        take_one_at_a_time(own, tmp_path / "queue.lock")
        at_once.wait()
        run_trials(own, 12, train)

    workers = [Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert sorted(ran) == list(range(12))


def test_of_two_workers_that_start_the_last_trial_at_once_one_stands_back(study: optuna.Study) -> None:
    trained: list[int] = []

    def train(trial: Trial) -> list[float]:
        trained.append(trial.number)
        return objective(trial)

    def ask_late(*arguments: object) -> Trial:
        study.ask = ask  # type: ignore[method-assign]
        study.tell(ask(), 0.5)  # another worker starts the last trial in the same moment
        return ask()

    ask = study.ask
    study.ask = ask_late  # type: ignore[method-assign]
    run_trials(study, 1, train)
    assert trained == []
    assert [trial.user_attrs.get("surplus", False) for trial in study.trials] == [False, True]
    assert is_all_done(study, 1)


def test_a_requeued_trial_keeps_its_origin(study: optuna.Study) -> None:
    queue_trial(study, {"x": 0.25}, "the recipe")
    trial = study.ask()
    trial.suggest_float("x", 0, 1)
    requeue(study, trial.number)
    assert study.trials[1].user_attrs["origin"] == "the recipe"
    assert study.trials[1].params == {"x": 0.25}


SPACE = {key: Recipe().sweep.space[key] for key in ("fine_tune.lr", "augment.strength")}


FOUND = {"train_head.lr": 1e-3, "fine_tune.lr": 2e-3, "resize.lr": 2e-3}


def test_the_first_trial_is_the_recipe_whose_rate_may_be_the_finders() -> None:
    assert first_values(Recipe(), SPACE, FOUND) == {THE_RECIPE: {"fine_tune.lr": 2e-3, "augment.strength": 1.0}}


def test_where_the_recipe_gives_a_rate_the_second_trial_is_what_the_finder_suggests() -> None:
    given = build_recipe({"fine_tune": {"lr": 5e-3}}, {}, "mine.yaml")
    first = first_values(given, SPACE, FOUND)
    assert list(first) == [THE_RECIPE, THE_FINDER]
    assert [values["fine_tune.lr"] for values in first.values()] == [5e-3, 2e-3]


def test_the_space_is_as_wide_as_the_first_trials_need() -> None:
    first = first_values(Recipe(), SPACE, FOUND | {"fine_tune.lr": 6e-6})
    space = searched(SPACE, first)
    assert space["fine_tune.lr"].low == 6e-6
    assert space["augment.strength"] == SPACE["augment.strength"]


@pytest.mark.parametrize(("trials", "queued"), [(4, 4), (100, 10)])
def test_on_a_grid_its_points_follow_up_to_the_number_of_trials(trials: int, queued: int) -> None:
    study = optuna.create_study()
    for _ in range(2):  # by a second command too
        queue_first(study, first_values(Recipe(), SPACE, FOUND), SPACE, trials)
    assert len(study.trials) == queued  # the recipe, and 3 × 3 points
    assert study.trials[0].user_attrs == {"origin": THE_RECIPE}


def test_without_a_grid_the_sampler_chooses_the_rest() -> None:
    study = optuna.create_study()
    queue_first(study, first_values(Recipe(), SPACE, FOUND), None, 10)
    assert len(study.trials) == 1
