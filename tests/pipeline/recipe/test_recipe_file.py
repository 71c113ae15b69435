import re
import shlex
from pathlib import Path

import pytest
import yaml
from odd_text import ODD

from pipeline.recipe.presets import command_line, default_recipe
from pipeline.recipe.recipe_file import (
    build_recipe,
    check_overrides,
    help_text,
    override_recipe,
    read_recipe,
)
from pipeline.recipe.schema import Recipe, flatten, resize_steps, write_recipe
from pipeline.recipe.yaml_rules import read_yaml
from pipeline.system.errors import UserError

SHIPPED = sorted((Path(__file__).resolve().parents[3] / "recipes").rglob("*.yaml"))


def read(tmp_path, text, **overrides):
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return read_recipe(path, {key.replace("__", "."): value for key, value in overrides.items()})


def complaint(tmp_path, text, **overrides):
    with pytest.raises(UserError) as caught:
        read(tmp_path, text, **overrides)
    return str(caught.value)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_the_recipes_that_come_with_the_project_hold(path):
    read_recipe(path)


def test_an_empty_file_is_the_default_recipe(tmp_path):
    assert read(tmp_path, "") == Recipe()


def test_keys_left_out_keep_their_defaults(tmp_path):
    recipe = read(tmp_path, "fine_tune: {cycles: 5}")
    assert recipe.fine_tune.cycles == 5
    assert recipe.fine_tune.cycle_mult == Recipe().fine_tune.cycle_mult


def test_a_value_has_no_keys_below_it(tmp_path):
    assert "seed is a value, not a section" in complaint(tmp_path, "seed: 1", seed__x="1")


@pytest.mark.parametrize("text", ["1e-3", "1E-3", "1.e-3", ".1e-2", "0.001", "1.0e-3"])
def test_a_rate_may_be_written_as_people_write_it(tmp_path, text):
    assert read(tmp_path, f"fine_tune: {{lr: {text}}}").fine_tune.lr == 0.001
    assert read(tmp_path, "", fine_tune__lr=text).fine_tune.lr == 0.001


def test_a_list_may_be_written_on_the_command_line(tmp_path):
    assert read(tmp_path, "", fine_tune__lr="[1e-5, 1e-4, 1e-3]").fine_tune.lr == [1e-5, 1e-4, 1e-3]
    assert read(tmp_path, "", data__extensions="[.jpg]").data.extensions == [".jpg"]


def test_the_command_line_goes_over_the_file(tmp_path):
    recipe = read(tmp_path, "seed: 1\nfine_tune: {cycles: 3, cycle_len: 4}", fine_tune__cycles="5")
    assert (recipe.seed, recipe.fine_tune.cycles, recipe.fine_tune.cycle_len) == (1, 5, 4)


def test_data_is_short_for_its_source(tmp_path):
    assert read(tmp_path, "data: photos/").data.source == "photos/"
    assert read(tmp_path, "data: photos/", data__fit="pad").data.source == "photos/"
    assert read(tmp_path, "data: {fit: pad}", data="photos/").data.source == "photos/"
    assert read(tmp_path, "data: {fit: pad}", data="photos/").data.fit == "pad"


@pytest.mark.parametrize("name", ["2024", "1e3", "true", "null", "no", "[a]", "2024-05-01", "2024-13-01", "~", "a: b"])
def test_a_folder_stays_text_though_it_looks_like_a_value(tmp_path, name):
    assert read(tmp_path, "", data=name).data.source == name
    assert read(tmp_path, "", data__source=name).data.source == name


@pytest.mark.parametrize("name", [name for name in ODD if name.strip() == name != ""])
def test_a_logged_recipe_is_read_as_it_was_whatever_its_classes_and_folders_are_called(tmp_path, name):
    choice = {"type": "choice", "of": [name, "none"]}
    content = {
        "data": {"source": name, "extensions": [f".{name}"]},
        "model": {"backbone": name, "weights": name},
        "evaluate": {"positive_class": name, "register_as": "" if set("/:") & set(name) else f"thaw-{name}"},
        "sweep": {"name": name, "storage": name, "space": {"augment.flip": choice, name: choice}},
    }
    recipe = Recipe.model_validate(content)
    (tmp_path / "recipe.yaml").write_bytes(write_recipe(recipe).encode("utf-8"))
    assert read_recipe(tmp_path / "recipe.yaml") == recipe


