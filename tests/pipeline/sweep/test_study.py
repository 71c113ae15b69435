import shutil
from pathlib import Path
from threading import Thread

import optuna
import pytest
from optuna.exceptions import StorageInternalError
from optuna.pruners import HyperbandPruner, MedianPruner, NopPruner
from sqlalchemy.exc import OperationalError

from pipeline.recipe.recipe_file import build_recipe
from pipeline.recipe.schema import Recipe, training_settings
from pipeline.recipe.sweep_sections import Choice, IntRange, LogUniformRange, UniformRange
from pipeline.sweep.study import (
    build_pruner,
    build_sampler,
    check_terms,
    describe_study,
    open_storage,
    open_study,
    report_lost_storage,
    sampler_seed,
    space_of,
    storage_url,
    study_name,
    suggest,
    terms_of,
)
from pipeline.system.errors import UserError

SPACE = {
    "fine_tune.lr": LogUniformRange(type="log_uniform", low=1e-4, high=1e-2),
    "fine_tune.cycle_len": IntRange(type="int", low=1, high=3),
    "augment.flip": Choice(type="choice", of=["none", "all"]),
    "augment.strength": UniformRange(type="uniform", low=0.0, high=2.0),
}
ACCURACY = ["valid/accuracy"]


def opened(url: str, name: str = "cells", objectives: list[str] = ACCURACY) -> optuna.Study:
    return open_study(open_storage(url, 20, make_tables=False), name, objectives)


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


def test_several_that_open_a_new_storage_at_once_all_get_the_study(tmp_path: Path) -> None:
    found: list[str] = []

    def open_new() -> None:
        storage = open_storage(f"sqlite:///{tmp_path}/new.db", 20, make_tables=True)
        found.append(open_study(storage, "cells", ACCURACY).study_name)

    threads = [Thread(target=open_new) for _ in range(4)]
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


def recipe_on(space: object = None, objective: object = "valid/accuracy", **content: object) -> Recipe:
    varied = space or {"augment.strength": {"type": "uniform", "low": 0, "high": 2}}
    return build_recipe(
        {"sweep": {"space": varied, "objective": objective, "name": "mine"}, **content}, {}, "mine.yaml"
    )


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory, empty_storage: Path) -> optuna.Study:
    """A study of the default recipe on cells."""
    path = shutil.copy(empty_storage, tmp_path_factory.mktemp("tied"))
    study, recipe = opened(f"sqlite:///{path}", "mine"), recipe_on()
    terms = terms_of(recipe, "cells", "0123456789abcdef")
    describe_study(study, recipe.sweep.objectives, recipe.sweep.space, recipe.sweep.space, terms)
    return study


def continued(study: optuna.Study, data: str = "cells", digest: str = "0123456789abcdef", **changes: object) -> None:
    check_terms(study, terms_of(recipe_on(**changes), data, digest))


