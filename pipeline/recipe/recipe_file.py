"""Reads recipes from YAML, overrides them by dotted keys, and checks them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from pipeline.recipe.mistakes import field_of, wrong_keys, wrong_together
from pipeline.recipe.schema import Recipe, flatten
from pipeline.recipe.yaml_rules import read_yaml
from pipeline.system.errors import UserError


def read_recipe(path: Path, overrides: Mapping[str, str] | None = None) -> Recipe:
    """The recipe in the YAML file `path`, with `overrides` (dotted key → text as typed) put over it.

    Raises UserError for a file that is missing or no YAML, and for every wrong key or value.
    """
    return build_recipe(read_content(path), overrides or {}, str(path))


def read_content(path: Path) -> dict[Any, Any]:
    """The nested keys and values of the YAML file `path`; UserError if it is missing or no YAML."""
    if not path.is_file():
        raise UserError(f"The recipe {path} does not exist; see recipes/ for those that come with the project.")
    try:
        content = read_yaml(path.read_text(encoding="utf-8"), _is_text)
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"The recipe {path} cannot be read as YAML: {' '.join(str(error).split())}.") from None
    if content is None:
        content = {}
    if not isinstance(content, dict):
        raise UserError(f"The recipe {path} must be a list of keys and values, such as 'seed: 0'.")
    return content


def build_recipe(content: Mapping[Any, Any], overrides: Mapping[str, str], origin: str) -> Recipe:
    """The recipe for nested `content` read from `origin`, with `overrides` put over it; UserError if it is wrong."""
    recipe = _validated(content, overrides, origin)
    mistake = wrong_together(recipe, set(overrides), origin)
    if mistake is not None:
        raise UserError(mistake)
    return recipe


def check_overrides(overrides: Mapping[str, str]) -> None:
    """Raises UserError if one of `overrides` is wrong in any recipe."""
    _validated({}, overrides, "the recipe")


def override_recipe(recipe: Recipe, overrides: Mapping[str, str]) -> Recipe:
    """`recipe` with `overrides` (dotted key → text as typed) put over it; UserError if one is wrong."""
    return build_recipe(recipe.model_dump(), overrides, "the recipe") if overrides else recipe


def help_text() -> str:
    """Every key with its default and what it takes, a line each."""
    lines = []
    for key, value in flatten(Recipe()).items():
        field = field_of(key.split("."))
        assert field is not None
        lines += [f"  {key} = {value}", f"      {field.description}"]
    return "\n".join(lines)


def _validated(content: Mapping[Any, Any], overrides: Mapping[str, str], origin: str) -> Recipe:
    nested = {key: _section_content(key, value, origin) for key, value in content.items()}
    full_keys = {"data.source" if key == "data" else key: text for key, text in overrides.items()}
    for key, text in full_keys.items():
        _override(nested, key, text)
    try:
        return Recipe.model_validate(nested)
    except ValidationError as error:
        raise UserError(wrong_keys(error, set(full_keys), origin)) from None


def _section_content(key: Any, value: Any, origin: str) -> Any:
    """A section's own keys; `data: photos/` is short for `data: {source: photos/}`."""
    if key == "data" and isinstance(value, str):
        return {"source": value}
    if key == "resize" and isinstance(value, list):
        return [_section_content("step", step, origin) for step in value]
    for name in (key, *(value if isinstance(value, dict) else ())):
        if not isinstance(name, str):
            raise UserError(f"In {origin}: {name!r} is not a key of a recipe; keys are words, such as seed.")
    return dict(value) if isinstance(value, dict) else value


def _override(nested: dict[str, Any], key: str, text: str) -> None:
    *sections, last = key.split(".")
    if sections[:1] == ["resize"]:
        nested, sections = _step_of(nested, sections[1:], key), []
    for section in sections:
        inner = nested.setdefault(section, {})
        if not isinstance(inner, dict):
            raise UserError(f"{key} cannot be set: {section} is a value, not a section of the recipe.")
        nested = inner
    nested[last] = _typed_value(key, text)


def _step_of(nested: dict[str, Any], number: Sequence[str], key: str) -> dict[str, Any]:
    """The step of resize that an override by `key` is for. A number makes a list of the one step that there may be, and
    the number after the last adds a step."""
    steps = nested.setdefault("resize", {})
    if not number and isinstance(steps, dict):
        return steps
    if number and isinstance(steps, dict):
        steps = nested["resize"] = [steps]
    is_number = len(number) == 1 and number[0].isdecimal()
    if not isinstance(steps, list) or not is_number or int(number[0]) > len(steps):
        raise UserError(
            f"{key} cannot be set: resize is a list of {len(steps)} steps; name one, such as resize.0.image_px, or the "
            "next one to add it."
        )
    steps += [{}] * (int(number[0]) == len(steps))
    found = steps[int(number[0])]
    if not isinstance(found, dict):
        raise UserError(f"{key} cannot be set: a step of resize is a section with keys of its own, not {found!r}.")
    return found


def _typed_value(key: str, text: str) -> Any:
    """The text as YAML; unchanged if the key takes text, so that a folder may be called 2024."""
    if _is_text(key.split(".")):
        return text
    try:
        value = read_yaml(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        return text
    return text if value is None else value


def _is_text(path: Sequence[str]) -> bool:
    """Whether the key at `path` takes text; `data` is short for its source."""
    field = field_of(("data", "source") if tuple(path) == ("data",) else path)
    return field is not None and field.annotation is str
