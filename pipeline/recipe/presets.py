"""The recipes that are taken where none is named: of the kind of the pictures, and quicker or better ones by a preset;
and the command that runs a recipe."""

import shlex
from collections.abc import Mapping
from functools import cache, reduce
from pathlib import Path
from typing import Any

from pipeline.recipe.recipe_file import build_recipe, read_content
from pipeline.recipe.schema import Recipe, training_settings
from pipeline.recipe.yaml_rules import write_value
from pipeline.system.errors import UserError

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
# The set of solar cells that comes as a package.
PACKAGED = "elpv"
GOOD = "good"
# The recipes of the packaged cells and of a user's own pictures, and those for a GPU, with which `best` begins.
OF_CELLS, OF_PHOTOS = ("elpv.yaml", "elpv_gpu.yaml"), ("photos.yaml", "photos_gpu.yaml")
PRESETS = ("quick", GOOD, "best")
# The recipe for fewer training pictures of a class.
FOR_FEW, FEW_PER_CLASS = RECIPES / "tiny.yaml", 30


def default_recipe(source: str) -> Path:
    """The recipe of a kind of pictures: of the packaged cells, or of a user's own."""
    return RECIPES / _of_kind(source)[0]


def _of_kind(source: str) -> tuple[str, str]:
    return OF_CELLS if source == PACKAGED else OF_PHOTOS


def preset_files(name: str, source: str) -> list[Path]:
    """The recipe of the kind of pictures, and those that the preset `name` puts over it, one over the other; UserError
    if there is no such preset."""
    if name not in PRESETS:
        raise UserError(f"preset is {name}, which does not exist; give {', '.join(PRESETS[:-1])} or {PRESETS[-1]}.")
    usual, on_gpu = _of_kind(source)
    over = {"quick": ["presets/quick.yaml"], GOOD: [], "best": [on_gpu, "presets/best.yaml"]}
    return [RECIPES / file for file in (usual, *over[name])]


def read_preset(name: str, source: str, overrides: Mapping[str, str] | None = None) -> Recipe:
    """The recipe of the preset `name` for the pictures of `source`: that of their kind, with the preset's keys put over
    it, and `overrides` (dotted key → text as typed) over both. UserError if one of them is wrong."""
    files = preset_files(name, source)
    content = reduce(_merged, map(read_content, files))
    return build_recipe(content, overrides or {}, str(files[-1]))


def describe_preset(name: str, source: str) -> str:
    """What a preset is made of, in a sentence."""
    usual, *over = (str(file.relative_to(RECIPES.parent)) for file in preset_files(name, source))
    return f"preset {name}: {usual}" + (f", and over it {' and '.join(over)}" if over else "")


def advise_on_few(recipe: Recipe, pictures: int, classes: int) -> str:
    """Where the recipe of the pictures' kind trains on so few `pictures` in all that another suits them better, a
    sentence that names it; else an empty text."""
    usual = _base(GOOD, recipe.data.source)
    is_usual = all(getattr(recipe, name) == getattr(usual, name) for name in ("precompute", "train_head"))
    if recipe.data.source == PACKAGED or pictures >= FEW_PER_CLASS * classes or not is_usual:
        return ""
    return (
        f"These are {pictures // classes} training pictures a class; for fewer than {FEW_PER_CLASS} there is "
        f"-P recipe=recipes/{FOR_FEW.name}."
    )


def command_line(recipe: Recipe, changes: Mapping[str, object]) -> str:
    """The `mlflow run` of `recipe` with these keys changed, by the preset that comes nearest to it; keys that are as in
    the preset are left out."""
    commands = (_words(recipe, changes, name) for name in sorted(PRESETS, key=lambda name: name != GOOD))
    shortest = min((words for words in commands if words is not None), key=len)
    return " ".join(["mlflow run . --env-manager local", *shortest])


def _words(recipe: Recipe, changes: Mapping[str, object], preset: str) -> list[str] | None:
    """The words that set `recipe`, with these changes, on this preset; None if the preset has a list of steps of resize
    in the place of one step."""
    base = _base(preset, recipe.data.source)
    if isinstance(base.resize, list) and not isinstance(recipe.resize, list):
        return None
    defaults = training_settings(base) | {"reuse": recipe.reuse}
    changed = {key: value for key, value in changes.items() if not (isinstance(recipe.resize, list) and _is_step(key))}
    settings = {key: value for key, value in training_settings(recipe).items() if value != defaults.get(key)}
    if isinstance(recipe.resize, list):
        settings = {key: value for key, value in settings.items() if not _is_step(key)}
        steps = [step.model_dump(exclude_defaults=True) for step in recipe.resize]
        for key in changes.keys() - changed.keys():
            _, number, name = key.split(".")
            steps[int(number)][name] = changes[key]
        if recipe.resize != base.resize or changes.keys() != changed.keys():
            settings |= {"resize": steps}
    settings = ({"preset": preset} if preset != GOOD else {}) | settings | changed
    words = ["data" if key == "data.source" else key for key in settings]
    values = [value if isinstance(value, str) else write_value(value) for value in settings.values()]
    return [f"-P {shlex.quote(f'{word}={value}')}" for word, value in zip(words, values, strict=True)]


@cache
def _base(preset: str, source: str) -> Recipe:
    return read_preset(preset, source)


def _is_step(key: str) -> bool:
    """Whether a key is of a numbered step of resize."""
    return key.startswith("resize.") and key.split(".")[1].isdecimal()


def _merged(below: Mapping[Any, Any], over: Mapping[Any, Any]) -> dict[Any, Any]:
    """The sections of `below`, with the keys of those of `over` put over them."""
    merged = dict(below)
    for name, section in over.items():
        inner = merged.get(name)
        merged[name] = inner | section if isinstance(inner, dict) and isinstance(section, dict) else section
    return merged
