import optuna
import pytest

from pipeline.recipe import Recipe
from pipeline.recipe_file import build_recipe
from pipeline.sweep.first import THE_FINDER, first_values, queue_first, searched
from pipeline.sweep.trials import THE_RECIPE

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