@pytest.mark.parametrize(
    "same",
    [
        {},
        {"data": {"source": "elsewhere/", "max_store_gib": 1.0}},
        {"device": "cpu", "reuse": "never"},
        {"augment": {"strength": 0.5}},  # it varies
        {"evaluate": {"tta_views": 1, "register_as": ""}},
    ],
)
def test_what_no_result_of_a_trial_depends_on_may_differ(tied: optuna.Study, same: dict[str, object]) -> None:
    check_terms(tied, terms_of(recipe_on(**same), "moved", "0123456789abcdef"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"data": "dogs", "digest": "fedcba98765"}, "its data (cells, digest 01234567 there, dogs, digest fedcba98 h"),
        ({"digest": "fedcba98765"}, "its data (cells, digest 01234567 there, cells, digest fedcba98 here)"),
        ({"model": {"weights": "random"}}, "model.weights (auto there, random here)"),
        ({"seed": 1}, "seed (0 there, 1 here)"),
        ({"fine_tune": {"lr": [1e-4, 1e-3, 1e-2]}}, "fine_tune.lr (auto there, [0.0001, 0.001, 0.01] here)"),
        (
            {"precompute": {"image_px": 96}, "resize": {"image_px": 224}},
            "precompute.image_px (320 there, 96 here) and resize.image_px (384 there, 224 here)",
        ),
        ({"objective": "valid/loss"}, "its objectives (valid/accuracy there, valid/loss here)"),
        ({"objective": "valid/macro_f1"}, "its objectives (valid/accuracy there, valid/macro_f1 here)"),
        (
            {"space": {"augment.strength": {"type": "uniform", "low": 0, "high": 1}}},
            "its given space (augment.strength type uniform, low 0.0, high 2.0, points 3 there, augment.strength type",
        ),
        (
            {"space": {"head.dropout": {"type": "uniform", "low": 0, "high": 0.5}}, "head": {"dropout": 0.1}},
            "its given space (augment.strength type uniform, low 0.0, high 2.0, points 3; head.dropout fixed there, "
            "augment.strength fixed; head.dropout type uniform, low 0.0, high 0.5, points 3 here)",
        ),
    ],
)  # fmt: skip
def test_a_study_is_continued_on_the_same_terms_alone_and_what_differs_is_said(tied, change, said) -> None:
    with pytest.raises(UserError) as caught:
        continued(tied, **change)
    message = str(caught.value)
    assert message.startswith("The study mine differs in ")
    assert said in message
    assert message.endswith("compared with those it has; give another sweep.name, or what the study has.")


def test_of_many_differences_some_are_named_and_the_others_counted(tied: optuna.Study) -> None:
    with pytest.raises(
        UserError, match=r"its data \(.*\), seed \(.*\), head\.hidden \(.*\), .* here\) and 2 more, so that"
    ):
        continued(
            tied, digest="other", seed=1, head={"hidden": 8, "dropout": 0.1}, resize={"cycles": 2, "batch_size": 4}
        )


def test_a_file_of_weights_may_move_and_may_not_change(url: str, tmp_path: Path) -> None:
    first, moved, other = (tmp_path / name for name in ("first.pth", "moved.pth", "other.pth"))
    for path, content in ((first, b"a"), (moved, b"a"), (other, b"b")):
        path.write_bytes(content)

    def terms(path: Path) -> dict[str, object]:
        return terms_of(recipe_on(model={"weights": str(path)}), "cells", "digest")

    study, recipe = opened(url, "mine"), recipe_on()
    describe_study(study, ACCURACY, recipe.sweep.space, recipe.sweep.space, terms(first))
    check_terms(study, terms(moved))
    with pytest.raises(UserError, match=r"differs in model\.weights \(sha256:"):
        check_terms(study, terms(other))


def test_a_key_that_came_after_a_study_had_its_default(url: str) -> None:
    study, recipe = opened(url, "mine"), recipe_on()
    terms = terms_of(recipe, "cells", "digest")
    older = {key: value for key, value in terms["settings"].items() if key != "augment.mixup"}
    describe_study(study, ACCURACY, recipe.sweep.space, recipe.sweep.space, terms | {"settings": older})
    check_terms(study, terms)
    with pytest.raises(UserError, match=r"augment\.mixup \(0\.0 there, 0\.2 here\)"):
        check_terms(study, terms_of(recipe_on(augment={"mixup": 0.2}), "cells", "digest"))


def test_a_study_of_an_earlier_version_is_compared_by_what_it_says(url: str) -> None:
    recipe = recipe_on()
    describe_study(opened(url, "mine"), ACCURACY, recipe.sweep.space, recipe.sweep.space)
    continued(opened(url, "mine"), digest="any", seed=7)
    with pytest.raises(UserError, match="its objectives"):
        continued(opened(url, "mine"), objective="valid/loss")


def test_a_study_of_another_program_is_not_continued(url: str) -> None:
    opened(url, "mine").optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
    with pytest.raises(UserError, match=r"The study mine has trials of another program; give another sweep\.name"):
        continued(opened(url, "mine"))


def test_a_study_that_was_opened_for_another_direction_is_not_continued(url: str) -> None:
    with pytest.raises(UserError, match=r"its objectives \(maximize there, valid/loss here\)"):
        continued(opened(url, "mine"), objective="valid/loss")


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
