import shlex

import pytest
from pydantic import ValidationError

from pipeline.recipe.fields import Section
from pipeline.recipe.presets import command_line, default_recipe
from pipeline.recipe.recipe_file import build_recipe, override_recipe, read_recipe
from pipeline.recipe.schema import Recipe, flatten, frozen_in, resize_steps, stages_of, trained_next
from pipeline.recipe.training_sections import Resize

SECTIONS = [name for name, value in Recipe() if isinstance(value, Section)]


def fields():
    for name, field in Recipe.model_fields.items():
        if name in SECTIONS:
            kind = Resize if name == "resize" else field.annotation
            for key, inner in kind.model_fields.items():
                yield f"{name}.{key}", inner
        else:
            yield name, field


def test_the_default_recipe_holds():
    assert Recipe.model_validate(Recipe().model_dump()) == Recipe()


def test_every_key_says_what_it_takes():
    assert [key for key, field in fields() if not field.description] == []


def test_every_stage_has_its_section():
    assert {"precompute", "lr_find", "train_head", "fine_tune", "resize", "evaluate"} < set(SECTIONS)


def test_flatten_gives_dotted_keys_in_the_order_of_the_recipe():
    keys = list(flatten(Recipe()))
    assert keys[:6] == ["seed", "seeds", "device", "reuse", "compile", "deterministic"]
    assert keys == [key for key, _ in fields()]


def test_flatten_keeps_the_values():
    recipe = Recipe.model_validate({"seed": 7, "fine_tune": {"lr": [1e-4, 1e-3, 1e-2]}})
    flat = flatten(recipe)
    assert flat["seed"] == 7
    assert flat["fine_tune.lr"] == [1e-4, 1e-3, 1e-2]
    assert flat["resize.lr"] == "auto"


def test_a_recipe_does_not_change_after_reading():
    recipe = Recipe()
    with pytest.raises(ValidationError):
        recipe.seed = 1
    with pytest.raises(ValidationError):
        recipe.fine_tune.cycles = 9


def test_a_whole_number_will_do_for_a_rate():
    assert Recipe.model_validate({"train_head": {"lr": 1}}).train_head.lr == 1.0


@pytest.mark.parametrize(
    "content",
    [
        {"seed": "3"},
        {"seed": -1},
        {"seed": 1.0},
        {"fine_tune": {"cycles": True}},
        {"fine_tune": {"lr": 0}},
        {"fine_tune": {"lr": float("inf")}},
        {"fine_tune": {"lr": float("nan")}},
        {"fine_tune": {"lr": "fast"}},
        {"train_head": {"lr": [1e-4, 1e-3, 1e-2]}},
        {"train_head": {"fraction": 0}},
        {"precompute": {"image_px": 15}},
        {"precompute": {"dtype": "bfloat16"}},
        {"data": {"fit": "stretch"}},
        {"data": {"valid_fraction": 0.9}},
        {"evaluate": {"register_as": "a/b"}},
        {"evaluate": {"register_as": "a:1"}},
        {"surprise": 1},
        {"resize": {"surprise": 1}},
    ],
)
def test_what_is_out_of_range_or_of_another_type_is_refused(content):
    with pytest.raises(ValidationError):
        Recipe.model_validate(content)


@pytest.mark.parametrize(
    "content",
    [
        {"train_head": {"fraction": 1, "stored_epochs": 0}},
        {"data": {"valid_fraction": 0, "max_bad": 1}},
        {"precompute": {"image_px": 16}},
        {"head": {"hidden": 0, "dropout": 0}},
        {"evaluate": {"register_as": ""}},
        {"resize": {"lr": [1e-5, 1e-4, 1e-3]}},
    ],
)
def test_the_ends_of_a_range_are_taken(content):
    Recipe.model_validate(content)


def test_the_command_of_the_recipe_that_is_taken_where_none_is_named_is_the_bare_one():
    assert command_line(read_recipe(default_recipe("elpv")), {}) == "mlflow run . --env-manager local"


def test_the_command_of_another_recipe_for_the_packaged_cells_names_what_would_be_otherwise_without_it():
    assert "-P augment.flip=sideways" in command_line(Recipe(), {})


def test_the_command_names_what_differs_from_the_defaults_and_then_what_changes():
    recipe = Recipe.model_validate({"reuse": "never", "data": {"source": "my photos/"}, "fine_tune": {"cycles": 5}})
    found = command_line(recipe, {"fine_tune.cycles": 6, "resize.lr": 1e-4})
    wanted = "-P 'data=my photos/' -P fine_tune.cycles=6 -P resize.lr=0.0001"
    assert found == f"mlflow run . --env-manager local {wanted}"


