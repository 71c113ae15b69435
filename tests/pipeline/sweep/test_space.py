import math

import pytest

from pipeline.recipe.recipe_file import build_recipe
from pipeline.recipe.schema import Recipe
from pipeline.recipe.sweep_sections import Choice, IntRange, LogUniformRange, UniformRange
from pipeline.sweep.space import (
    check_space,
    grid,
    most_epochs,
    network_variants,
    values_of,
    varied_models,
    widened,
    with_values,
)
from pipeline.system.errors import UserError

LR = {"type": "log_uniform", "low": 1e-4, "high": 1e-2}
EPOCHS = {"type": "int", "low": 1, "high": 3}


def recipe_with(space: dict[str, object], **content: object) -> Recipe:
    return build_recipe({"sweep": {"space": space}, **content}, {}, "mine.yaml")


def complaint(space: dict[str, object], **content: object) -> str:
    with pytest.raises(UserError) as caught:
        check_space(recipe_with(space, **content))
    return str(caught.value)


def test_the_default_space_is_right() -> None:
    check_space(Recipe())


def test_any_key_of_any_stage_can_vary() -> None:
    check_space(
        recipe_with(
            {
                "model.backbone": {"type": "choice", "of": ["resnet18", "tf_efficientnet_lite0"]},
                "precompute.image_px": {"type": "choice", "of": [96, 128]},
                "head.hidden": {"type": "int", "low": 0, "high": 512},
                "train_head.lr": LR,
                "resize.freeze": {"type": "choice", "of": ["early", "none"]},
                "fine_tune.lr.early": LR,
                "fine_tune.lr.late": LR,
                "fine_tune.lr.head": LR,
            }
        )
    )


def test_a_key_of_a_stage_that_the_recipe_leaves_out_cannot_vary() -> None:
    stages = "precompute,lr_find,train_head,evaluate"
    said = complaint({"train_head.lr": LR, "fine_tune.lr": LR}, stages=stages)
    assert "fine_tune.lr cannot vary, since stages leaves fine_tune out" in said
    check_space(recipe_with({"train_head.lr": LR, "head.hidden": {"type": "int", "low": 0, "high": 9}}, stages=stages))
    check_space(recipe_with({"fine_tune.cycles": EPOCHS}, fine_tune={"cycles": 0}))


@pytest.mark.parametrize(
    ("key", "values", "said"),
    [
        ("fine_tune.cycle_length", EPOCHS, "is not a key of a recipe; the nearest is fine_tune.cycle_len."),
        ("fine_tune", EPOCHS, "fine_tune is not a key of a recipe"),
        ("cycle_len", EPOCHS, "is not a key of a recipe; the nearest is"),
        ("fine_tune.lr.middle", LR, "fine_tune.lr.middle is not a key"),
        ("train_head.lr.early", LR, "train_head.lr.early is not a key"),
        ("seed", EPOCHS, "seed cannot vary"),
        ("data.valid_fraction", {"type": "uniform", "low": 0.1, "high": 0.2}, "data.valid_fraction cannot vary"),
        ("evaluate.tta_views", EPOCHS, "evaluate.tta_views cannot vary"),
        ("sweep.trials", EPOCHS, "sweep.trials cannot vary"),
        ("fine_tune.cycle_len", {"type": "int", "low": 3, "high": 3}, "goes from 3 to 3, which is no range"),
        ("fine_tune.lr", {"type": "log_uniform", "low": 1e-2, "high": 1e-4}, "goes from 0.01 to 0.0001"),
        ("fine_tune.cycle_len", {"type": "int", "low": 0, "high": 3}, "In sweep.space: fine_tune.cycle_len is 0; it"),
        ("fine_tune.cycle_len", {"type": "uniform", "low": 1, "high": 3}, "fine_tune.cycle_len is 1.0; it takes"),
        ("fine_tune.lr_ratio", {"type": "uniform", "low": 0.5, "high": 3}, "fine_tune.lr_ratio is 0.5; it takes"),
        ("augment.flip", {"type": "choice", "of": ["none", "up"]}, "augment.flip is 'up'; it takes none, sideways"),
        (
            "fine_tune.lr.late",
            LR,
            "fine_tune.lr.late alone cannot vary; name all of fine_tune.lr.early, fine_tune.lr.l",
        ),
    ],
)
def test_what_is_wrong_with_a_space_is_reported(key: str, values: dict[str, object], said: str) -> None:
    assert said in complaint({key: values})


