"""Recipes read from YAML, overridden by dotted keys, checked, and written back.

A mistake becomes a UserError that names the key, what was given, what it takes, and where it stands.
"""

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from pipeline.errors import UserError
from pipeline.recipe import Recipe, Section, flatten


class _Loader(yaml.SafeLoader):
    """YAML with 1e-3 read as a number, as people write it; YAML 1.1 wants 1.0e-3."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)$"),
    list("-+.0123456789"),
)


def read_recipe(path: Path, overrides: Mapping[str, str] | None = None) -> Recipe:
    """The recipe in the YAML file `path`, with `overrides` (dotted key → text as typed) put over it.

    Raises UserError for a file that is missing or no YAML, and for every wrong key or value.
    """
    if not path.is_file():
        raise UserError(f"The recipe {path} does not exist; see recipes/ for those that come with the project.")
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"The recipe {path} cannot be read as YAML: {' '.join(str(error).split())}.") from None
    if content is None:
        content = {}
    if not isinstance(content, dict):
        raise UserError(f"The recipe {path} must be a list of keys and values, such as 'seed: 0'.")
    return build_recipe(content, overrides or {}, str(path))


def build_recipe(content: Mapping[str, Any], overrides: Mapping[str, str], place: str) -> Recipe:
    """The recipe for nested `content` read at `place`, with `overrides` put over it; UserError if it is wrong."""
    nested = {key: _section_content(key, value) for key, value in content.items()}
    for key, text in overrides.items():
        _override(nested, key, text)
    try:
        recipe = Recipe.model_validate(nested)
    except ValidationError as error:
        messages = _messages(error, set(overrides), place)
        raise UserError("\n".join(messages)) from None
    _check_across_keys(recipe, place)
    return recipe


def override_recipe(recipe: Recipe, overrides: Mapping[str, str]) -> Recipe:
    """`recipe` with `overrides` (dotted key → text as typed) put over it; UserError if one is wrong."""
    return build_recipe(recipe.model_dump(), overrides, "the recipe") if overrides else recipe


def write_recipe(recipe: Recipe) -> str:
    """The whole recipe as YAML that `read_recipe` takes."""
    return yaml.safe_dump(recipe.model_dump(), sort_keys=False, allow_unicode=True)


def help_text() -> str:
    """Every key with its default and what it takes, a line each."""
    default = flatten(Recipe())
    return "\n".join(f"  {key} = {value}\n      {_field(key.split('.')).description}" for key, value in default.items())


def _section_content(key: object, value: Any) -> Any:
    """`data: photos/` is short for `data: {source: photos/}`."""
    return {"source": value} if key == "data" and isinstance(value, str) else value


def _override(nested: dict[str, Any], key: str, text: str) -> None:
    try:
        value = yaml.load(text, _Loader)
    except yaml.YAMLError:
        value = text
    *sections, last = ("data", "source") if key == "data" else key.split(".")
    if last == "source" or (value is None and text):
        value = text
    for section in sections:
        inner = nested.setdefault(section, {})
        if not isinstance(inner, dict):
            raise UserError(f"{key} cannot be set: {section} is a value, not a section of the recipe.")
        nested = inner
    nested[last] = value


def _messages(error: ValidationError, overridden: set[str], place: str) -> list[str]:
    """One sentence for each wrong key, in the order of the recipe."""
    typed = {"data.source" if key == "data" else key for key in overridden}
    sentences: dict[str, str] = {}
    for problem in error.errors():
        path = [str(part) for part in problem["loc"]]
        if problem["type"] == "extra_forbidden":
            key = ".".join(path)
            sentence = f"{key} is not a key of a recipe; the nearest is {_nearest(path)}."
        else:
            path = _known_part(path)
            key = ".".join(path)
            takes = _field(path).description or "a section with keys of its own"
            sentence = f"{key} is {problem['input']!r}; it takes {takes}."
        on_command_line = any(name == key or name.startswith(f"{key}.") for name in typed)
        where = "On the command line" if on_command_line else f"In {place}"
        sentences.setdefault(key, f"{where}: {sentence}")
    return list(sentences.values())


def _known_part(path: Sequence[str]) -> list[str]:
    """The leading part of a path that is a key; pydantic appends the branch of a union, or a list's index."""
    known: list[str] = []
    for part in path:
        if _lookup([*known, part]) is None:
            break
        known.append(part)
    return known


def _lookup(path: Sequence[str]) -> FieldInfo | None:
    fields: Mapping[str, FieldInfo] = Recipe.model_fields
    field: FieldInfo | None = None
    for part in path:
        field = fields.get(part)
        if field is None:
            return None
        kind = field.annotation
        fields = kind.model_fields if isinstance(kind, type) and issubclass(kind, Section) else {}
    return field


def _field(path: Sequence[str]) -> FieldInfo:
    field = _lookup(path)
    assert field is not None, path
    return field


def _nearest(path: Sequence[str]) -> str:
    """The key that looks most like the one at `path`: among its siblings first, then anywhere in the recipe."""
    keys = list(flatten(Recipe()))
    siblings = [key for key in keys if key.split(".")[:-1] == list(path[:-1])]
    names = list(Recipe.model_fields) if len(path) == 1 else siblings
    for candidates in (names, keys):
        close = difflib.get_close_matches(".".join(path), candidates, n=1, cutoff=0.6)
        if close:
            return close[0]
    by_last_part = {key.split(".")[-1]: key for key in keys}
    return by_last_part[difflib.get_close_matches(path[-1], by_last_part, n=1, cutoff=0)[0]]


def _check_across_keys(recipe: Recipe, place: str) -> None:
    """What no single key can tell."""
    if recipe.lr_find.start_lr >= recipe.lr_find.end_lr:
        raise UserError(
            f"In {place}: lr_find.start_lr is {recipe.lr_find.start_lr:g}, which is not below lr_find.end_lr, "
            f"{recipe.lr_find.end_lr:g}; lower the one or raise the other."
        )
    held_out = recipe.data.valid_fraction + recipe.data.test_fraction
    if held_out >= 1:
        raise UserError(
            f"In {place}: data.valid_fraction and data.test_fraction add up to {held_out:g}, which leaves nothing to "
            "train on; lower one of them."
        )
    for name, section in (("fine_tune", recipe.fine_tune), ("resize", recipe.resize)):
        if isinstance(section.lr, list) and len(section.lr) != 3:
            raise UserError(
                f"In {place}: {name}.lr has {len(section.lr)} rates; give three, for the groups early, late and head."
            )
    if recipe.train_head.stored_epochs == 0 and recipe.train_head.cycles == 0:
        raise UserError(
            f"In {place}: train_head.stored_epochs and train_head.cycles are both 0; set one of them to 1 or more."
        )