@pytest.mark.parametrize("name", ["007", "1e3", "no", "null", "~", "2024-01-01", "12:30", "0x1F", "1_000", ".inf"])
def test_a_class_or_a_folder_needs_no_quotes_in_a_recipe(tmp_path, name):
    text = f"data: {name}\nmodel: {{weights: {name}}}\nevaluate:\n  positive_class: {name}"
    recipe = read(tmp_path, text)
    assert (recipe.data.source, recipe.model.weights, recipe.evaluate.positive_class) == (name, name, name)


@pytest.mark.parametrize("name", [name for name in ODD if name])
def test_a_shown_command_sets_what_the_recipe_has(name):
    changes = {"data.source": name, "data.extensions": [f".{name}", ".jpg"], "fine_tune.lr": [1e-5, 1e-4, 0.5]}
    words = shlex.split(command_line(Recipe(), {**changes, "evaluate.onnx": False}))
    typed = dict(word.split("=", 1) for word in words[words.index("local") + 1 :] if word != "-P")
    recipe = build_recipe({}, typed, "mine.yaml")
    assert (recipe.data.source, recipe.data.extensions) == (name, [f".{name}", ".jpg"])
    assert (recipe.fine_tune.lr, recipe.evaluate.onnx) == ([1e-5, 1e-4, 0.5], False)


@pytest.mark.parametrize("name", ["", "2024", "no", "1e3", "null", "[a]"])
def test_a_name_stays_text_though_it_looks_like_a_value(tmp_path, name):
    assert read(tmp_path, "", evaluate__register_as=name).evaluate.register_as == name


@pytest.mark.parametrize("run_id", ["7" * 32, f"{'1' * 30}e5"])
def test_the_id_of_a_run_stays_text_though_it_may_be_a_number(tmp_path, run_id):
    assert read(tmp_path, "", reuse=run_id).reuse == run_id


def test_a_mistake_is_reported_to_stand_in_the_file_that_was_read(tmp_path):
    assert complaint(tmp_path, "seed: -1").startswith(f"In {tmp_path / 'mine.yaml'}: seed is -1; ")
    start_above_end = complaint(tmp_path, "lr_find: {start_lr: 10}", seed="3")
    assert start_above_end.startswith(f"In {tmp_path / 'mine.yaml'}: lr_find.start_lr is 10, ")


def test_overrides_are_checked_one_by_one_where_the_recipe_below_them_is_not_known_yet():
    check_overrides({"lr_find.start_lr": "20", "lr_find.end_lr": "100"})
    check_overrides({"lr_find.start_lr": "20"})
    with pytest.raises(UserError, match=r"On the command line: lr_find\.start_lr is -1"):
        check_overrides({"lr_find.start_lr": "-1"})


