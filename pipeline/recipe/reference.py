"""The reference of the recipe, `docs/recipe.md`: every key with its type, its default and what it does, in Markdown."""

from collections.abc import Mapping
from typing import Any

from pydantic_core import to_jsonable_python

from pipeline.recipe.mistakes import field_of
from pipeline.recipe.schema import Recipe
from pipeline.recipe.yaml_rules import write_value

INTRODUCTION = """\
# Every key of the recipe

Made by `make docs` from the schema, `pipeline/recipe/`. A key is set in a recipe, or by its dotted name on the command
line: `mlflow run . --env-manager local -P fine_tune.cycle_len=2`. The defaults are those of `recipes/photos.yaml`."""
TYPES = {"string": "text", "integer": "whole number", "number": "number", "boolean": "`true` or `false`"}
BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
HEADER = "| key | type | default | what it takes and does |\n| --- | --- | --- | --- |"


def reference() -> str:
    """The page: a table for the keys of no section, and one for each section, in the recipe's order."""
    schema = Recipe.model_json_schema()
    sections, properties = schema["$defs"], schema["properties"]
    defaults = to_jsonable_python(Recipe())
    own = [name for name, value in defaults.items() if not isinstance(value, dict)]
    parts = [INTRODUCTION, _table("", {name: properties[name] for name in own}, defaults)]
    for name in (name for name in properties if name not in own):
        kind = type(getattr(Recipe(), name)).__name__
        steps = properties[name].get("description", "")
        words = [sections[kind]["description"], f"It takes {steps}." if steps else ""]
        parts += [f"## {name}", " ".join(" ".join(words).split())]
        parts.append(_table(f"{name}.", sections[kind]["properties"], defaults[name]))
    return "\n\n".join(parts) + "\n"


def _table(section: str, properties: Mapping[str, Any], defaults: Mapping[str, Any]) -> str:
    rows = [HEADER]
    for name, schema in properties.items():
        key = f"{section}{name}"
        field = field_of(key.split("."))
        assert field is not None
        words = str(field.description).replace("|", r"\|")
        rows.append(f"| `{key}` | {_type(schema)} | `{write_value(defaults[name])}` | {words} |")
    return "\n".join(rows)


def _type(schema: Mapping[str, Any]) -> str:
    """The type and its bounds in words, from a JSON schema."""
    if "enum" in schema or "const" in schema:
        *others, last = (f"`{value}`" for value in schema.get("enum", [schema.get("const")]))
        return f"{', '.join(others)} or {last}" if others else last
    if "anyOf" in schema:
        return ", or ".join(_type(one) for one in schema["anyOf"])
    if "discriminator" in schema:
        return "range"
    if schema["type"] == "array":
        return f"list of {_type(schema['items'])}"
    if schema["type"] == "object":
        return f"{_type(schema['additionalProperties'])} by key"
    bounds = ", ".join(f"{sign} {schema[name]:.10g}" for name, sign in BOUNDS.items() if name in schema)
    return f"{TYPES[schema['type']]} {bounds}".strip()