def test_the_command_leads_back_to_the_recipe():
    recipe = Recipe.model_validate(
        {"seed": 3, "fine_tune": {"lr": [1e-5, 1e-4, 1e-3]}, "evaluate": {"register_as": ""}}
    )
    words = shlex.split(command_line(recipe, {"head.dropout": 0.7}))
    pairs = dict(word.split("=", 1) for word in words if "=" in word)
    assert override_recipe(read_recipe(default_recipe("elpv")), pairs) == recipe.model_copy(
        update={"head": recipe.head.model_copy(update={"dropout": 0.7})}
    )


def test_a_class_is_named_as_labels_are_stored():
    assert Recipe.model_validate({"evaluate": {"positive_class": " cafe\u0301"}}).evaluate.positive_class == "caf\u00e9"


def test_resize_is_one_step_or_a_list_of_which_those_without_cycles_are_left_out():
    one = Recipe.model_validate({"resize": {"image_px": 300}})
    assert [step.image_px for step in resize_steps(one)] == [300]
    steps = Recipe.model_validate({"resize": [{"image_px": 224}, {"cycles": 0}, {"image_px": 300, "cycle_len": 2}]})
    assert [(step.image_px, step.cycle_len) for step in resize_steps(steps)] == [(224, 4), (300, 2)]
    flat = flatten(steps)
    assert (flat["resize.0.image_px"], flat["resize.2.cycle_len"]) == (224, 2)
    assert "resize.image_px" not in flat


@pytest.mark.parametrize(
    ("changes", "stages"),
    [
        ({}, ["precompute", "lr_find", "train_head", "fine_tune", "resize", "evaluate"]),
        ({"fine_tune": {"cycles": 0}}, ["precompute", "lr_find", "train_head", "resize", "evaluate"]),
        ({"resize": {"cycles": 0}}, ["precompute", "lr_find", "train_head", "fine_tune", "evaluate"]),
        ({"resize": []}, ["precompute", "lr_find", "train_head", "fine_tune", "evaluate"]),
        ({"stages": "train_head, precompute"}, ["precompute", "train_head"]),
    ],
)
def test_stages_that_are_not_named_and_those_without_cycles_are_left_out(changes, stages):
    assert list(stages_of(Recipe.model_validate(changes))) == stages


@pytest.mark.parametrize("stages", ["precomput", "precompute,precompute", "", "all,evaluate"])
def test_stages_are_named_right_and_once(stages):
    with pytest.raises(ValidationError, match="choose from"):
        Recipe(stages=stages)


@pytest.mark.parametrize("number", [1, -1, 51, 2.5])
def test_one_fold_is_none(number):
    assert Recipe.model_validate({"evaluate": {"cross_validation_folds": 0}}).evaluate.cross_validation_folds == 0
    assert Recipe.model_validate({"evaluate": {"cross_validation_folds": 2}}).evaluate.cross_validation_folds == 2
    with pytest.raises(ValidationError):
        Recipe.model_validate({"evaluate": {"cross_validation_folds": number}})


@pytest.mark.parametrize(
    ("stages", "trained", "section"),
    [
        ("all", ["lr_find", "precompute"], "train_head"),
        ("all", ["train_head", "precompute"], "fine_tune"),
        ("all", ["fine_tune", "lr_find", "train_head", "precompute"], "resize.0"),
        ("all", ["resize", "fine_tune", "train_head", "precompute"], "resize.1"),
        ("all", ["resize", "resize", "fine_tune", "train_head", "precompute"], "resize.1"),
        ("precompute,lr_find,train_head,resize", ["train_head", "precompute"], "resize.0"),
        ("precompute,lr_find,train_head,evaluate", ["train_head", "precompute"], "fine_tune"),
    ],
)
def test_the_finder_is_told_which_section_trains_next(stages, trained, section):
    steps = [{"image_px": 224, "freeze": "early"}, {"image_px": 300, "freeze": "none"}]
    recipe = build_recipe({"stages": stages, "resize": steps}, {}, "a test")
    sections = {"train_head": recipe.train_head, "fine_tune": recipe.fine_tune}
    sections |= {f"resize.{number}": step for number, step in enumerate(recipe.resize)}
    assert trained_next(recipe, trained) is sections[section]
    frozen = {"train_head": "body", "fine_tune": "none", "resize.0": "early", "resize.1": "none"}
    assert frozen_in(sections[section]) == frozen[section]
