from pathlib import Path
from threading import Thread

import optuna
import pytest
from optuna.exceptions import StorageInternalError
from optuna.pruners import HyperbandPruner, MedianPruner, NopPruner
from sqlalchemy.exc import OperationalError

from pipeline.recipe.schema import Recipe, training_settings
from pipeline.recipe.sweep_sections import Choice, IntRange, LogUniformRange, UniformRange
from pipeline.sweep.study import (
    build_pruner,
    build_sampler,
    describe_study,
    open_storage,
    open_study,
    report_lost_storage,
    sampler_seed,
    space_of,
    storage_url,
    study_name,
    suggest,
)
from pipeline.system.errors import UserError

SPACE = {
    "fine_tune.lr": LogUniformRange(type="log_uniform", low=1e-4, high=1e-2),
    "fine_tune.cycle_len": IntRange(type="int", low=1, high=3),
    "augment.flip": Choice(type="choice", of=["none", "all"]),
    "augment.strength": UniformRange(type="uniform", low=0.0, high=2.0),
}
ACCURACY = ["valid/accuracy"]


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/sweeps.db"


def opened(url: str, name: str = "cells", objectives: list[str] = ACCURACY) -> optuna.Study:
    return open_study(open_storage(url, 20, make_tables=True), name, objectives)


