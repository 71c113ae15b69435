import shlex
from functools import reduce

import pytest

from pipeline.recipe import presets
from pipeline.recipe.presets import (
    FOR_FEW,
    GOOD,
    PRESETS,
    advise_on_few,
    command_line,
    default_recipe,
    describe_preset,
    preset_files,
    read_preset,
)
from pipeline.recipe.recipe_file import override_recipe, read_content, read_recipe
from pipeline.recipe.schema import flatten, resize_steps, stages_of
from pipeline.recipe.training_sections import Resize
from pipeline.recipe.yaml_rules import write_yaml
from pipeline.sweep.space import check_space
from pipeline.system.errors import UserError

SOURCES = ("elpv", "photos/")


def typed(command):
    """The settings in a command that is shown."""
    words = shlex.split(command)
    return dict(word.split("=", 1) for word in words if "=" in word)


def given_keys(file):
    """The flat keys that a recipe file itself gives, with their values."""
    recipe, content = flatten(read_recipe(file)), read_content(file)
    sections = {name for name, section in content.items() if isinstance(section, dict)}
    keys = {f"{name}.{key}" for name in sections for key in content[name]} | (set(content) - sections)
    return {key: value for key, value in recipe.items() if key in keys or key.split(".")[1:2] in (["0"], ["1"])}


def read_typed(command, source):
    settings = typed(command)
    return read_preset(settings.pop("preset", GOOD), settings.get("data", source), settings)


@pytest.mark.parametrize("source", SOURCES)
def test_good_is_the_recipe_of_the_pictures_kind(source):
    assert read_preset("good", source).model_copy(update={"data": None}) == read_recipe(
        default_recipe(source)
    ).model_copy(update={"data": None})


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("name", ["quick", "best"])
def test_a_preset_changes_what_its_file_says_and_leaves_the_rest_to_the_pictures_kind(name, source):
    good, preset = flatten(read_preset("good", source)), flatten(read_preset(name, source))
    own = reduce(lambda all_keys, file: all_keys | given_keys(file), preset_files(name, source)[1:], {})
    changed = {key for key in preset if preset[key] != good.get(key)}
    assert changed
    assert {key: preset[key] for key in changed} == {key: own[key] for key in changed}
    assert all(preset[key] == value for key, value in own.items())
    assert preset["augment.flip"] == good["augment.flip"]
    assert preset["data.source"] == good["data.source"]


def test_a_file_over_another_leaves_the_keys_of_a_section_that_it_does_not_give(tmp_path, monkeypatch):
    one, other = ({key: {"type": "uniform", "low": 0.0, "high": 0.5}} for key in ("head.dropout", "augment.erase"))
    usual = {"data": {"fit": "pad", "max_bad": 0.5}, "sweep": {"space": one}, "resize": {"image_px": 64}}
    over = {"data": {"max_bad": 0.2}, "sweep": {"space": other}, "resize": [{"image_px": 96}]}
    for name, content in {"usual": usual, "over": over}.items():
        (tmp_path / name).write_text(write_yaml(content))
    monkeypatch.setattr(presets, "preset_files", lambda *given: [tmp_path / "usual", tmp_path / "over"])
    recipe = read_preset("quick", "photos/")
    assert (recipe.data.fit, recipe.data.max_bad) == ("pad", 0.2)
    assert list(recipe.sweep.space) == ["augment.erase"]
    assert [step.image_px for step in resize_steps(recipe)] == [96]


@pytest.mark.parametrize("source", SOURCES)
def test_quick_is_the_beginning_of_good_so_that_its_stages_are_reused(source):
    quick, good = read_preset("quick", source), read_preset("good", source)
    for section in ("data", "model", "head", "augment", "precompute", "lr_find", "training", "train_head"):
        assert getattr(quick, section) == getattr(good, section)
    assert stages_of(quick) == ("precompute", "lr_find", "train_head", "evaluate")


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("source", SOURCES)
def test_a_sweep_of_a_preset_varies_what_it_trains(name, source):
    recipe = read_preset(name, source)
    check_space(recipe)
    assert {key.split(".")[0] for key in recipe.sweep.space} <= {"head", "augment", *stages_of(recipe)}


