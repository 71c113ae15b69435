from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.recipe import Recipe, flatten
from pipeline.recipe_file import build_recipe, help_text, override_recipe, read_recipe, write_recipe

SHIPPED = sorted((Path(__file__).resolve().parents[2] / "recipes").glob("*.yaml"))


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


@pytest.mark.parametrize(
    ("text", "key", "value", "takes"),
    [
        ("seed: -1", "seed", "-1", "a whole number from 0 up"),
        ("seed: '3'", "seed", "'3'", "a whole number from 0 up"),
        ("seed: true", "seed", "True", "a whole number from 0 up"),
        ("seed:", "seed", "None", "a whole number from 0 up"),
        ("device: tpu", "device", "'tpu'", "auto, cpu or cuda"),
        ("data: {valid_fraction: 1.5}", "data.valid_fraction", "1.5", "a share of the pictures from 0 to below 0.9"),
        ("data: {max_bad: .nan}", "data.max_bad", "nan", "a share from 0 to 1"),
        ("data: {extensions: .jpg}", "data.extensions", "'.jpg'", "a list of file endings"),
        ("data: {extensions: [.jpg, 3]}", "data.extensions", "3", "a list of file endings"),
        ("fine_tune: {cycle_len: 0}", "fine_tune.cycle_len", "0", "a whole number from 1 up"),
        ("fine_tune: {cycle_len: 2.5}", "fine_tune.cycle_len", "2.5", "a whole number from 1 up"),
        ("fine_tune: {cycle_len: true}", "fine_tune.cycle_len", "True", "a whole number from 1 up"),
        ("fine_tune: {lr: true}", "fine_tune.lr", "True", "a list of three rates"),
        ("fine_tune: {lr: quick}", "fine_tune.lr", "'quick'", "a list of three rates"),
        ("fine_tune: {lr: [0.1, -1, x]}", "fine_tune.lr", "-1", "a list of three rates"),
        ("train_head: {lr: yes}", "train_head.lr", "True", "a rate above 0"),
        ("augment: {flip: up}", "augment.flip", "'up'", "none, sideways (left and right may be swapped), or all"),
        ("fine_tune: 3", "fine_tune", "3", "a section with keys of its own"),
        ("fine_tune:", "fine_tune", "None", "a section with keys of its own"),
    ],
)
def test_a_wrong_value_is_named_with_its_key_its_place_and_what_would_do(tmp_path, text, key, value, takes):
    said = complaint(tmp_path, text)
    assert said.startswith(f"In {tmp_path / 'mine.yaml'}: {key} is ")
    assert value in said
    assert takes in said.split("; it takes ")[1]
    assert len(said.splitlines()) == 1
    assert said.endswith(".")


@pytest.mark.parametrize(
    ("text", "key", "nearest"),
    [
        ("sed: 1", "sed", "seed"),
        ("finetune: {cycles: 1}", "finetune", "fine_tune"),
        ("fine_tune: {cycle_length: 2}", "fine_tune.cycle_length", "fine_tune.cycle_len"),
        ("data: {backbone: resnet18}", "data.backbone", "model.backbone"),
        ("image_px: 64", "image_px", "resize.image_px"),
        ("backbone: resnet18", "backbone", "model.backbone"),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest(tmp_path, text, key, nearest):
    said = complaint(tmp_path, text)
    assert said == f"In {tmp_path / 'mine.yaml'}: {key} is not a key of a recipe; the nearest is {nearest}."


@pytest.mark.parametrize(
    ("key", "value", "said_of_it"),
    [
        ("fine_tune.cycle_length", "2", "fine_tune.cycle_length is not a key of a recipe; the nearest is"),
        ("fine_tune.cycle_len", "two", "fine_tune.cycle_len is 'two'; it takes a whole number from 1 up"),
        ("fine_tune.lr", "[1,2", "fine_tune.lr is '[1,2'; it takes auto"),
        ("fine_tune.lr", "", "fine_tune.lr is None; it takes auto"),
        ("fine_tune", "3", "fine_tune is 3; it takes a section"),
        ("data", "", "data.source is ''; it takes elpv"),
        ("nothing.like.it", "3", "nothing is not a key of a recipe"),
    ],
)
def test_a_mistake_on_the_command_line_is_said_to_be_there(tmp_path, key, value, said_of_it):
    said = complaint(tmp_path, "seed: 1", **{key: value})
    assert said.startswith(f"On the command line: {said_of_it}")
    assert len(said.splitlines()) == 1


def test_a_value_has_no_keys_below_it(tmp_path):
    assert "seed is a value, not a section" in complaint(tmp_path, "seed: 1", seed__x="1")


def test_each_mistake_has_a_sentence_with_its_own_place(tmp_path):
    said = complaint(tmp_path, "seed: -1\nhead: {hiden: 3}", fine_tune__cycles="0").splitlines()
    assert len(said) == 3
    assert any(line.startswith("In ") and "seed is -1" in line for line in said)
    assert any(line.startswith("In ") and "the nearest is head.hidden" in line for line in said)
    assert any(line.startswith("On the command line: fine_tune.cycles is 0") for line in said)


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


@pytest.mark.parametrize("name", ["2024", "1e3", "true", "null", "no", "[a]", "2024-05-01", "~", "a: b"])
def test_a_folder_stays_text_whatever_it_looks_like(tmp_path, name):
    assert read(tmp_path, "", data=name).data.source == name
    assert read(tmp_path, "", data__source=name).data.source == name


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("lr_find: {start_lr: 1, end_lr: 0.1}", ["lr_find.start_lr is 1,", "lr_find.end_lr, 0.1"]),
        ("lr_find: {start_lr: 0.1, end_lr: 0.1}", ["lr_find.start_lr is 0.1"]),
        ("data: {valid_fraction: 0.5, test_fraction: 0.5}", ["data.valid_fraction", "data.test_fraction", "1,"]),
        ("fine_tune: {lr: [0.1, 0.2]}", ["fine_tune.lr has 2 rates", "three"]),
        ("resize: {lr: [0.1, 0.2, 0.3, 0.4]}", ["resize.lr has 4 rates", "three"]),
        ("train_head: {stored_epochs: 0, cycles: 0}", ["train_head.stored_epochs", "train_head.cycles"]),
    ],
)
def test_keys_that_do_not_go_together_are_told(tmp_path, text, names):
    said = complaint(tmp_path, text)
    assert said.startswith(f"In {tmp_path / 'mine.yaml'}: ")
    assert all(name in said for name in names)


def test_a_missing_recipe_is_told(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.yaml does not exist"):
        read_recipe(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize("text", ["seed: [1", "a: b: c", "\tseed: 1", "!!python/object:os.system {}"])
def test_what_is_no_safe_yaml_is_told_in_one_line(tmp_path, text):
    said = complaint(tmp_path, text)
    assert "mine.yaml cannot be read as YAML" in said
    assert len(said.splitlines()) == 1


def test_bytes_that_are_no_text_are_told(tmp_path):
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
    with pytest.raises(UserError, match=r"On the command line: fine_tune\.cycles is 0"):
        override_recipe(recipe, {"fine_tune.cycles": "0"})


def test_help_lists_each_key_with_its_default_and_what_it_takes():
    lines = help_text().splitlines()
    assert lines[0::2] == [f"  {key} = {value}" for key, value in flatten(Recipe()).items()]
    assert all(line.startswith("      ") and len(line.split()) > 1 for line in lines[1::2])