def test_without_a_storage_the_study_is_kept_in_a_file_of_the_working_folder(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert storage_url("") == f"sqlite:///{tmp_path}/sweeps.db"
    assert storage_url("postgresql://a@b/c") == "postgresql://a@b/c"


def test_a_study_is_created_once_and_then_found(url: str) -> None:
    opened(url).set_user_attr("mark", 1)
    assert opened(url).user_attrs["mark"] == 1
    assert optuna.get_all_study_names(url) == ["cells"]


def test_accuracy_is_maximised_and_loss_and_seconds_are_minimised(url: str) -> None:
    study = opened(url, objectives=["valid/macro_f1", "train/seconds"])
    assert [direction.name for direction in study.directions] == ["MAXIMIZE", "MINIMIZE"]
    assert [direction.name for direction in opened(url, "other", ["valid/loss"]).directions] == ["MINIMIZE"]


def test_several_that_open_a_new_storage_at_once_all_get_the_study(url: str) -> None:
    found: list[str] = []
    threads = [Thread(target=lambda: found.append(opened(url).study_name)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == ["cells"] * 4


def test_a_lost_storage_is_reported_in_a_sentence() -> None:
    lost = StorageInternalError("An exception is raised during the commit.")
    lost.__cause__ = OperationalError("SELECT 1", {}, Exception("server closed the connection"))
    words = r"postgresql://thaw:…@there/thaw was lost \(.*server closed the connection.*the same command continues"
    with pytest.raises(UserError, match=words), report_lost_storage("postgresql://thaw:secret@there/thaw"):
        raise lost


@pytest.mark.parametrize("url", ["postgresql://me:secret@127.0.0.1:9/none", "nonsense", "oracle://a@b/c"])
def test_a_storage_that_is_not_there_is_reported_without_its_password(url: str, monkeypatch) -> None:
    monkeypatch.setattr("pipeline.sweep.study.SECONDS_BETWEEN_ATTEMPTS", 0.0)
    with pytest.raises(UserError, match=r"cannot be used .* correct sweep\.storage") as caught:
        open_storage(url, 20, make_tables=True)
    assert "secret" not in str(caught.value)


def test_a_study_knows_the_space_it_searches(url: str) -> None:
    wide = SPACE | {"fine_tune.lr": LogUniformRange(type="log_uniform", low=1e-6, high=1e-2)}
    describe_study(opened(url), ACCURACY, SPACE, wide)
    assert space_of(opened(url)) == wide


def test_a_study_that_is_continued_keeps_its_space(url: str) -> None:
    describe_study(opened(url), ACCURACY, SPACE, SPACE)
    describe_study(opened(url), ACCURACY, SPACE, {"fine_tune.lr": SPACE["fine_tune.lr"]})
    assert space_of(opened(url)) == SPACE


def test_a_study_of_that_name_with_another_space_or_objective_is_an_error(url: str) -> None:
    describe_study(opened(url), ACCURACY, SPACE, SPACE)
    with pytest.raises(UserError, match="cells differs in its given space"):
        describe_study(opened(url), ACCURACY, {"fine_tune.lr": SPACE["fine_tune.lr"]}, SPACE)
    with pytest.raises(UserError, match="cells differs in its objectives"):
        describe_study(opened(url), ["valid/macro_f1"], SPACE, SPACE)


def test_a_study_is_named_after_all_that_makes_trials_comparable() -> None:
    def name(space=SPACE, objectives=ACCURACY, **changes: object) -> str:
        return study_name("auto", "cells", training_settings(Recipe()) | changes, space, objectives)

    assert name() == name()
    assert name() == name(device="cpu", reuse="never", **{"data.max_store_gib": 1.0, "data.source": "moved/"})
    others = [
        name(seed=1), name(**{"fine_tune.lr": 1e-3}), name(pictures="other"), name(objectives=["valid/loss"]),
        name({"fine_tune.lr": SPACE["fine_tune.lr"]}),
    ]  # fmt: skip
    assert len({name(), *others}) == 6
    assert name().startswith("cells-")
    assert study_name("mine", "cells", {}, SPACE, ACCURACY) == "mine"


def test_suggested_values_lie_in_their_ranges_and_have_their_types() -> None:
    study = optuna.create_study(sampler=build_sampler("random", 0))
    chosen = [suggest(study.ask(), SPACE) for _ in range(50)]
    assert all(list(values) == list(SPACE) for values in chosen)
    assert {values["fine_tune.cycle_len"] for values in chosen} == {1, 2, 3}
    assert {values["augment.flip"] for values in chosen} == {"none", "all"}
    rates = [values["fine_tune.lr"] for values in chosen]
    assert all(1e-4 <= rate <= 1e-2 for rate in rates)
    assert 0.3 < sum(rate < 1e-3 for rate in rates) / 50 < 0.7  # half of them in each order of magnitude
    assert 0.3 < sum(values["augment.strength"] < 1 for values in chosen) / 50 < 0.7


@pytest.mark.parametrize("name", ["tpe", "gp", "cmaes", "random", "grid"])
def test_each_sampler_goes_on_where_trials_were_complete_pruned_and_failed(name: str, url: str) -> None:
    study = opened(url)
    study.sampler = build_sampler(name, 0)

    def objective(trial: optuna.Trial) -> float:
        values = suggest(trial, SPACE)
        if trial.number % 5 == 3:
            raise optuna.TrialPruned
        assert trial.number % 5 != 4
        return -abs(float(values["fine_tune.lr"]) - 1e-3)

    study.optimize(objective, n_trials=15, catch=(AssertionError,))
    assert len(study.trials) == 15


def test_each_worker_and_each_command_chooses_differently_and_again_the_same() -> None:
    seeds = {sampler_seed(0, started, worker) for started in (0, 30) for worker in range(4)}
    assert len(seeds) == 8
    assert sampler_seed(0, 30, 1) == sampler_seed(0, 30, 1)


def test_the_pruner_is_the_one_that_is_named() -> None:
    assert isinstance(build_pruner("hyperband", 9), HyperbandPruner)
    assert isinstance(build_pruner("median", 9), MedianPruner)
    assert isinstance(build_pruner("none", 9), NopPruner)


@pytest.mark.parametrize("name", ["hyperband", "median"])
def test_a_pruner_ends_trials_that_are_worse_early_and_none_that_is_best(name: str) -> None:
    study = optuna.create_study(direction="maximize", pruner=build_pruner(name, 9), sampler=build_sampler("random", 0))

    def objective(trial: optuna.Trial) -> float:
        value = trial.suggest_float("x", 0, 1)
        for epoch in range(1, 10):
            trial.report(value, epoch)
            if trial.should_prune():
                raise optuna.TrialPruned
        return value

    study.optimize(objective, n_trials=40)
    pruned = [trial for trial in study.trials if trial.state == optuna.trial.TrialState.PRUNED]
    assert 10 <= len(pruned) <= 35
    assert sum(trial.last_step or 0 for trial in pruned) < 0.6 * 9 * len(pruned)
    assert study.best_value == max(trial.params["x"] for trial in study.trials)