def test_a_missing_recipe_is_reported(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.yaml does not exist"):
        read_recipe(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize(
    "text",
    [
        "seed: [1",
        "a: b: c",
        "\tseed: 1",
        "!!python/object:os.system {}",
        "seed: 2024-13-01",
        f"seed: {'1' * 5000}",
        "seed: 1\nseed: 2",
    ],
    ids=lambda text: text[:20],
)
def test_what_is_no_safe_yaml_is_reported_in_one_line(tmp_path, text):
    message = complaint(tmp_path, text)
    assert "mine.yaml cannot be read as YAML" in message
    assert len(message.splitlines()) == 1


def test_bytes_that_are_no_text_are_reported(tmp_path):
    (tmp_path / "mine.yaml").write_bytes(b"seed: \xff\xfe")
    with pytest.raises(UserError, match="cannot be read as YAML"):
        read_recipe(tmp_path / "mine.yaml")


@pytest.mark.parametrize("text", ["- seed", "3", "just words"])
def test_a_recipe_is_keys_and_values(tmp_path, text):
    assert "must be a list of keys and values" in complaint(tmp_path, text)


def test_a_recipe_written_is_the_recipe_read(tmp_path):
    recipe = build_recipe(
        {"data": "фото/ü", "seed": 3, "lr_find": {"start_lr": 1e-7}, "fine_tune": {"lr": [1e-5, 1e-4, 0.25]}},
        {"reuse": "never", "evaluate.register_as": "solar-cells"},
        "here",
    )
    assert read(tmp_path, write_recipe(recipe)) == recipe
    assert write_recipe(read(tmp_path, write_recipe(recipe))) == write_recipe(recipe)


def test_a_recipe_written_names_every_key(tmp_path):
    assert read(tmp_path, write_recipe(Recipe())) == Recipe()
    assert all(f"{key.split('.')[-1]}:" in write_recipe(Recipe()) for key in flatten(Recipe()))


def test_overriding_leaves_the_rest_alone():
    recipe = build_recipe({"seed": 3, "data": "photos/"}, {}, "here")
    other = override_recipe(recipe, {"fine_tune.cycles": "4"})
    assert other.fine_tune.cycles == 4
    assert {key: value for key, value in flatten(other).items() if key != "fine_tune.cycles"} == {
        key: value for key, value in flatten(recipe).items() if key != "fine_tune.cycles"
    }
    assert override_recipe(recipe, {}) == recipe
    with pytest.raises(UserError, match=r"On the command line: fine_tune\.cycles is -1"):
        override_recipe(recipe, {"fine_tune.cycles": "-1"})


def test_steps_of_resize_are_set_by_their_number_and_the_number_after_the_last_adds_one():
    one = override_recipe(Recipe(), {"resize.image_px": "160"})
    assert [step.image_px for step in resize_steps(one)] == [160]
    two = override_recipe(one, {"resize.1.image_px": "300", "resize.1.lr": "[1e-5, 1e-4, 1e-3]"})
    assert [(step.image_px, step.lr) for step in resize_steps(two)] == [(160, "auto"), (300, [1e-5, 1e-4, 1e-3])]
    assert resize_steps(override_recipe(two, {"resize.0.image_px": "200"}))[0].image_px == 200
    whole = override_recipe(Recipe(), {"resize": "[{image_px: 224}, {image_px: 300, cycles: 0}]"})
    assert [step.image_px for step in resize_steps(whole)] == [224]


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("resize.image_px", "resize.image_px cannot be set: resize is a list of 2 steps; name one"),
        ("resize.3.image_px", "resize.3.image_px cannot be set: resize is a list of 2 steps; name one"),
        ("resize.1.image_pixels", "resize.1.image_pixels is not a key of a recipe; the nearest is resize.image_px"),
        ("resize.1.image_px", "resize.1.image_px is 3; it takes a whole number of pixels from 16 to 2048"),
    ],
)
def test_what_is_wrong_with_a_step_of_resize_is_one_sentence(key, words):
    steps = build_recipe({"resize": [{"image_px": 224}, {"image_px": 300}]}, {}, "mine.yaml")
    with pytest.raises(UserError, match=re.escape(words)) as caught:
        override_recipe(steps, {key: "3"})
    assert "On the command line: " in str(caught.value) or "cannot be set" in str(caught.value)


def test_the_command_of_a_recipe_with_steps_gives_that_recipe_with_the_changes():
    recipe = build_recipe({"resize": [{"image_px": 224}, {"image_px": 300, "cycle_len": 2}, {}]}, {}, "here")
    words = shlex.split(command_line(recipe, {"resize.1.lr": 1e-3, "fine_tune.cycles": 2}))
    overrides = dict(word.split("=", 1) for word in words if "=" in word)
    changed = override_recipe(recipe, {"resize.1.lr": "1e-3", "fine_tune.cycles": "2"})
    assert override_recipe(read_recipe(default_recipe("elpv")), overrides) == changed
    assert read_yaml(overrides["resize"])[2] == {}


def test_help_lists_each_key_with_its_default_and_what_it_takes():
    lines = help_text().splitlines()
    assert lines[0::2] == [f"  {key} = {value}" for key, value in flatten(Recipe()).items()]
    assert all(line.startswith("      ") and len(line.split()) > 1 for line in lines[1::2])


def test_the_shipped_recipe_spells_out_every_key_with_its_default():
    path = Path(__file__).parents[3] / "recipes" / "photos.yaml"
    assert read_recipe(path) == Recipe()
    assert set(flatten(Recipe())) - {"data.extensions"} == {
        f"{section}.{key}" if isinstance(value, dict) else section
        for section, value in yaml.safe_load(path.read_text()).items()
        for key in (value if isinstance(value, dict) else [None])
    }