def uniform(low: float, high: float) -> dict[str, object]:
    return {"type": "uniform", "low": low, "high": high}


CUTS, FROZEN = {"type": "choice", "of": ["late", "head"]}, {"type": "choice", "of": ["body", "early"]}


@pytest.mark.parametrize(
    ("space", "said"),
    [
        (
            {"lr_find.start_lr": uniform(0.1, 2), "lr_find.end_lr": uniform(1, 5)},
            "start_lr is 2, which is not below lr_fi",
        ),
        (
            {"augment.strength": uniform(0, 2), "augment.lighting": uniform(0, 0.6)},
            "augment.strength 2 takes augment.li",
        ),
        (
            {"augment.crop": uniform(0.2, 1), "augment.strength": uniform(0.5, 2)},
            "takes augment.crop, 0.2, beyond what",
        ),
        (
            {"train_head.freeze": FROZEN, "precompute.cut": CUTS},
            "train_head.freeze is early, but with precompute.cut at",
        ),
        (
            {
                "train_head.stored_epochs": {"type": "int", "low": 0, "high": 3},
                "train_head.cycles": EPOCHS | {"low": 0},
            },
            "train_head.stored_epochs and train_head.cycles are both 0",
        ),
    ],
)
def test_values_that_contradict_one_another_in_some_trials_are_reported(space, said) -> None:
    assert said in complaint(space)


@pytest.mark.parametrize(
    "space",
    [
        {"lr_find.start_lr": uniform(10, 20), "lr_find.end_lr": uniform(50, 80)},
        {"augment.strength": uniform(0, 3), "augment.lighting": uniform(0, 0.3), "augment.crop": uniform(0.9, 1)},
        {"train_head.freeze": FROZEN, "precompute.cut": {"type": "choice", "of": ["late"]}},
    ],
)
def test_values_that_fit_one_another_are_taken_though_one_alone_would_not_fit_the_recipe(space) -> None:
    check_space(recipe_with(space))


def test_every_backbone_is_tried_with_all_weights_or_those_of_the_recipe() -> None:
    backbones = {"type": "choice", "of": ["resnet18", "hf-hub:timm/resnet34"]}
    sources = {"type": "choice", "of": ["random", "hub"]}
    assert list(varied_models(Recipe())) == [("tf_efficientnet_lite0", "auto")]
    assert list(varied_models(recipe_with({"model.backbone": backbones}))) == [
        ("resnet18", "auto"),
        ("resnet34", "auto"),
    ]
    both = varied_models(recipe_with({"model.backbone": backbones, "model.weights": sources}))
    assert sorted(both) == [(name, source) for name in ("resnet18", "resnet34") for source in ("hub", "random")]


def test_auto_may_be_a_choice_of_weights() -> None:
    assert values_of(Recipe(), ["model.weights"], {}) == {"model.weights": "auto"}


@pytest.mark.parametrize("other", ["fine_tune.lr", "fine_tune.lr_ratio"])
def test_rates_one_by_one_exclude_a_rate_and_its_ratio(other: str) -> None:
    rates = {f"fine_tune.lr.{group}": LR for group in ("early", "late", "head")}
    assert f"{other} and fine_tune.lr.early contradict" in complaint(rates | {other: LR | {"low": 1.0, "high": 2.0}})


def test_a_rate_cannot_vary_where_the_recipe_has_a_list() -> None:
    given = {"fine_tune": {"lr": [1e-5, 1e-4, 1e-3]}}
    assert "fine_tune.lr varies and is a list in the recipe" in complaint({"fine_tune.lr": LR}, **given)


@pytest.mark.parametrize("objective", [["valid/loss"], ["valid/loss", "valid/loss"]])
def test_two_objectives_are_two(objective: list[str]) -> None:
    with pytest.raises(UserError, match="or a list of two that differ"):
        check_space(build_recipe({"sweep": {"objective": objective}}, {}, "mine.yaml"))


def test_values_are_put_at_their_keys_and_the_rest_stays() -> None:
    values = {"fine_tune.lr": 2e-3, "augment.flip": "all", "fine_tune.cycle_len": 2}
    changed = with_values(Recipe(), values)
    assert (changed.fine_tune.lr, changed.augment.flip, changed.fine_tune.cycle_len) == (2e-3, "all", 2)
    assert (
        with_values(changed, {"fine_tune.lr": "auto", "augment.flip": "sideways", "fine_tune.cycle_len": 4}) == Recipe()
    )