@pytest.mark.parametrize("name", PRESETS)
def test_what_is_typed_goes_over_the_preset(name):
    recipe = read_preset(name, "photos/", {"data": "photos/", "fine_tune.cycle_len": "3", "evaluate.tta_views": "1"})
    assert (recipe.data.source, recipe.fine_tune.cycle_len, recipe.evaluate.tta_views) == ("photos/", 3, 1)
    with pytest.raises(UserError, match=r"On the command line: fine_tune\.cycles is -1"):
        read_preset(name, "photos/", {"fine_tune.cycles": "-1"})


def test_the_recipe_for_few_pictures_is_named_to_whom_takes_the_usual_one_for_so_few():
    usual = read_preset("good", "photos/", {"data": "photos/", "seed": "3", "evaluate.tta_views": "1"})
    assert advise_on_few(usual, 59, 2) == (
        "These are 29 training pictures a class; for fewer than 30 there is -P recipe=recipes/tiny.yaml."
    )
    assert "These are 7 training" in advise_on_few(read_preset("quick", "photos/", {"data": "photos/"}), 15, 2)
    assert advise_on_few(usual, 60, 2) == ""
    assert advise_on_few(read_recipe(FOR_FEW, {"data": "photos/"}), 15, 2) == ""
    assert advise_on_few(read_preset("good", "elpv"), 15, 2) == ""


def test_another_preset_is_refused():
    with pytest.raises(UserError, match=r"^preset is fast, which does not exist; give quick, good or best\.$"):
        read_preset("fast", "elpv")


def test_a_preset_is_described_by_the_files_that_it_is_made_of():
    assert describe_preset("good", "elpv") == "preset good: recipes/elpv.yaml"
    assert describe_preset("quick", "elpv") == "preset quick: recipes/elpv.yaml, and over it recipes/presets/quick.yaml"
    assert describe_preset("best", "photos/") == (
        "preset best: recipes/photos.yaml, and over it recipes/photos_gpu.yaml and recipes/presets/best.yaml"
    )
    assert all(file.is_file() for name in PRESETS for source in SOURCES for file in preset_files(name, source))


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("name", PRESETS)
def test_the_command_of_a_preset_names_it_and_only_what_differs(name, source):
    recipe = override_recipe(read_preset(name, source), {"data.source": source})
    expected = ({"preset": name} if name != "good" else {}) | ({"data": source} if source != "elpv" else {})
    assert typed(command_line(recipe, {})) == expected
    changed = command_line(recipe, {"fine_tune.weight_decay": 0.1})
    assert typed(changed) == expected | {"fine_tune.weight_decay": "0.1"}
    assert read_typed(changed, source) == override_recipe(recipe, {"fine_tune.weight_decay": "0.1"})


def test_the_command_of_a_step_that_changes_is_read_as_that_recipe():
    recipe = read_preset("best", "elpv")
    steps = [{"image_px": 224}, {"image_px": 300, "cycle_len": 2}]
    recipe = recipe.model_validate(recipe.model_dump() | {"resize": steps})
    command = command_line(recipe, {"resize.1.lr": 1e-3})
    assert read_typed(command, "elpv") == override_recipe(recipe, {"resize.1.lr": "1e-3"})


def test_one_step_in_the_place_of_a_presets_list_is_not_shown_by_that_preset(monkeypatch):
    recipe = read_preset("best", "photos/", {"data": "photos/"})
    steps = recipe.model_copy(update={"resize": [Resize(), Resize(image_px=448)]})
    usual = presets._base
    monkeypatch.setattr(presets, "_base", lambda name, source: steps if name == "best" else usual(name, source))
    assert typed(command_line(steps, {})) == {"preset": "best"}
    assert "preset" not in typed(command_line(recipe, {}))