def test_rates_one_by_one_become_the_list_early_to_head() -> None:
    values = {"fine_tune.lr.head": 3e-3, "fine_tune.lr.early": 1e-3, "fine_tune.lr.late": 2e-3}
    assert with_values(Recipe(), values).fine_tune.lr == [1e-3, 2e-3, 3e-3]


def test_the_recipes_own_values_have_the_finders_rate_for_auto() -> None:
    keys = ["fine_tune.lr", "fine_tune.lr_ratio", "augment.strength"]
    found = {"fine_tune.lr": 2e-3, "train_head.lr": 1e-3}
    assert values_of(Recipe(), keys, found) == {
        "fine_tune.lr": 2e-3,
        "fine_tune.lr_ratio": 3.0,
        "augment.strength": 1.0,
    }
    assert values_of(Recipe(), ["train_head.lr"], found) == {"train_head.lr": 1e-3}


def test_the_recipes_own_rates_one_by_one_follow_from_its_ratio() -> None:
    own = values_of(Recipe(), [f"fine_tune.lr.{group}" for group in ("early", "late", "head")], {"fine_tune.lr": 9e-3})
    assert list(own.values()) == pytest.approx([1e-3, 3e-3, 9e-3])


def test_a_space_is_widened_to_hold_values_and_else_stays() -> None:
    space = {
        "fine_tune.lr": LogUniformRange(type="log_uniform", low=1e-4, high=1e-2),
        "fine_tune.cycle_len": IntRange(type="int", low=2, high=3),
        "augment.strength": UniformRange(type="uniform", low=0.0, high=1.0),
        "augment.flip": Choice(type="choice", of=["none", "all"]),
    }
    within = {"fine_tune.lr": 1e-3, "fine_tune.cycle_len": 2, "augment.strength": 1.0, "augment.flip": "all"}
    assert widened(space, within) == space
    wide = widened(
        space, {"fine_tune.lr": 6e-6, "fine_tune.cycle_len": 5, "augment.strength": 2.0, "augment.flip": "up"}
    )
    assert (wide["fine_tune.lr"].low, wide["fine_tune.lr"].high) == (6e-6, 1e-2)
    assert (wide["fine_tune.cycle_len"].low, wide["fine_tune.cycle_len"].high) == (2, 5)
    assert wide["augment.strength"].high == 2.0
    assert wide["augment.flip"].of == ["none", "all", "up"]


def test_a_grid_has_every_combination_once() -> None:
    space = {
        "fine_tune.lr": LogUniformRange(type="log_uniform", low=1e-4, high=1e-2),
        "fine_tune.cycle_len": IntRange(type="int", low=1, high=2),
        "augment.flip": Choice(type="choice", of=["none", "all"]),
        "augment.strength": UniformRange(type="uniform", low=0.0, high=1.0, points=5),
    }
    points = list(grid(space))
    assert len(points) == 3 * 2 * 2 * 5
    assert len({tuple(point.values()) for point in points}) == len(points)
    assert sorted({round(math.log10(point["fine_tune.lr"]), 6) for point in points}) == [-4, -3, -2]
    assert sorted({point["augment.strength"] for point in points}) == [0, 0.25, 0.5, 0.75, 1]


def test_the_most_epochs_are_those_of_the_longest_cycles_of_both_unfrozen_stages() -> None:
    assert most_epochs(Recipe(), {"augment.strength": UniformRange(type="uniform", low=0, high=1)}) == 4 + 4
    assert most_epochs(Recipe(), Recipe().sweep.space) == 2 * 6 + 4


def test_all_networks_that_a_space_asks_for_are_known_beforehand():
    space = {
        "resize.image_px": {"type": "int", "low": 64, "high": 96},
        "model.backbone": {"type": "choice", "of": ["resnet18", "resnet34"]},
        "fine_tune.cycles": {"type": "int", "low": 1, "high": 3},
    }
    variants = network_variants(build_recipe({"sweep": {"space": space}}, {}, "here"))
    found = {(one.model.backbone, one.resize.image_px) for one in variants}
    assert found == {("resnet18", 64), ("resnet18", 96), ("resnet34", 64), ("resnet34", 96)}
    assert list(network_variants(Recipe())) == [Recipe()]
